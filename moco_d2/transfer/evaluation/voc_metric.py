"""Average precision of the Pascal VOC devkit, for all detections of a class and all thresholds
at once.

The devkit's rule makes it possible: a detection is compared only with the ground truth it overlaps
most, so which detections can be true positives is known before any is matched. Of those with the
same best ground truth, the one with the highest score is the true positive.

Shapes: D detections and G ground truths of one class; P pairs of a detection and a ground truth in
the same image; T IoU thresholds.
"""

import numpy as np

from moco_d2.transfer.data.voc_annotations import GroundTruth

_ELEVEN_RECALLS = np.arange(0.0, 1.1, 0.1)


def match(
    truth: GroundTruth, images: np.ndarray, boxes: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of a class are true and which are false positives.

    Args:
        truth: of the same class.
        images: (D,) index of each detection's image, from the highest to the lowest score.
        boxes: (D, 4) as GroundTruth.boxes.
        thresholds: (T,) IoU that has to be exceeded.

    Returns:
        two float arrays of 0 and 1, (T, D). A detection of a difficult object is neither.
    """
    overlap, best = _best_ground_truth(truth, images, boxes)
    D, T = len(images), len(thresholds)
    matched = overlap > thresholds[:, None]
    relevant = matched & ~truth.difficult[best] if len(truth.boxes) else matched
    true = np.zeros((T, D))
    first = np.empty(len(truth.boxes), dtype=np.int64)
    for row, found in zip(true, relevant, strict=True):
        (candidates,) = np.nonzero(found)
        candidates = candidates[::-1]
        # Of several assignments to one element the last counts: here, the highest score's.
        first[best[candidates]] = candidates
        row[first[best[candidates]]] = 1.0
    return true, (~matched | (relevant & (true == 0))).astype(np.float64)


def _best_ground_truth(
    truth: GroundTruth, images: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """IoU with the ground truth that each detection overlaps most, and its index: (D,) and (D,);
    -inf and 0 in an image without ground truth.
    """
    overlap = np.full(len(images), -np.inf)
    best = np.zeros(len(images), dtype=np.int64)
    count = truth.count[images]
    (compared,) = np.nonzero(count)
    count = count[compared]
    if len(compared) == 0:
        return overlap, best
    # The P pairs, those of a detection together.
    begin = np.concatenate(([0], np.cumsum(count)[:-1]))
    detection = np.repeat(compared, count)
    partner = np.arange(count.sum()) - np.repeat(begin - truth.start[images[compared]], count)
    iou = _pairwise_iou(truth.boxes[partner], boxes[detection])
    overlap[compared] = np.maximum.reduceat(iou, begin)
    (winners,) = np.nonzero(iou == overlap[detection])
    winners = winners[::-1]  # the last assignment counts: the first of equal ones, as in argmax
    best[detection[winners]] = partner[winners]
    return overlap, best


def _pairwise_iou(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """IoU of P pairs of boxes that include their last pixel, with the devkit's order of operations,
    on which the last bit depends.
    """
    width = np.maximum(
        np.minimum(truth[:, 2], found[:, 2]) - np.maximum(truth[:, 0], found[:, 0]) + 1.0, 0.0
    )
    height = np.maximum(
        np.minimum(truth[:, 3], found[:, 3]) - np.maximum(truth[:, 1], found[:, 1]) + 1.0, 0.0
    )
    intersection = width * height
    union = _area(found) + _area(truth) - intersection
    return intersection / union


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + 1.0) * (boxes[:, 3] - boxes[:, 1] + 1.0)


def average_precision(
    true: np.ndarray, false: np.ndarray, positives: int, eleven_points: bool
) -> np.ndarray:
    """AP of T precision-recall curves, (T,), in [0, 1].

    Args:
        true, false: (T, points) true and false positives so far.
        positives: objects to be found. Where there are none, 11-point AP is 0 and the area NaN, as
            with Detectron2.
        eleven_points: mean of the precision at recall 0, 0.1 ... 1 instead of the area.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = true / float(positives)
    # Nothing counts yet where the first detections are of difficult objects.
    precision = true / np.maximum(true + false, np.finfo(np.float64).eps)
    if eleven_points:
        return _eleven_point_mean(recall, _envelope(precision))
    ends = np.zeros((len(true), 1))
    recall = np.concatenate((ends, recall, ends + 1.0), axis=1)
    precision = _envelope(np.concatenate((ends, precision, ends), axis=1))
    return np.array([_area_under(r, p) for r, p in zip(recall, precision, strict=True)])


def _envelope(precision: np.ndarray) -> np.ndarray:
    """The highest precision at this recall or a higher one."""
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def _eleven_point_mean(recall: np.ndarray, envelope: np.ndarray) -> np.ndarray:
    T, points = recall.shape
    # Beyond the last point precision is 0. No recall of NaN reaches a level.
    envelope = np.concatenate((envelope, np.zeros((T, 1))), axis=1)
    ap = np.zeros(T)
    for level in _ELEVEN_RECALLS:
        reached = recall >= level
        at = np.where(reached.any(axis=1), reached.argmax(axis=1), points) if points else [0] * T
        ap = ap + envelope[np.arange(T), at] / len(_ELEVEN_RECALLS)
    return ap


def _area_under(recall: np.ndarray, envelope: np.ndarray) -> np.floating:
    (steps,) = np.nonzero(recall[1:] != recall[:-1])
    return np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1])
