"""Checks that the boxes of a COCO file are in its layout: x, y, width, height in pixels."""

from collections.abc import Sequence

import numpy as np

from moco_d2.transfer.data.mask_checks import Size

_MOST = 0.95  # fraction of the boxes that counts as all, because a few may be annotated wrongly
_MANY = 0.25  # fraction of boxes outside of their images that no set of correct boxes has
_SLACK = 1.0  # pixels by which boxes may leave the image, because many tools round coordinates
_SLOPPY = 1.05  # sides of the image within which a box counts as inside although it is inexact


def layout_problem(boxes: np.ndarray, sizes: Sequence[Size | None]) -> str:
    """Return what shows that boxes are in another layout than x, y, width, height in pixels, or "".

    The boxes are relative if 95% of them have only values from 0 to 1, because an object of at most
    one pixel in the corner of its image is never annotated.

    The boxes are corners, x0, y0, x1, y1, if both are true, counted over images of a known size:
    * 25% of them leave their image by more than 5% of its side if read as x, y, width, height;
    * 95% of them are in their image, and have an area, if read as corners.
    Correct boxes that leave their image (of cropped pictures) do not fulfill the second condition:
    it requires that width > x and height > y, which only large boxes at the upper left have.
    Corners can pass if nearly all objects are in the upper left quarter of their image.

    Args:
        boxes: (N, 4), finite.
        sizes: The sizes of the N boxes' images.
    """
    if not len(boxes):
        return ""
    small = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if small.mean() >= _MOST:
        return (
            f"{small.sum()} of its {len(boxes)} boxes have only values from 0 to 1, such as "
            f"{boxes[np.argmax(small)].tolist()}, so they are relative to the image; multiply them "
            "by its width and height"
        )
    known = np.array([size is not None for size in sizes])
    if not known.any():
        return ""
    sides = np.array([(size.width, size.height) for size in sizes if size is not None])
    starts, ends = boxes[known, :2], boxes[known, 2:]
    leaving = (starts + ends > np.maximum(sides * _SLOPPY, sides + _SLACK)).any(axis=1)
    corners = ((starts >= -_SLACK) & (ends > starts) & (ends <= sides + _SLACK)).all(axis=1)
    if leaving.mean() < _MANY or corners.mean() < _MOST:
        return ""
    example = boxes[known][np.argmax(leaving & corners)].tolist()
    return (
        f"{leaving.sum()} of its {len(leaving)} boxes leave their image if they are x, y, width, "
        f"height, such as {example}, but {corners.sum()} are inside if they are corners x0, y0, "
        "x1, y1; write x0, y0, x1 - x0, y1 - y0"
    )
