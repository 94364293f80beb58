import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_d2.errors import UserError
from moco_d2.pretrain.data.images import decode_image
from moco_d2.pretrain.data.samples import read_shard
from moco_d2.pretrain.data.shards import list_shards
from moco_d2.pretrain.data.write_shards import write_shards

CLASSES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    """Images of two classes: 4 of 60 x 40 pixels, and 3 of 20 x 30 pixels."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for i in range(7):
        path = root / CLASSES[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (40, 60, 3) if i < 4 else (30, 20, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path, quality=80)
    return root


def write(folder, out, **flags):
    defaults = {"short_side": 32, "images_per_shard": 3, "quality": 95, "range": None, "seed": 0}
    values = {"source": str(folder), "out": str(out), "workers": 0, **defaults, **flags}
    write_shards(argparse.Namespace(**values))


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(Path(out).iterdir())}


def test_pretraining_reads_them(folder, tmp_path, capsys):
    write(folder, tmp_path / "out")
    pattern = capsys.readouterr().out.partition("'shards:")[2].partition("'")[0]
    found = list_shards(pattern)
    assert (list(found.counts), found.num_classes) == ([3, 3, 1], 2)
    images = [image for url in found.urls for image in read_shard(url)]
    small, large = [], []
    for image in images:
        decoded = decode_image(image.content, image.name)
        (small if decoded.size == (20, 30) else large).append((image, decoded))
    assert [image.size for _, image in large] == [(48, 32)] * 4
    originals = {path.read_bytes(): path for path in folder.rglob("*.jpg")}
    kept = [originals[image.content] for image, _ in small]
    assert sorted(path.name for path in kept) == ["4.jpg", "5.jpg", "6.jpg"]
    assert [CLASSES[image.label] for image, _ in small] == [path.parent.name for path in kept]
    # A class folder is not read in its order.
    assert [image.label for image in images] != sorted(image.label for image in images)


def test_one_shard_without_classes(folder, tmp_path, capsys):
    write(folder / "cat", tmp_path / "out", images_per_shard=100)
    assert "MOCO.DATA.SHARD_IMAGES 4" in capsys.readouterr().out
    found = list_shards(f"{tmp_path}/out/{{000000..000000}}.tar")
    assert (list(found.counts), found.num_classes) == ([4], 0)


def test_an_interrupted_command_is_continued(folder, tmp_path):
    write(folder, tmp_path / "whole")
    write(folder, tmp_path / "out")
    (tmp_path / "out" / "000001.tar").unlink()
    kept = (tmp_path / "out" / "000000.tar").stat()
    write(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert (tmp_path / "out" / "000000.tar").stat().st_mtime_ns == kept.st_mtime_ns


def test_unreadable_images_are_left_out_and_named(folder, tmp_path, capsys):
    for name in ("cat/2.jpg", "dog/5.jpg"):
        (folder / name).write_bytes(b"no image")
    write(folder, tmp_path / "out")
    assert "MOCO.DATA.SHARD_IMAGES 0" in capsys.readouterr().out  # it counts them
    assert sum(list_shards(f"{tmp_path}/out/{{000000..000002}}.tar").counts) == 5
    named = json.loads((tmp_path / "out" / "shards.json").read_text())["unreadable"]
    assert [message.split()[1] for message in named] == [
        f"{folder}/cat/2.jpg",
        f"{folder}/dog/5.jpg",
    ]


def test_values_of_16_bits_become_8(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.full((40, 40), 4095, np.uint16)).save(folder / "x.png")
    with pytest.raises(UserError, match=r"MOCO\.INPUT\.RANGE"):
        write(folder, tmp_path / "out")
    write(folder, tmp_path / "out2", range=[0.0, 4095.0])
    (image,) = read_shard(f"{tmp_path}/out2/000000.tar")
    assert np.asarray(decode_image(image.content, "x")).min() > 250


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"short_side": 0}, "--short-side must be at least 1"),
        ({"images_per_shard": 0}, "--images-per-shard must be at least 1"),
        ({"quality": 0}, r"--quality must be in \[1, 100\]"),
        ({"source": "/missing/images"}, "/missing/images"),
        ({"workers": -1}, "--workers must be at least 0"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"range": [5.0, 5.0]}, "two finite values, the smaller first: 5 5"),
        ({"range": [float("nan"), 1.0]}, "two finite values"),
        ({"range": [0.0, float("inf")]}, "two finite values"),
    ],
)
def test_refusals_write_nothing(folder, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        write(folder, tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a{b", "a'b", 'a"b', "a$b"])
def test_a_folder_whose_name_a_pattern_cannot_hold_is_refused(folder, tmp_path, name):
    with pytest.raises(UserError, match="choose a folder without quotes, braces"):
        write(folder, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_source_that_has_changed_is_refused(folder, tmp_path):
    write(folder, tmp_path / "out")
    (tmp_path / "out" / "000001.tar").unlink()
    (folder / "cat/0.jpg").rename(folder / "cat/z.jpg")
    with pytest.raises(UserError, match="has shards with images '7 images, .*not '7 images, "):
        write(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "000001.tar").exists()


@pytest.mark.parametrize("text", ['{"x":', "[]", '{"unreadable": 5}', '{"unreadable": []}'])
def test_damaged_settings_are_named(folder, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/shards.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot read .*shards\.json.*choose another folder"):
        write(folder, tmp_path / "out")


def test_an_output_folder_that_cannot_be_made_is_named(folder):
    with pytest.raises(UserError, match="/dev/null/x"):
        write(folder, "/dev/null/x")


def test_an_image_that_jpeg_cannot_hold_is_left_out(folder, tmp_path):
    Image.new("RGB", (70_000, 20)).save(folder / "cat/strip.png")
    write(folder, tmp_path / "out")
    (named,) = json.loads((tmp_path / "out/shards.json").read_text())["unreadable"]
    assert "strip.png cannot be written as JPEG" in named
    assert sum(list_shards(f"{tmp_path}/out/{{000000..000002}}.tar").counts) == 7


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
    write(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="has shards with short_side 32, not 16: choose another"):
        write(folder, tmp_path / "out", short_side=16)
    assert contents(tmp_path / "out") == before
    with pytest.raises(UserError, match="is not a folder of shards; choose another"):
        write(folder / "cat", folder)
