"""Pascal VOC average precision as a Detectron2 evaluator; what it computes is in voc_metric.py."""

import logging
from collections import Counter
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from moco_d2.errors import UserError
from moco_d2.transfer.data.voc_annotations import read_ground_truths, read_split, split_file
from moco_d2.transfer.evaluation.tide import Detections, Objects, decompose
from moco_d2.transfer.evaluation.voc_metric import average_precision, match

logger = logging.getLogger(__name__)

MODES = ("compatible", "exact")
IOU_THRESHOLDS = np.arange(50, 100, 5) / 100.0
ELEVEN_POINTS_YEAR = 2007  # the devkit of 2012 takes the area under the curve instead
AREA_YEAR = 2012
# Decimals of the text files in which the devkit takes its results.
_SCORE_DECIMALS = 3
_BOX_DECIMALS = 1


class VOCEvaluator(DatasetEvaluator):
    """AP, AP50, AP75 and each class's AP50 of a VOC-format dataset.

    Takes the place of Detectron2's PascalVOCDetectionEvaluator, and returns the same keys and
    ``AP50-<class>``. 11-point AP for 2007, area under the curve for 2012; boxes include their last
    pixel ("+1"). It contains a synchronization, so it has to be called from all processes.

    Modes:

    * ``compatible``: Detectron2's numbers, bit for bit, and so those of the paper. Scores are
      rounded to 3 decimals and boxes to 0.1 pixels, as in the devkit's text files; many scores
      become equal, and detections with equal scores are ranked by an unstable sort of the order in
      which they arrived.
    * ``exact``: nothing is rounded, and the precision-recall curve has one point for each
      distinct score, after all detections that have it. Among equal scores it makes no difference
      to the counts which of several detections of an object is the true positive, so the result
      does not depend on the order of images or on how they are divided among processes.
    """

    def __init__(self, dataset_name: str, *, mode: str = "compatible"):
        """
        Args:
            dataset_name: registered, with metadata ``dirname``, ``split``, ``year`` and
                ``thing_classes``.
            mode: see the class.

        Raises:
            UserError: no such mode, or a year without a metric.
        """
        if mode not in MODES:
            raise UserError(f"MOCO.VOC_EVALUATION {mode!r} is none of {', '.join(MODES)}")
        metadata = MetadataCatalog.get(dataset_name)
        year = metadata.get("year")
        if year not in (ELEVEN_POINTS_YEAR, AREA_YEAR):
            raise UserError(
                f"dataset {dataset_name!r} has year {year!r} in its metadata; set it to "
                f"{ELEVEN_POINTS_YEAR} for 11-point AP or {AREA_YEAR} for the area under the curve"
            )
        self._dataset_name = dataset_name
        self._root = metadata.dirname
        self._split = metadata.split
        self._class_names = list(metadata.thing_classes)
        self._eleven_points = year == ELEVEN_POINTS_YEAR
        self._mode = mode
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._image_ids: list[str] = []
        self._detections: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the detections of some images, in the format of GeneralizedRCNN."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            self._image_ids.append(str(image["image_id"]))
            self._detections.append(
                (
                    instances.pred_classes.cpu().numpy(),
                    instances.scores.cpu().numpy(),
                    instances.pred_boxes.tensor.cpu().numpy(),
                )
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"bbox": {"AP", "AP50", "AP75", "AP50-<class>"...}}`` in percent, in the main process;
        empty in others.

        Raises:
            UserError: an annotation cannot be read, or a detection is of an image outside the
                split.
        """
        parts = comm.gather((self._image_ids, *_concatenate(self._detections)), dst=0)
        if not comm.is_main_process():
            return {}
        ids = [image_id for part in parts for image_id in part[0]]
        counts, classes, scores, boxes = (
            np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[1:]
        )
        split = read_split(self._root, self._split)
        position = {name: i for i, name in enumerate(split)}
        unknown = next((image_id for image_id in ids if image_id not in position), None)
        if unknown is not None:
            raise UserError(
                f"dataset {self._dataset_name!r}: image {unknown} was evaluated but is not in "
                f"{split_file(self._root, self._split)}; list it there"
            )
        images = np.repeat(np.array([position[i] for i in ids], dtype=np.int64), counts)
        self._gathered = Detections(images, classes, scores, boxes)
        scores, boxes = _as_the_mode_sees(scores, boxes, self._mode)
        aps = self._average_precisions(split, images, classes, scores, boxes) * 100
        return self._summarize(aps)

    def box_errors(self) -> dict[str, float]:
        """tide.decompose of what evaluate has seen, in the main process.

        Nothing is rounded, whatever the mode. A difficult object excuses what overlaps it by an IoU
        of 0.5.

        Raises:
            UserError, ValueError: as evaluate and decompose.
        """
        found = self._gathered._replace(boxes=self._gathered.boxes.astype(np.float64))
        truths = read_ground_truths(
            self._root, read_split(self._root, self._split), self._class_names
        )
        boxes = np.concatenate([truth.boxes for truth in truths])
        boxes[:, :2] -= 1.0  # counted from 0, the last pixel not added
        objects = Objects(
            np.concatenate([np.repeat(np.arange(len(t.count)), t.count) for t in truths]),
            np.repeat(np.arange(len(truths)), [len(t.boxes) for t in truths]),
            boxes,
            np.concatenate([truth.difficult for truth in truths]),
            np.zeros(len(boxes), dtype=bool),
        )
        return decompose(found, objects)

    def _average_precisions(
        self,
        split: Counter[str],
        images: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
        boxes: np.ndarray,
    ) -> np.ndarray:
        """AP of every class and IoU threshold, (classes, T), in [0, 1]."""
        truths = read_ground_truths(self._root, split, self._class_names)
        aps = np.zeros((len(truths), len(IOU_THRESHOLDS)))
        for label, truth in enumerate(truths):
            (members,) = np.nonzero(classes == label)
            # The order of equal scores is the sort's; Detectron2 sorts the same numbers with it.
            members = members[np.argsort(-scores[members])]
            true, false = match(truth, images[members], boxes[members], IOU_THRESHOLDS)
            true, false = np.cumsum(true, axis=1), np.cumsum(false, axis=1)
            if self._mode == "exact":
                last = _last_of_equal(scores[members])
                true, false = true[:, last], false[:, last]
            aps[label] = average_precision(true, false, truth.positives, self._eleven_points)
        return aps

    def _summarize(self, aps: np.ndarray) -> dict[str, dict[str, float]]:
        # One mean after the other over contiguous numbers: another order rounds otherwise.
        means = [np.mean(column.copy()) for column in aps.T]
        summary = {"AP": np.mean(means), "AP50": means[0], "AP75": means[5]}
        per_class = {
            f"AP50-{name}": ap for name, ap in zip(self._class_names, aps[:, 0], strict=True)
        }
        logger.info(
            "%s, %s, %s mode:\n%s",
            self._dataset_name,
            "11-point AP" if self._eleven_points else "area under the curve",
            self._mode,
            create_small_table(summary),
        )
        return {"bbox": {name: float(value) for name, value in (summary | per_class).items()}}


def _last_of_equal(sorted_scores: np.ndarray) -> np.ndarray:
    """Indices after which the score changes."""
    (changes,) = np.nonzero(sorted_scores[1:] != sorted_scores[:-1])
    return np.append(changes, len(sorted_scores) - 1) if len(sorted_scores) else changes


def _concatenate(
    detections: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(images,) number of each image's detections; (D,) classes, (D,) scores, (D, 4) boxes."""
    counts = np.array([len(scores) for _, scores, _ in detections], dtype=np.int64)
    if len(detections) == 0:
        return counts, np.empty(0, np.int64), np.empty(0, np.float32), np.empty((0, 4), np.float32)
    classes, scores, boxes = (np.concatenate(arrays) for arrays in zip(*detections, strict=True))
    return counts, classes, scores, boxes


def _as_the_mode_sees(
    scores: np.ndarray, boxes: np.ndarray, mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and boxes as float64, boxes counted from pixel 1; rounded in compatible mode."""
    if mode == "exact":
        boxes = boxes.astype(np.float64)
        boxes[:, :2] += 1.0
        return scores.astype(np.float64), boxes
    # Detectron2 adds 1 to each number by itself, whose type is another before NumPy 2.
    boxes = boxes.astype((boxes.dtype.type(0) + 1).dtype)
    boxes[:, :2] += 1
    return _as_written(scores, _SCORE_DECIMALS), _as_written(boxes, _BOX_DECIMALS)


def _as_written(values: np.ndarray, decimals: int) -> np.ndarray:
    """What is read back after `values` were written with this many decimals.

    A float32 times 10 or 1000 is exact in float64, so this rounds as printing does; and a decimal
    number is read as the float64 next to it, which is what the division gives.
    """
    scale = 10.0**decimals
    return np.rint(values.astype(np.float64) * scale) / scale
