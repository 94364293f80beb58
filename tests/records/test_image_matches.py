"""The files of test images: what was written is read, and what somebody else wrote is checked."""

import io
import zipfile

import numpy as np
import pytest

from moco_d2.records import image_matches as format
from moco_d2.records.image_matches import PerImage, per_image, read_per_image, write_per_image

DIGEST = bytes(range(32))


@pytest.fixture
def part():
    label, image = np.array([1, 0, 0]), np.array([2, 0, 1])
    score = np.array([0.5, 0.9, 0.25])
    true = np.zeros((10, 3), dtype=bool)
    true[:3, 1] = True
    ignored = np.zeros((10, 3), dtype=bool)
    ignored[:, 0] = True
    counts = np.array([[1, 0, 2], [0, 0, 0]])
    return per_image(3, "coco", (label, image, score, true, ignored), counts)


def test_what_was_written_is_read(tmp_path, part):
    write_per_image(tmp_path / "per_image.npz", {"bbox": part, "segm": part}, DIGEST)
    outputs, digest = read_per_image(tmp_path / "per_image.npz")
    assert list(outputs) == ["bbox", "segm"] and digest == DIGEST
    for field, expected in part._asdict().items():
        np.testing.assert_array_equal(getattr(outputs["segm"], field), expected)
    assert part.start.tolist() == [0, 2, 3] and part.image.tolist() == [0, 1, 2]
    assert part.true.tolist() == [0b111, 0, 0] and part.ignored.tolist() == [0, 0, 1023]
    assert part.truth_image.tolist() == [0, 2] and part.truth_count.tolist() == [1, 2]
    assert (part.images, part.classes, part.metric) == (3, 2, "coco")


def test_equal_arrays_are_equal_files(tmp_path, part):
    for name in ("a", "b"):
        write_per_image(tmp_path / name, {"bbox": part}, DIGEST)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("about", [3, 2, 9], "out of range"),
        ("about", [0, 2, 0], "out of range"),
        ("about", [1 << 40, 2, 0], "out of range"),
        ("start", [0, 2, 9], "do not divide"),
        ("start", [0, 3, 2, 3], "do not divide"),
        ("image", [0, 1, 3], "an image is out of range"),
        ("truth_image", [0, 3], "an image is out of range"),
        ("truth_class", [0, 2], "out of order or range"),
        ("truth_image", [0, 0], "out of order or range"),
        ("truth_count", [1, 1 << 30], "out of order or range"),
        ("true", [0b111, 0, 1], "contradict"),
        ("true", [1 << 10, 0, 0], "contradict"),
        ("score", [0.2, 0.9, 0.5], "do not fall"),
        ("score", [0.9, 0.2, np.nan], "do not fall"),
        ("score", [0.9, 0.2], "differ in length"),
        ("truth_count", [1], "differ in length"),
        ("true", [7, 1, 0], None),
    ],
)
def test_values_that_contradict_one_another_are_refused(tmp_path, part, field, value, said):
    changed = part._replace(**{field: np.array(value, getattr(part, field).dtype)})
    write_per_image(tmp_path / "a", {"bbox": changed}, DIGEST)
    if said is None:  # two objects of this class, so both may be right
        read_per_image(tmp_path / "a")
        return
    with pytest.raises(ValueError, match=said):
        read_per_image(tmp_path / "a")


def test_more_true_positives_than_objects_are_refused(tmp_path, part):
    changed = part._replace(truth_image=part.truth_image[:0], truth_class=part.truth_class[:0],
                            truth_count=part.truth_count[:0])  # fmt: skip
    write_per_image(tmp_path / "a", {"bbox": changed}, DIGEST)
    with pytest.raises(ValueError, match="more true positives than objects"):
        read_per_image(tmp_path / "a")


def rewritten(path, part, change):
    """Write the archive with members that `change` makes of the true ones."""
    write_per_image(path, {"bbox": part}, DIGEST)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in change(members):
            archive.writestr(name, content)


def saved(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


class Call:
    def __reduce__(self):
        return print, ("executed",)


CHANGES = {
    "a name that is none of ours": ("bbox/extra.npy", saved(np.ones(3)), "has an entry"),
    "a path": ("../bbox/score.npy", saved(np.ones(3)), "has an entry"),
    "no suffix": ("bbox/score", b"1", "has an entry"),
    "a pickle": (
        *("bbox/score.npy", saved(np.array([Call()], dtype=object), allow_pickle=True)),
        "no flat array",
    ),
    "another type": ("bbox/score.npy", saved(np.ones(3)), "no flat array"),
    "two dimensions": ("bbox/score.npy", saved(np.ones((3, 1), np.float32)), "no flat array"),
    "fewer bytes than it says": (
        *("bbox/score.npy", saved(np.ones(3, np.float32))[:-4], "no flat array"),
    ),
    "no array": ("bbox/score.npy", b"plain text, long enough", "magic"),
    "a short digest": ("image_names.npy", saved(np.ones(3, np.uint8)), "no digest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_members_of_another_form_are_refused(tmp_path, part, capsys, change):
    name, content, said = CHANGES[change]
    rewritten(tmp_path / "a", part, lambda members: {**members, name: content}.items())
    with pytest.raises(ValueError, match=said):
        read_per_image(tmp_path / "a")
    assert "executed" not in capsys.readouterr().out


def test_a_missing_array_is_refused(tmp_path, part):
    rewritten(tmp_path / "a", part, lambda members: [m for m in members.items() if m[0][5] != "s"])
    with pytest.raises(ValueError, match="bbox lacks start"):
        read_per_image(tmp_path / "a")


def test_what_would_unpack_to_too_much_is_refused_before_it_is_unpacked(
    tmp_path, part, monkeypatch
):
    write_per_image(tmp_path / "a", {"bbox": part}, DIGEST)
    monkeypatch.setattr(format, "MOST_UNPACKED", 1000)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="unpack to too much"):
        read_per_image(tmp_path / "a")


def test_every_cut_and_every_changed_byte_is_read_or_refused(tmp_path, part):
    write_per_image(tmp_path / "a", {"bbox": part}, DIGEST)
    whole = (tmp_path / "a").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        if rng.random() < 0.3:
            del content[int(rng.integers(len(content))) :]
        else:
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
        (tmp_path / "a").write_bytes(content)
        try:
            outputs, _ = read_per_image(tmp_path / "a")
        except ValueError:
            continue
        assert all(isinstance(output, PerImage) for output in outputs.values())
