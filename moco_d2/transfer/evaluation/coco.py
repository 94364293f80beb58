"""COCO evaluation that can also decompose the errors of the boxes."""

from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator

from moco_d2.transfer.evaluation.tide import Detections, Objects, decompose


class COCOBoxEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator, which can also decompose the errors of the boxes."""

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        # At this point, predictions of all processes have the category ids of the annotation file.
        self._gathered = [item for image in predictions for item in image["instances"]]

    def box_errors(self) -> dict[str, float]:
        """Return tide.decompose of the evaluated detections, in the main process.

        Raises:
            ValueError: As in tide.decompose.
        """
        detections = self._gathered
        truth = self._coco_api.dataset["annotations"]
        crowd = np.array([bool(item.get("iscrowd", 0)) for item in truth], dtype=bool)
        return decompose(
            Detections(
                np.array([item["image_id"] for item in detections], dtype=np.int64),
                np.array([item["category_id"] for item in detections], dtype=np.int64),
                np.array([item["score"] for item in detections], dtype=np.float64),
                _corners(detections),
            ),
            Objects(
                np.array([item["image_id"] for item in truth], dtype=np.int64),
                np.array([item["category_id"] for item in truth], dtype=np.int64),
                _corners(truth),
                crowd,
                crowd,
            ),
        )


def _corners(items: list[dict[str, Any]]) -> np.ndarray:
    """Convert COCO's x, y, width, height to x0, y0, x1, y1, (N, 4)."""
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
