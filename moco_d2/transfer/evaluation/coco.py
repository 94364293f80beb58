"""COCO evaluation that completes the annotations, decomposes the errors of the boxes, and compares
the two AP50s.
"""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from pycocotools import mask as pycocotools_mask
from pycocotools.coco import COCO

from moco_d2.errors import UserError
from moco_d2.plugin.evaluators import evaluation_with_matches, fast_lvis
from moco_d2.records.image_matches import OUTPUTS, THRESHOLDS, PerImage, per_image
from moco_d2.transfer.data.coco_normalization import (
    byte_order_marks_read,
    drop_empty_masks,
    normalize_numbers,
)
from moco_d2.transfer.evaluation.tide import Detections, Objects, decompose

#: The largest difference of the two AP50s in percentage points: the last digit that tables show.
#: Both are means of the same precisions, so rounding accounts for less than 1e-9. The rest is for
#: an overlap of exactly 0.5, on whose side of the threshold each implementation's rounding decides.
TOLERANCE = 0.01
# COCO's AP counts so many detections of a class in an image, those with the highest scores.
_MAX_DETECTIONS = 100


class COCOBoxEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator, which can also decompose the errors of the boxes.

    Every evaluation computes AP50 of the boxes a second time, with tide.decompose, which has no
    code in common with pycocotools.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        with byte_order_marks_read():
            super().__init__(*args, **kwargs)
        complete_annotations(self._coco_api)

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        # At this point, predictions of all processes have the category ids of the annotation file.
        self._gathered = [item for image in predictions for item in image["instances"]]
        self._errors: dict[str, float] | None = None
        if img_ids is None and self._gathered and "bbox" in self._results:
            self._compare(self._results["bbox"]["AP50"])

    def _compare(self, ap50: float) -> None:
        # Without objects, both have no AP50.
        other = self.box_errors()["AP50"] if (~self._objects().ignored).any() else math.nan
        same = abs(ap50 - other) <= TOLERANCE or (math.isnan(ap50) and math.isnan(other))
        if not same:
            raise UserError(
                f"the evaluation on {self._metadata.name!r} has no result: AP50 of the same boxes "
                f"is {ap50:.4f} by COCO's evaluation and {other:.4f} by the decomposition of "
                f"errors; look for an unusual entry in {self._metadata.json_file}, and report it"
            )

    def box_errors(self) -> dict[str, float]:
        """Return tide.decompose of the evaluated detections, in the main process.

        Raises:
            ValueError: As in tide.decompose.
        """
        if self._errors is None:
            self._errors = decompose(_detections(self._gathered, self._classes), self._objects())
        return self._errors

    def per_image(self) -> tuple[dict[str, PerImage], list[str]]:
        """Return what the AP of boxes and masks needs of each image, and the ids of the images,
        after the evaluation in the main process.
        """
        ids = sorted(self._coco_api.getImgIds())
        kinds = [kind for kind in OUTPUTS if kind in self._results]
        return {kind: self._matches(kind, ids) for kind in kinds}, list(map(str, ids))

    def _matches(self, kind: str, ids: list[int]) -> PerImage:
        items = [dict(item) for item in self._gathered]  # loadRes adds to them
        if kind == "segm":  # as Detectron2 does
            for item in items:
                item.pop("bbox")
        with contextlib.redirect_stdout(io.StringIO()):
            found = self._coco_api.loadRes(items)
            return matches(self._coco_api, found, kind, ids)

    @property
    def _classes(self) -> np.ndarray:
        return np.array(sorted(self._coco_api.cats), dtype=np.int64)

    def _objects(self) -> Objects:
        images = set(self._coco_api.imgs)
        # COCO's evaluation looks only at objects of the images that the file lists.
        items = [a for a in self._coco_api.dataset["annotations"] if a["image_id"] in images]
        crowd = np.array([bool(item["iscrowd"]) for item in items], dtype=bool)
        return Objects(
            np.array([item["image_id"] for item in items], dtype=np.int64),
            _class_numbers(items, self._classes),
            _corners(items),
            crowd,
            crowd,
        )


