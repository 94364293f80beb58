"""Masks that decode to gigabytes, or that pycocotools reads and writes memory with."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from lvis import LVIS
from pycocotools import mask as pycocotools_mask
from pycocotools.coco import COCO
from support.transfer.coco_cases import make_case, write_lvis

from moco_d2.transfer.data.mask_checks import (
    MAX_OUTLINE,
    Polygon,
    Size,
    guarded_reading,
    polygon_problems,
    rle_problem,
    size_of,
)

SIZE = Size(30, 40)
SQUARE = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]


def masks():
    rng = np.random.default_rng(0)
    yield np.zeros(SIZE, np.uint8)
    yield np.ones(SIZE, np.uint8)
    for share in (0.001, 0.1, 0.5):
        yield (rng.random(SIZE) < share).astype(np.uint8)
    yield np.pad(np.ones((20, 20), np.uint8), ((3, 7), (12, 8)))


@pytest.mark.parametrize("mask", masks())
def test_what_pycocotools_encodes_is_sound(mask):
    rle = pycocotools_mask.encode(np.asfortranarray(mask))
    assert rle_problem(rle, SIZE) == ""
    assert rle_problem(rle | {"counts": rle["counts"].decode()}, SIZE) == ""
    assert rle_problem(rle, None) == ""


def test_a_large_mask_is_sound():
    mask = np.zeros((9000, 9000), np.uint8, order="F")
    mask[8999, 8999] = mask[4000, 4000] = 1
    assert rle_problem(pycocotools_mask.encode(mask), Size(9000, 9000)) == ""


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_decoded_as_pycocotools_decodes_them(seed):
    """Of any string that it accepts, and none that it does not."""
    rng = np.random.default_rng(seed)
    mask = (rng.random(SIZE) < 0.3).astype(np.uint8)
    code = bytearray(pycocotools_mask.encode(np.asfortranarray(mask))["counts"])
    for _ in range(rng.integers(1, 4)):
        code[rng.integers(len(code))] = rng.integers(40, 120)
    rle = {"size": list(SIZE), "counts": bytes(code)}
    if rle_problem(rle, SIZE) == "":
        found = pycocotools_mask.decode(rle)
        assert set(np.unique(found)) <= {0, 1}


RUNS_OF_ALL = [600, 600]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [60_000, 60_000]}, "a mask of 60000 x 60000 pixels .* image has 30 x 40"),
        ({"size": [40, 30]}, "a mask of 40 x 30 pixels"),
        ({"size": [30]}, "which is not a height and a width"),
        ({"size": None}, "which is not a height and a width"),
        ({"size": [-30, -40]}, "which is not a height and a width"),
        ({"size": ["30", "40"]}, "which is not a height and a width"),
        ({"counts": [600, 601]}, "counts cover 1201 pixels, but its size has 1200"),
        ({"counts": [600]}, "counts cover 600 pixels"),
        ({"counts": [-600, 1800]}, "not runs within"),
        ({"counts": [0, 4_294_967_295] * 3}, "not runs within"),
        ({"counts": [10**30, 5]}, "counts are damaged"),
        ({"counts": [600.5, 599.5]}, "counts are damaged"),
        ({"counts": []}, "counts are damaged"),
        ({"counts": [[600], [600]]}, "counts are damaged"),
        ({"counts": None}, "counts are damaged"),
        ({"counts": 7}, "counts are damaged"),
        ({"counts": {"a": 1}}, "counts are damaged"),
        ({"counts": ""}, "counts are damaged"),
        ({"counts": "hb0"}, "counts cover"),
        ({"counts": "P"}, "counts are damaged"),  # breaks off
        ({"counts": b"o" * 5000}, "counts are damaged"),
        ({"counts": "\xff\xfe"}, "counts are damaged"),
        ({"counts": b"\x00\x01"}, "counts are damaged"),
        ({"counts": "ooooooooo0"}, "counts are damaged"),  # more bits than any count
    ],
)
def test_a_code_that_is_none_is_refused(change, message):
    sound = {"size": [30, 40], "counts": RUNS_OF_ALL}
    assert rle_problem(sound, SIZE) == ""
    problem = rle_problem(sound | change, SIZE)
    assert re.search(message, problem), problem
    assert len(problem) < 200 and "\n" not in problem


def test_without_a_declared_size_the_pixels_are_bounded():
    rle = {"size": [60_000, 60_000], "counts": [3_600_000_000]}
    assert "the limit is 100,000,000" in rle_problem(rle, None)


def test_pycocotools_itself_would_take_the_memory():
    """What all this is for: 3.6 GB of 30 bytes."""
    code = (
        "import resource, pycocotools.mask as m; "
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); "
        "m.decode({'size': [60000, 60000], 'counts': b'2'})"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert ended.returncode != 0


def test_damaged_runs_never_reach_pycocotools():
    pack = pycocotools_mask.frPyObjects
    damaged = {"size": [30, 40], "counts": [0, 4_294_967_295] * 100_000}
    with guarded_reading():
        assert pycocotools_mask.frPyObjects(damaged, 30, 40) is damaged
        packed = pycocotools_mask.frPyObjects({"size": [30, 40], "counts": RUNS_OF_ALL}, 30, 40)
    assert isinstance(packed["counts"], bytes)
    assert pycocotools_mask.frPyObjects is pack


def problems(*corners, image=SIZE):
    return list(polygon_problems(Polygon(i, c, image) for i, c in enumerate(corners)))


def test_polygons_somewhat_outside_are_sound():
    assert problems(SQUARE, [-30, -20, 90, 0, 100, 80], [0, 0, 0, 0, 0, 0]) == []
    assert problems(np.array(SQUARE), SQUARE) == []
    assert problems(SQUARE, image=None) == []


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ([1, 1, 1e30, 1, 9, 9], "with the coordinate 1e+30"),
        ([1, 1, 10**400, 1, 9, 9], "with the coordinate more than 1e308"),
        ([1, 1, 401, 1, 9, 9], "with the coordinate 401, but the limit is 400"),
        ([1, 1, float("nan"), 1, 9, 9], "is not finite (nan)"),
        ([1, 1, float("-inf"), 1, 9, 9], "is not finite (-inf)"),
        ([1, 1, "9", 1, 9, 9], "with '9', which is not a number"),
        ([1, 1, None, 1, 9, 9], "with None, which is not a number"),
        ([1, 1, [9], 1, 9, 9], "with [9], which is not a number"),
        ([1, 1, 9, 1, 9], "of 5 numbers, which are not x, y pairs"),
        ([], "of 0 numbers"),
        ("123456", "the polygon '123456'"),
        (7, "the polygon 7"),
        ([0, 0, 400, 300] * 20_000, "with an outline of 1"),
    ],
)
def test_a_polygon_that_is_none_is_refused_and_the_others_are_not(corners, message):
    found = problems(SQUARE, corners, SQUARE)
    assert [owner for owner, _ in found] == [1]
    assert message in found[0][1] and "\n" not in found[0][1] and len(found[0][1]) < 200


def test_the_outline_is_that_of_the_closed_polygon():
    far = [0.0, 0.0, 400.0, 0.0]
    edges = MAX_OUTLINE // 400 // 2
    assert problems(far * edges) == []
    assert len(problems(far * edges + [0.0, 0.0, 1.0, 0.0])) == 1
    assert problems(far * edges, far * edges) == []  # each for itself


def test_short_polygons_which_detectron2_leaves_out_are_looked_at(tmp_path):
    file = tmp_path / "a.json"
    content = {"images": [], "categories": [], "annotations": []}
    for corners in ([1, 2], [1, 2, 3], [], [1, 2, 3, 4, 5, 6, 7]):
        content["annotations"] = [
            {"id": 5, "image_id": 1, "category_id": 1, "segmentation": [corners]}
        ]
        file.write_text(json.dumps(content))
        with guarded_reading():
            COCO(str(file))
    content["annotations"][0]["segmentation"] = [[1e30, 2, 3]]
    file.write_text(json.dumps(content))
    with guarded_reading(), pytest.raises(ValueError, match=r"^that annotation 5 has a polygon"):
        COCO(str(file))
    COCO(str(file))


@pytest.mark.parametrize(
    "declared",
    [
        {"width": 10**9, "height": 10**9},
        {"width": 10_001, "height": 10_000},
        {"width": None, "height": 5},
        {"width": 5},
        {"width": 0, "height": 5},
        {"width": -5, "height": -5},
        {"width": "5", "height": 5},
        {"width": float("nan"), "height": 5},
        {"width": True, "height": True},
    ],
)
def test_a_declared_size_that_is_none_is_refused(declared):
    with pytest.raises(ValueError, match=r"^has height .* width "):
        size_of(declared)


def test_declared_sizes():
    assert size_of({"width": 10_000, "height": 10_000}) == (10_000, 10_000)
    assert size_of({}) is None


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("annotations", {"area": float("nan")}, "entry 1 of 'annotations' has the area nan"),
        ("annotations", {"image_id": "2"}, "entry 1 of 'annotations' has the image_id '2'"),
        ("images", {"id": True}, "entry 1 of 'images' has the id True"),
        ("images", {"id": 0}, "'images' has the id 0 twice"),
        ("annotations", {"id": 0.5}, ""),
        ("images", {"file_name": None}, ""),  # LVIS v1 has addresses instead of names
    ],
)
def test_lvis_files_are_checked_while_they_are_read(tmp_path, part, change, sentence):
    truth, _ = make_case(0)
    file = tmp_path / "lvis.json"
    write_lvis(file, truth, np.random.default_rng(0))
    content = json.loads(file.read_text())
    content[part][1] |= change
    file.write_text(json.dumps(content))
    before = LVIS._create_index
    with guarded_reading(lvis=True):
        if sentence:
            with pytest.raises(ValueError, match=sentence):
                LVIS(str(file))
        else:
            LVIS(str(file))
    assert LVIS._create_index is before
