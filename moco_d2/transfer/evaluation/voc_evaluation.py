"""Pascal VOC average precision as a Detectron2 evaluator; voc_metric.py has the formulas."""

import logging
from collections import Counter
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from moco_d2.errors import UserError
from moco_d2.records.image_matches import PerImage, per_image
from moco_d2.transfer.data.voc_annotations import read_ground_truths, read_split, split_file
from moco_d2.transfer.evaluation.tide import Detections, Objects, decompose
from moco_d2.transfer.evaluation.voc_metric import average_precision, match

logger = logging.getLogger(__name__)

MODES = ("compatible", "exact")
IOU_THRESHOLDS = np.arange(50, 100, 5) / 100.0
ELEVEN_POINTS_YEAR = 2007  # the devkit of this year computes 11-point AP
AREA_YEAR = 2012  # the devkit of this year computes the area under the curve
# Decimals in the text files that the devkit reads.
_SCORE_DECIMALS = 3
_BOX_DECIMALS = 1


class VOCEvaluator(DatasetEvaluator):
    """Computes AP, AP50, AP75 and the AP50 of each class for a VOC-format dataset.

    It replaces Detectron2's PascalVOCDetectionEvaluator and returns the same keys and
    ``AP50-<class>``. It computes 11-point AP for 2007 and the area under the curve for 2012. Boxes
    include their last pixel ("+1"). All processes must call it, because it synchronizes them.

    Modes:

    * ``compatible``: The numbers equal Detectron2's bit for bit, and so those of the paper. Scores
      are rounded to 3 decimals and boxes to 0.1 pixels, as in the devkit's text files. Many scores
      become equal, and an unstable sort of the detections' input order ranks equal scores.
    * ``exact``: Nothing is rounded, and the precision-recall curve has one point per distinct
      score, after all detections with this score. The counts at these points do not depend on the
      order of equal scores, so the result does not depend on the order of images or on their
      distribution over processes.
    """

    def __init__(self, dataset_name: str, *, mode: str = "compatible"):
        """
        Args:
            dataset_name: Name of a registered dataset with metadata ``dirname``, ``split``,
                ``year`` and ``thing_classes``.
            mode: One of MODES.

        Raises:
            UserError: If there is no such mode, or the year has no metric.
        """
        if mode not in MODES:
            raise UserError(f"MOCO.VOC_EVALUATION must be one of {', '.join(MODES)}, got {mode!r}")
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
        """Discard all detections."""
        self._image_ids: list[str] = []
        self._detections: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add the detections of some images, in the format of GeneralizedRCNN."""
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
        """Return ``{"bbox": {"AP", "AP50", "AP75", "AP50-<class>"...}}`` in percent in the main
        process, and an empty dict in others.

        Raises:
            UserError: If an annotation cannot be read, or an evaluated image is not in the split.
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
        scores, boxes = _prepared(scores, boxes, self._mode)
        self._split_names = list(split)
        aps = self._average_precisions(split, images, classes, scores, boxes) * 100
        return self._summarize(aps)

    def box_errors(self) -> dict[str, float]:
        """Return tide.decompose of the evaluated detections, in the main process.

        Nothing is rounded in either mode. A detection that overlaps a difficult object by an IoU of
        0.5 or more is not an error.

        Raises:
            UserError, ValueError: As in evaluate and tide.decompose.
        """
        detections = self._gathered._replace(boxes=self._gathered.boxes.astype(np.float64))
        truths = read_ground_truths(
            self._root, read_split(self._root, self._split), self._class_names
        )
        boxes = np.concatenate([truth.boxes for truth in truths])
        boxes[:, :2] -= 1.0  # to coordinates from 0 without the "+1" of the last pixel
        objects = Objects(
            np.concatenate([np.repeat(np.arange(len(t.count)), t.count) for t in truths]),
            np.repeat(np.arange(len(truths)), [len(t.boxes) for t in truths]),
            boxes,
            np.concatenate([truth.difficult for truth in truths]),
            np.zeros(len(boxes), dtype=bool),
        )
        return decompose(detections, objects)

    def per_image(self) -> tuple[dict[str, PerImage], list[str]]:
        """Return what the AP needs of each image, and the names of the images, after evaluate in
        the main process.

        Raises:
            UserError: As in evaluate.
        """
        names = self._split_names
        truths = read_ground_truths(self._root, Counter(names), self._class_names)
        counts = np.stack(
            [
                np.bincount(np.repeat(np.arange(len(names)), t.count), ~t.difficult, len(names))
                for t in truths
            ]
        )
        labels = np.repeat(np.arange(len(truths)), [len(m[0]) for m in self._matches])
        found = [np.concatenate(arrays, axis=-1) for arrays in zip(*self._matches, strict=True)]
        metric = "voc_2007" if self._eleven_points else "voc_2012"
        metric += "_exact" if self._mode == "exact" else ""
        return {"bbox": per_image(len(names), metric, (labels, *found), counts)}, names

    def _average_precisions(
        self,
        split: Counter[str],
        images: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
        boxes: np.ndarray,
    ) -> np.ndarray:
        """Return the AP of every class and IoU threshold, (classes, T), in [0, 1]."""
        truths = read_ground_truths(self._root, split, self._class_names)
        aps = np.zeros((len(truths), len(IOU_THRESHOLDS)))
        self._matches = []
        for label, truth in enumerate(truths):
            (members,) = np.nonzero(classes == label)
            # The same unstable sort as in Detectron2, which determines the order of equal scores.
            members = members[np.argsort(-scores[members])]
            true, false = match(truth, images[members], boxes[members], IOU_THRESHOLDS)
            self._matches.append((images[members], scores[members], true > 0, true + false == 0))
            true, false = np.cumsum(true, axis=1), np.cumsum(false, axis=1)
            if self._mode == "exact":
                last = _last_of_equal(scores[members])
                true, false = true[:, last], false[:, last]
            aps[label] = average_precision(true, false, truth.positives, self._eleven_points)
        return aps

    def _summarize(self, aps: np.ndarray) -> dict[str, dict[str, float]]:
        # Means over contiguous columns, one after the other: another order rounds differently.
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
    """Return the last index of each distinct score."""
    (changes,) = np.nonzero(sorted_scores[1:] != sorted_scores[:-1])
    return np.append(changes, len(sorted_scores) - 1) if len(sorted_scores) else changes