def matches(truth: COCO, found: COCO, kind: str, ids: list[int]) -> PerImage:
    """Return what an AP over objects of all sizes needs of each image.

    Args:
        truth, found: The annotations and the detections.
        kind: "bbox" or "segm".
        ids: The ids of the images, sorted.
    """
    evaluation = evaluation_with_matches(truth, found, kind)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [_MAX_DETECTIONS]
    evaluation.evaluate()
    image_at = {image: i for i, image in enumerate(ids)}
    class_at = {label: i for i, label in enumerate(sorted(truth.getCatIds()))}
    counts = np.zeros((len(class_at), len(ids)), dtype=np.int64)
    places: list[tuple[int, int, int]] = []  # class, image, number of detections
    scores: list[float] = []
    true: list[list[bool]] = [[] for _ in range(THRESHOLDS)]
    ignored: list[list[bool]] = [[] for _ in range(THRESHOLDS)]
    for entry in filter(None, evaluation.evalImgs):
        place = class_at[int(entry["category_id"])], image_at[int(entry["image_id"])]
        counts[place] = len(entry["gtIgnore"]) - int(sum(entry["gtIgnore"]))
        places.append((*place, len(entry["dtScores"])))
        scores.extend(entry["dtScores"])
        for t in range(THRESHOLDS):
            ignored[t].extend(entry["dtIgnore"][t])
            true[t].extend(entry["dtMatches"][t])
    label, image, number = np.array(places, dtype=np.int64).reshape(-1, 3).T
    label, image, score = np.repeat(label, number), np.repeat(image, number), np.array(scores)
    excused = np.array(ignored, dtype=bool)
    right = (np.array(true) > 0) & ~excused
    order = np.lexsort((image, -score, label))  # stable: COCO's order of equal scores
    detections = (label[order], image[order], score[order], right[:, order], excused[:, order])
    return per_image(len(ids), "coco", detections, counts)


def complete_annotations(api: COCO) -> None:
    """Number the annotations from 1, and add the fields that pycocotools needs but some files lack.

    pycocotools takes the id 0 for "not matched", so it counts this object and its detection as
    errors. With negative, fractional and text ids, the AP is 0 or the evaluation fails.

    Args:
        api: The annotations. An object without "iscrowd" is no crowd. Its "area" is that of the
            mask or, without it, of the box. "num_keypoints" is the number of labeled keypoints.
    """
    annotations = api.dataset.get("annotations")
    if annotations is None:
        return
    normalize_numbers(api.dataset)
    drop_empty_masks(api.dataset)
    for number, item in enumerate(annotations, start=1):
        item["id"] = number
        item["iscrowd"] = int(item.get("iscrowd", 0))  # true and false become 1 and 0
        if "area" not in item:
            item["area"] = _area(item, api.annToRLE)
        if item.get("keypoints"):
            item.setdefault("num_keypoints", sum(v > 0 for v in item["keypoints"][2::3]))
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()


def _area(item: dict[str, Any], as_rle: Callable[[dict[str, Any]], Any]) -> float:
    if item.get("segmentation"):
        return float(pycocotools_mask.area(as_rle(item)))
    return float(item["bbox"][2] * item["bbox"][3])


class FastLVISEvaluator(LVISEvaluator):
    """Detectron2's LVISEvaluator with a faster evaluation, if its package is installed."""

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        with fast_lvis():
            super()._eval_predictions(predictions)


def lvis_evaluator(dataset_name: str, folder: str) -> LVISEvaluator:
    """Return Detectron2's LVISEvaluator with annotations that are numbered from 1, because lvis
    takes the id 0 for "not matched", too. A missing "area" is added.
    """
    evaluator = FastLVISEvaluator(dataset_name, output_dir=folder)
    api = evaluator._lvis_api
    normalize_numbers(api.dataset)
    for number, item in enumerate(api.dataset.get("annotations", ()), start=1):
        item["id"] = number
        if "area" not in item:
            item["area"] = _area(item, api.ann_to_rle)
    if "annotations" in api.dataset:
        api._create_index()
    return evaluator


def _detections(items: list[dict[str, Any]], category_ids: np.ndarray) -> Detections:
    """Return the detections that COCO's AP counts, in its order of equal scores."""
    images = np.array([item["image_id"] for item in items], dtype=np.int64)
    classes = _class_numbers(items, category_ids)
    scores = np.array([item["score"] for item in items], dtype=np.float64)
    order = np.lexsort((-scores, classes, images))  # stable
    group = np.stack((images, classes))[:, order]
    starts = np.flatnonzero(np.append(True, (group[:, 1:] != group[:, :-1]).any(axis=0)))
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    kept = order[rank < _MAX_DETECTIONS]
    return Detections(images[kept], classes[kept], scores[kept], _corners(items)[kept])


def _class_numbers(items: list[dict[str, Any]], category_ids: np.ndarray) -> np.ndarray:
    """Return the positions of the items' categories in the sorted ids, which may be very large."""
    ids = np.array([item["category_id"] for item in items], dtype=np.int64)
    return np.searchsorted(category_ids, ids)


def _corners(items: list[dict[str, Any]]) -> np.ndarray:
    """Convert COCO's x, y, width, height to x0, y0, x1, y1, (N, 4)."""
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
