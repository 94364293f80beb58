"""Checks that boxes are in the layout of their format: x, y, width, height in COCO, corners in VOC,
both in pixels.
"""

from collections.abc import Sequence

import numpy as np

from moco_d2.transfer.data.mask_checks import Size

_MOST = 0.95  # fraction of the boxes that counts as all, because a few may be annotated wrongly
_MANY = 0.25  # fraction of boxes outside of their images that no set of correct boxes has
_SLACK = 1.0  # pixels by which boxes may leave the image, because many tools round coordinates
_FEW, _FAR = 3, 1.25  # number of boxes that proves nothing, and sides that one of them reaches
_SLOPPY = 1.05  # sides of the image within which a box counts as inside although it is inexact


def layout_problem(boxes: np.ndarray, sizes: Sequence[Size | None]) -> str:
    """Return what shows that boxes are in another layout than x, y, width, height in pixels, or "".

    The boxes are relative if 95% of them have only values from 0 to 1, because an object of at most
    one pixel in the corner of its image is never annotated.

    The boxes are corners, x0, y0, x1, y1, if both are true, counted over images of a known size:
    * 25% of them leave their image by more than 5% of its side if read as x, y, width, height;
    * 95% of them are in their image, and have an area, if read as corners.
    Fewer than three boxes that leave their image are no evidence, unless one of them does by more
    than 25% of its side.
    Correct boxes that leave their image (of cropped pictures) do not fulfill the second condition:
    it requires that width > x and height > y, which only large boxes at the upper left have.
    Corners can pass if nearly all objects are in the upper left quarter of their image.

    Args:
        boxes: (N, 4), finite.
        sizes: The sizes of the N boxes' images.
    """
    problem = _relative_problem(boxes)
    boxes, sides = _known(boxes, sizes)
    if problem or not len(boxes):
        return problem
    starts, ends = boxes[:, :2], boxes[:, 2:]
    leaving = (starts + ends > np.maximum(sides * _SLOPPY, sides + _SLACK)).any(axis=1)
    corners = ((starts >= -_SLACK) & (ends > starts) & (ends <= sides + _SLACK)).all(axis=1)
    if leaving.mean() < _MANY or corners.mean() < _MOST:
        return ""
    if leaving.sum() < _FEW and (starts + ends <= sides * _FAR).all():
        return ""
    example = boxes[np.argmax(leaving & corners)].tolist()
    return (
        f"{leaving.sum()} of its {len(leaving)} boxes leave their image if they are x, y, width, "
        f"height, such as {example}, but {corners.sum()} are inside if they are corners x0, y0, "
        "x1, y1; write x0, y0, x1 - x0, y1 - y0"
    )


def corners_problem(boxes: np.ndarray, sizes: Sequence[Size | None]) -> str:
    """Return what shows that VOC's boxes are in another layout than corners in pixels, or "".

    They are relative as in layout_problem. They are x, y, width, height if, over images of a known
    size, 25% of them are inverted if read as corners, and 95% are in their image otherwise.

    Args:
        boxes: (N, 4).
        sizes: The sizes of the N boxes' images.
    """
    problem = _relative_problem(boxes)
    boxes, sides = _known(boxes, sizes)
    if problem or not len(boxes):
        return problem
    starts, ends = boxes[:, :2], boxes[:, 2:]
    inverted = (ends < starts).any(axis=1)
    inside = ((starts >= 0) & (ends > 0) & (starts + ends <= sides + _SLACK)).all(axis=1)
    if inverted.mean() < _MANY or inside.mean() < _MOST:
        return ""
    return (
        f"in {inverted.sum()} of its {len(boxes)} boxes, xmax is less than xmin or ymax than ymin, "
        f"such as {boxes[np.argmax(inverted)].tolist()}, but {inside.sum()} are inside their image "
        "if they are x, y, width, height; write the corners"
    )


def outside_problem(boxes: np.ndarray, sizes: Sequence[Size | None]) -> str:
    """Return what shows that corners, (N, 4), belong to images of another size, or "": 25% of
    them, and three, leave their image by more than 5% of its side.
    """
    boxes, sides = _known(boxes, sizes)
    leaving = (boxes[:, 2:] > np.maximum(sides * _SLOPPY, sides + _SLACK)).any(axis=1)
    if leaving.sum() < _FEW or leaving.mean() < _MANY:
        return ""
    first = int(np.argmax(leaving))
    return (
        f"{leaving.sum()} of its {len(boxes)} boxes leave their image, such as "
        f"{boxes[first].tolist()} in {sides[first, 0]:g} x {sides[first, 1]:g} pixels; correct "
        "them, or use the images that were annotated"
    )


def _relative_problem(boxes: np.ndarray) -> str:
    if not len(boxes):
        return ""
    small = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if small.mean() >= _MOST:
        return (
            f"{small.sum()} of its {len(boxes)} boxes have only values from 0 to 1, such as "
            f"{boxes[np.argmax(small)].tolist()}, so they are relative to the image; multiply them "
            "by its width and height"
        )
    return ""


def _known(boxes: np.ndarray, sizes: Sequence[Size | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes in images of a known size, (K, 4), and the (width, height) of these images,
    (K, 2).
    """
    known = np.array([size is not None for size in sizes], dtype=bool)
    sides = [(size.width, size.height) for size in sizes if size is not None]
    return boxes.reshape(-1, 4)[known], np.array(sides, dtype=np.float64).reshape(-1, 2)
