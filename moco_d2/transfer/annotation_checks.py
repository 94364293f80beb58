"""Whether a detector can be trained on the boxes of a dataset, and on those that were meant."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from moco_d2.errors import UserError

_SIDES = 4


def check_annotations(name: str, dicts: Sequence[dict[str, Any]]) -> None:
    """Refuse a dataset with nothing in it, or with a box that is none. Boxes of no area, or beside
    their image, are left to Detectron2, which passes them over.

    Args:
        name: of the dataset.
        dicts: Detectron2's; those without "annotations" (semantic segmentation) are let be.

    Raises:
        UserError: names the image.
    """
    if not dicts:
        raise UserError(f"dataset {name!r} has no images: see its annotations or its split")
    annotated = [d for d in dicts if "annotations" in d]
    if not annotated:
        return
    objects = [(d, a) for d in annotated for a in d["annotations"]]
    if not any(a.get("iscrowd", 0) == 0 for _, a in objects):
        raise UserError(f"dataset {name!r} has no annotated object but crowds: see its annotations")
    for sample, problem in _problems(objects):
        raise UserError(
            f"dataset {name!r}: an annotation of {sample['file_name']} {problem}; mend it or "
            "remove it"
        )


def _problems(objects: list[tuple[dict, dict]]) -> Iterator[tuple[dict, str]]:
    """Samples and what is wrong with an annotation of theirs; of damaged ones, each."""
    try:
        boxes = np.array([a["bbox"] for _, a in objects])  # millions: all at once
        sound = boxes.dtype.kind in "iuf" and boxes.shape[1:] == (_SIDES,)
    except (KeyError, ValueError):
        sound = False
    if not sound:
        for sample, annotation in objects:
            problem = _malformed(annotation.get("bbox"))
            if problem:
                yield sample, problem
        return
    absolute = np.array([a["bbox_mode"] == BoxMode.XYXY_ABS for _, a in objects])
    sizes = np.where(absolute[:, None], boxes[:, 2:] - boxes[:, :2], boxes[:, 2:])
    finite = np.isfinite(boxes).all(1)
    for i in np.flatnonzero(~finite):
        yield objects[i][0], f"has a box that is not finite, {list(map(float, boxes[i]))}"
    for i in np.flatnonzero(finite & (sizes < 0).any(1)):
        yield objects[i][0], f"has a box that is turned around, {list(map(float, boxes[i]))}"


def _malformed(box: Any) -> str:
    if box is None:
        return "has no bbox"
    numbers = isinstance(box, Sequence | np.ndarray) and not isinstance(box, str)
    if not numbers or not all(isinstance(v, int | float | np.number) for v in box):
        return f"has the bbox {box!r:.60}, which is no list of numbers"
    return "" if len(box) == _SIDES else f"has a bbox of {len(box)} numbers, not {_SIDES}"
