"""The intervals over seeds and images below a table, from the files beside records."""

import json
import re

import numpy as np
import pytest
from support.run_records import content

from moco_d2.benchmark.image_bootstrap import WeightedAP
from moco_d2.benchmark.rendering import render_folders
from moco_d2.errors import UserError
from moco_d2.files import sha256
from moco_d2.records.image_matches import per_image, write_per_image

IMAGES, TEST_SET = 60, "voc_2007_test"
LINE = re.compile(r"^\| (.+?) \| (.+?) \| (\S+) \| \\\[(.+?)\\\] \| \\\[(.+?)\\\] \| (\d+) % \|$")


def part(rng, skill, images=IMAGES, last=None):
    """Two objects in each image, which a detector finds as often as its skill says."""
    image = np.tile(np.arange(images), 3)
    score = np.sort(rng.random(len(image)))[::-1]
    rng.shuffle(image)
    true = np.arange(10)[:, None] < rng.normal(10 * skill, 3, len(image))
    true &= np.array([np.sum(image[:i] == k) < 2 for i, k in enumerate(image)])
    counts = np.full((1, images), 2)
    if last is not None:  # the images after it have no objects
        true &= image <= last
        counts[0, last + 1 :] = 0
    detections = (np.zeros(len(image), int), image, score, true, np.zeros_like(true))
    return per_image(images, "voc_2007", detections, counts)


@pytest.fixture
def runs(write):
    """Three seeds of two initializations with their files."""
    return write_runs(write.folder)


ROWS = (("supervised", 0.5), ("moco", 0.6))


def write_runs(root, sizes=(IMAGES, IMAGES), digests=(bytes(32), bytes(32)), last=None, rows=ROWS):
    rng = np.random.default_rng(0)
    for (initialization, skill), images, digest in zip(rows, sizes, digests, strict=True):
        for seed in (1, 2, 3):
            kept = part(rng, skill, images, last)
            ap = WeightedAP(kept)(np.ones(images)).tolist()
            metrics = {"bbox": dict(zip(("AP", "AP50", "AP75"), ap, strict=True))}
            record = content(initialization=initialization, seed=seed, metrics=metrics)
            folder = root / f"{initialization}_{seed}"
            folder.mkdir(parents=True)
            file = folder / "per_image.npz"
            write_per_image(file, {"bbox": kept}, digest)
            entry = {"file": file.name, "sha256": sha256(file), "bytes": file.stat().st_size}
            record["per_image"] = {TEST_SET: entry}
            (folder / "record.json").write_text(json.dumps(record))
    return root


def lines(text):
    return [match.groups() for line in text.splitlines() if (match := LINE.match(line))]


def test_each_difference_has_both_intervals(runs):
    found = lines(render_folders([runs], images=True))
    assert [line[:2] for line in found] == [
        ("moco - supervised", column) for column in ("AP50", "AP", "AP75")
    ]
    for _, _, mean, seeds, both, share in found:
        low, high = map(float, seeds.split(", "))
        lower, higher = map(float, both.split(", "))
        assert lower <= low < float(mean) < high <= higher
        assert 0 <= int(share) <= 100
    assert "other test images" in render_folders([runs], "html", images=True)
    assert "0 %: that part cannot be told from the part of the seeds" in render_folders(
        [runs], images=True
    )
    plain = render_folders([runs])
    assert not lines(plain) and "other test images" not in plain


@pytest.mark.parametrize("damage", ["gone", "changed", "of another run"])
def test_a_file_that_is_not_the_runs_own_is_left_out(runs, caplog, damage):
    files = sorted(runs.glob("*/per_image.npz"))
    if damage == "gone":
        files[0].unlink()
    elif damage == "changed":
        files[0].write_bytes(files[0].read_bytes()[:-1] + b"x")
    else:
        record = files[0].with_name("record.json")
        before, after = sha256(files[0]), sha256(files[4])
        files[0].write_bytes(files[4].read_bytes())
        record.write_text(record.read_text().replace(before, after))
    with pytest.raises(UserError, match="no two rows have a common seed"):
        render_folders([runs], images=True)
    said = {
        "gone": "record.json: per_image.npz is missing; copy it there from where the run was trai",
        "changed": "per_image.npz is not the file of this run, because its sha256 is another; copy",
    }
    assert said.get(damage, "but the record's") in caplog.text
    assert "Errno" not in caplog.text
    assert str(files[0].parent) in caplog.text


def test_the_rows_without_a_file_are_named_below_the_table(tmp_path):
    rows = (("supervised", 0.5), ("moco", 0.6), ("moco_v2", 0.7))
    folder = write_runs(tmp_path, (IMAGES,) * 3, (bytes(32),) * 3, rows=rows)
    assert "Left out" not in render_folders([folder], images=True)
    for seed in (2, 3):
        (folder / f"moco_v2_{seed}" / "per_image.npz").unlink()
    text = render_folders([folder], images=True)
    assert {line[0] for line in lines(text)} == {"moco - supervised"}
    named = r"off at 0\)\. Left out are the differences that need moco\\?_v2 \(seed 2, 3\): "
    assert re.search(named, text)


@pytest.mark.parametrize(
    ("images", "digest"), [(IMAGES, b"1" * 32), (IMAGES - 10, b"1" * 32), (IMAGES - 10, bytes(32))]
)
def test_runs_on_other_images_of_a_test_set_are_not_paired(tmp_path, caplog, images, digest):
    folder = write_runs(tmp_path, (IMAGES, images), (bytes(32), digest))
    with pytest.raises(UserError, match="no two rows have a common seed"):
        render_folders([folder], images=True)
    assert "evaluated on 2 different lists of test images" in caplog.text


def test_objects_in_few_images_are_no_bootstrap(tmp_path, caplog):
    """Some draws of the images have none of them, and leaving out a group may leave none."""
    folder = write_runs(tmp_path, last=0)
    with pytest.raises(UserError, match="no two rows have a common seed"):
        render_folders([folder], images=True)
    assert "so few images have objects" in caplog.text
