"""Boxes in another layout are noticed, and boxes in COCO's are not."""

import numpy as np
import pytest

from moco_d2.transfer.data.box_layout import layout_problem
from moco_d2.transfer.data.mask_checks import Size

HEIGHT, WIDTH = 300, 400
SIZE = Size(HEIGHT, WIDTH)
CROPPED, CARELESS = np.array([150, 100, 0, 0]), np.array([2, 2, 3, 3])


def good(seed, number, smallest=0.02, largest=0.6):
    """x, y, width, height of boxes within the image."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(smallest, largest, (number, 2)) * (WIDTH, HEIGHT)
    corner = rng.uniform(0, 1, (number, 2)) * ((WIDTH, HEIGHT) - size)
    return np.concatenate((corner, size), axis=1)


def as_corners(boxes):
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def problem(boxes, size=SIZE):
    return layout_problem(np.asarray(boxes, dtype=float), [size] * len(boxes))


@pytest.mark.parametrize("number", [6, 24, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_corners_and_relative_boxes_are_noticed(seed, number):
    boxes = good(seed, number)
    assert problem(boxes) == ""
    assert "if they are corners x0, y0, x1, y1" in problem(as_corners(boxes))
    relative = boxes / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    assert "so they are relative to the image" in problem(relative)
    assert "so they are relative to the image" in problem(as_corners(relative))


def test_a_few_correct_boxes_among_them_excuse_nothing():
    boxes = good(0, 100)
    wrong = as_corners(boxes)
    wrong[:3] = boxes[:3]
    assert "corners" in problem(wrong)
    relative = boxes / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    relative[:3] = boxes[:3]
    assert "relative" in problem(relative)


@pytest.mark.parametrize("seed", range(5))
def test_correct_boxes_are_not_suspected(seed):
    boxes = good(seed, 50)
    assert problem([]) == ""
    assert problem(boxes, None) == ""
    assert problem(as_corners(boxes), None) == ""  # without sizes there is no evidence
    # Of pictures that were cropped after their annotation.
    assert problem(boxes + CROPPED) == ""
    assert problem(boxes - CROPPED) == ""
    # One object as large as the image, by a careless tool.
    assert problem(good(seed, 50, 0.97, 0.999) + CARELESS) == ""
    # Objects of a few pixels, and boxes without area.
    assert problem(good(seed, 50, 0.003, 0.01)) == ""
    assert problem(np.zeros((5, 4))) == ""


def test_one_image_of_another_size_does_not_matter():
    boxes = good(0, 20)
    sizes = [SIZE] * 19 + [None]
    assert layout_problem(boxes, sizes) == ""
    assert "corners" in layout_problem(as_corners(boxes), sizes)


def test_few_boxes_that_leave_their_image_are_no_evidence():
    touching = [[30, 5, WIDTH, 20], [5, 25, 20, HEIGHT]]
    assert problem([[30, 30, WIDTH, HEIGHT]]) == problem(touching) == ""
    assert "corners" in problem([*touching, [30, 30, WIDTH, 200]])
    assert "corners" in problem([[120, 30, WIDTH, HEIGHT]])
