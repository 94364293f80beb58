"""Checks of a dataset's objects that are sound one by one: boxes that no detector can learn or
find, objects that are listed twice, and masks that are elsewhere than their boxes.

VOC's annotations are checked where they are read.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as pycocotools_mask

from moco_d2.transfer.preflight.findings import Finding, Refusal, unless_few

# Detectron2 drops boxes of at most this side in pixels after it has clipped them to the image.
_SIDE = 1e-5
_SAMPLE = 2000  # masks that are compared with their boxes
_APART = 0.5  # IoU below which a box and the box around its mask are two different objects
_MANY = 0.5  # share of different ones that no set of correct annotations has
_LEAST = 3  # number of different ones that is evidence
_MODES = (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)

_Object = tuple[dict[str, Any], dict[str, Any]]  # dataset dict and annotation


def check_objects(
    key: str, names: tuple[str, ...], name: str, dicts: list[dict[str, Any]]
) -> Iterator[Finding]:
    """Yield a finding for boxes without area inside their image, for objects that are listed twice
    and for masks that are elsewhere than their boxes. Crowds are passed over.

    * Boxes without area: a Refusal if all boxes are, a Finding above 1%; up to it a warning.
    * The same box of the same class twice in an image: a Finding above 1%; up to it a warning.
    * Masks: a Finding if the bounds of at least half of the masks, and of three, have an IoU below
      0.5 with the box. In COCO, the box is the bounds of the mask, so that the IoU is about 1.

    Args:
        key: "DATASETS.TRAIN" or "DATASETS.TEST".
        names: The value of the key.
        name: The dataset.
        dicts: Its dicts, which annotation_checks has checked.
    """
    if MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc":
        return
    objects = [
        (d, a)
        for d in dicts
        for a in d.get("annotations", ())
        if a.get("iscrowd", 0) == 0 and a["bbox_mode"] in _MODES
    ]
    if not objects:
        return
    boxes = _corners(objects)
    yield from _boxes_without_area(key, names, name, objects, boxes)
    yield from _objects_twice(key, names, name, objects)
    yield from _masks_elsewhere(key, names, name, objects, boxes)


def _corners(objects: list[_Object]) -> np.ndarray:
    """Return x0, y0, x1, y1, (N, 4)."""
    boxes = np.array([a["bbox"] for _, a in objects], dtype=np.float64)
    sizes = np.array([a["bbox_mode"] == BoxMode.XYWH_ABS for _, a in objects])
    boxes[sizes, 2:] += boxes[sizes, :2]
    return boxes


def _boxes_without_area(
    key: str, names: tuple[str, ...], name: str, objects: list[_Object], boxes: np.ndarray
) -> Iterator[Finding]:
    sides = np.array([(d.get("width", np.inf), d.get("height", np.inf)) for d, _ in objects])
    inside = np.minimum(boxes[:, 2:], sides) - np.maximum(boxes[:, :2], 0)
    without = (inside <= _SIDE).any(axis=1)
    if not without.any():
        return
    sample, annotation = objects[int(np.argmax(without))]
    effect = "training drops" if key == "DATASETS.TRAIN" else "no detector can find"
    message = (
        f"dataset {name!r}: {without.sum()} of its {len(boxes)} boxes have no area inside their "
        f"image, first {list(annotation['bbox'])} in {sample['file_name']}, so {effect} them; "
        "correct or remove them"
    )
    if without.all():
        yield Refusal(key, str(names), message)
    else:
        yield from unless_few(key, str(names), message, without.mean())


def _objects_twice(
    key: str, names: tuple[str, ...], name: str, objects: list[_Object]
) -> Iterator[Finding]:
    seen: set[tuple[Any, ...]] = set()
    twice = []
    for sample, annotation in objects:
        identity = (id(sample), annotation["category_id"], *annotation["bbox"])
        if identity in seen:
            twice.append((sample, annotation))
        seen.add(identity)
    if twice:
        sample, annotation = twice[0]
        message = (
            f"dataset {name!r}: {len(twice)} of its {len(objects)} objects repeat the box and the "
            f"class of another object of their image, first {list(annotation['bbox'])} in "
            f"{sample['file_name']}; remove them"
        )
        yield from unless_few(key, str(names), message, len(twice) / len(objects))


def _masks_elsewhere(
    key: str, names: tuple[str, ...], name: str, objects: list[_Object], boxes: np.ndarray
) -> Iterator[Finding]:
    masked = [i for i, (_, a) in enumerate(objects) if a.get("segmentation")]
    masked = masked[:: max(1, len(masked) // _SAMPLE)]
    if not masked:
        return
    bounds = np.array([_bounds(objects[i][1]["segmentation"]) for i in masked])
    apart = _iou(boxes[masked], bounds) < _APART
    if apart.mean() < _MANY or apart.sum() < _LEAST:
        return
    first = int(np.argmax(apart))
    sample, annotation = objects[masked[first]]
    x0, y0, x1, y1 = bounds[first].round(2).tolist()
    around = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
    yield Finding(
        key,
        str(names),
        f"dataset {name!r}: {apart.sum()} of {len(masked)} boxes are elsewhere than their masks, "
        f"first {list(annotation['bbox'])} in {sample['file_name']}, whose mask has the bounds "
        f"{around} (x, y, width, height); write both in pixels, the box as x, y, width, height "
        "from the upper left corner, and run-length codes column by column",
    )


def _bounds(mask: Any) -> np.ndarray:
    """Return x0, y0, x1, y1 of a mask, (4,)."""
    if isinstance(mask, dict):
        code = mask
        if not isinstance(mask["counts"], str | bytes):
            code = pycocotools_mask.frPyObjects(mask, *mask["size"])
        x, y, width, height = pycocotools_mask.toBbox(code)
        return np.array([x, y, x + width, y + height])
    corners = np.concatenate([np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in mask])
    return np.concatenate((corners.min(axis=0), corners.max(axis=0)))


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of N pairs of boxes, (N,); 0 for two without area."""
    common = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    intersection = common.clip(min=0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union = np.maximum(areas[0] + areas[1] - intersection, np.finfo(np.float64).tiny)
    return intersection / union
