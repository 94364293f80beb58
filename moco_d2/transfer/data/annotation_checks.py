"""Checks that a detector can be trained on the boxes, masks and keypoints of a dataset."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from moco_d2.errors import UserError
from moco_d2.transfer.data.box_layout import layout_problem
from moco_d2.transfer.data.mask_checks import (
    Polygon,
    Size,
    polygon_problems,
    rle_problem,
    size_of,
)

_SIDES = 4
_MAX_COORDINATE = 1e9  # pixels; Detectron2 cannot compute with larger ones


def check_annotations(name: str, dicts: Sequence[dict[str, Any]]) -> None:
    """Refuse an empty dataset, images above the size limit, damaged boxes, masks or keypoints, and
    boxes in another layout (see layout_problem).
    Boxes without area or outside their image are accepted, because Detectron2 skips them.

    Args:
        name: Name of the dataset.
        dicts: Detectron2's dataset dicts. Those without "annotations" (semantic segmentation) have
            only their image size checked.

    Raises:
        UserError: If something is refused. The message names the image.
    """
    if not dicts:
        raise UserError(f"dataset {name!r} has no images: check its annotations or its split")
    sizes = _sizes(name, dicts)
    annotated = [(d, size) for d, size in zip(dicts, sizes, strict=True) if "annotations" in d]
    if not annotated:
        return
    objects = [(d, a) for d, _ in annotated for a in d["annotations"]]
    if not objects:
        raise UserError(f"dataset {name!r} has images but no annotated object: add annotations")
    if all(a.get("iscrowd", 0) == 1 for _, a in objects):
        raise UserError(
            f"dataset {name!r} has no annotated object except crowds: check its annotations"
        )
    masks = ((d, a, size) for d, size in annotated for a in d["annotations"])
    problems = itertools.chain(
        _crowd_problems(objects),
        _problems(objects),
        _mask_problems(masks),
        _keypoint_problems(objects),
    )
    for sample, problem in problems:
        raise UserError(
            f"dataset {name!r}: an annotation of {sample['file_name']} {problem}; correct it or "
            "remove it"
        )
    boxes = [
        (a["bbox"], size)
        for d, size in annotated
        for a in d["annotations"]
        if a["bbox_mode"] == BoxMode.XYWH_ABS
    ]
    problem = layout_problem(
        np.array([box for box, _ in boxes], dtype=np.float64), [size for _, size in boxes]
    )
    if problem:
        raise UserError(f"dataset {name!r}: {problem}")


def _sizes(name: str, dicts: Sequence[dict[str, Any]]) -> list[Size | None]:
    sizes = []
    for sample in dicts:
        try:
            sizes.append(size_of(sample))
        except ValueError as error:
            raise UserError(
                f"dataset {name!r}: {sample.get('file_name')} {error}; correct its annotations or "
                "remove it"
            ) from error
    return sizes


def _crowd_problems(
    objects: list[tuple[dict[str, Any], dict[str, Any]]],
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the samples with another iscrowd than 0 or 1: Detectron2 drops such an object."""
    for sample, annotation in objects:
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            yield sample, f"has the iscrowd {crowd!r:.40}, which is not 0 or 1"


def _mask_problems(
    objects: Iterator[tuple[dict[str, Any], dict[str, Any], Size | None]],
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the samples with a damaged mask, and the problem."""
    rle_problems: list[tuple[dict[str, Any], str]] = []

    def polygons() -> Iterator[Polygon]:
        for sample, annotation, size in objects:
            mask = annotation.get("segmentation")
            if isinstance(mask, list):
                yield from (Polygon(sample, corners, size) for corners in mask)
            elif isinstance(mask, dict):
                problem = rle_problem(mask, size)
                if problem:
                    rle_problems.append((sample, problem))

    yield from polygon_problems(polygons())
    yield from rle_problems


def _keypoint_problems(
    objects: list[tuple[dict[str, Any], dict[str, Any]]],
) -> Iterator[tuple[dict[str, Any], str]]:
    for sample, annotation in objects:
        points = annotation.get("keypoints")
        if points is None:
            continue
        try:
            numbers = np.array(points, dtype=np.float64)
            valid = numbers.size % 3 == 0 and bool((np.abs(numbers) < _MAX_COORDINATE).all())
        except (TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            yield sample, "has keypoints that are not triples of finite x, y and visibility"


def _problems(
    objects: list[tuple[dict[str, Any], dict[str, Any]]],
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the samples with a damaged box, and the problem."""
    try:
        # One array for all boxes, because a dataset can have millions.
        boxes = np.array([a["bbox"] for _, a in objects])
        regular = boxes.dtype.kind in "iuf" and boxes.shape[1:] == (_SIDES,)
    except (KeyError, ValueError):
        regular = False
    if not regular:
        for sample, annotation in objects:
            problem = _malformed(annotation.get("bbox"))
            if problem:
                yield sample, problem
        return
    absolute = np.array([a["bbox_mode"] == BoxMode.XYXY_ABS for _, a in objects])
    sizes = np.where(absolute[:, None], boxes[:, 2:] - boxes[:, :2], boxes[:, 2:])
    finite = (np.abs(boxes) < _MAX_COORDINATE).all(1)  # False for NaN
    for i in np.flatnonzero(~finite):
        yield objects[i][0], f"has a box that is not finite, {list(map(float, boxes[i]))}"
    for i in np.flatnonzero(finite & (sizes < 0).any(1)):
        yield objects[i][0], f"has an inverted box, {list(map(float, boxes[i]))}"


def _malformed(box: Any) -> str:
    if box is None:
        return "has no bbox"
    numbers = isinstance(box, Sequence | np.ndarray) and not isinstance(box, str)
    if not numbers or not all(isinstance(v, int | float | np.number) for v in box):
        return f"has the bbox {box!r:.60}, which is not a list of numbers"
    if len(box) != _SIDES:
        return f"has a bbox of {len(box)} numbers, not {_SIDES}"
    # JSON integers of any length end here, because NumPy has no number type for them.
    return "" if all(abs(v) < _MAX_COORDINATE for v in box) else "has a box that is not finite"