def _concatenate(
    detections: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of detections of each image (images,), and of all detections the classes
    (D,), scores (D,) and boxes (D, 4).
    """
    counts = np.array([len(scores) for _, scores, _ in detections], dtype=np.int64)
    if len(detections) == 0:
        return counts, np.empty(0, np.int64), np.empty(0, np.float32), np.empty((0, 4), np.float32)
    classes, scores, boxes = (np.concatenate(arrays) for arrays in zip(*detections, strict=True))
    return counts, classes, scores, boxes


def _prepared(scores: np.ndarray, boxes: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and boxes as float64, with box coordinates from 1, and rounded in compatible
    mode.
    """
    if mode == "exact":
        boxes = boxes.astype(np.float64)
        boxes[:, :2] += 1.0
        return scores.astype(np.float64), boxes
    # Detectron2 adds 1 to NumPy scalars, whose result type depends on the version of NumPy.
    boxes = boxes.astype((boxes.dtype.type(0) + 1).dtype)
    boxes[:, :2] += 1
    return _rounded(scores, _SCORE_DECIMALS), _rounded(boxes, _BOX_DECIMALS)


def _rounded(values: np.ndarray, decimals: int) -> np.ndarray:
    """Return the numbers that are read after `values` were written with this many decimals.

    A float32 times 10 or 1000 is exact in float64, so np.rint rounds as printing does. The division
    gives the float64 nearest to the decimal number, as reading does.
    """
    scale = 10.0**decimals
    return np.rint(values.astype(np.float64) * scale) / scale
