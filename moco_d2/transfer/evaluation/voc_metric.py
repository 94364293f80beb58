"""Average precision of the Pascal VOC devkit, computed for all detections of a class and all
thresholds at once.

This is possible because the devkit compares a detection only with the ground truth that it overlaps
most. The candidates for true positives are therefore known before the matching. Among candidates
with the same best ground truth, the one with the highest score is the true positive.

Shapes: D detections and G ground truths of one class; P pairs of a detection and a ground truth in
the same image; T IoU thresholds.
"""

import numpy as np

from moco_d2.transfer.data.voc_annotations import GroundTruth

_ELEVEN_RECALLS = np.arange(0.0, 1.1, 0.1)


def match(
    truth: GroundTruth, images: np.ndarray, boxes: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the true and the false positives among the detections of a class.

    Args:
        truth: Ground truth of the same class.
        images: (D,) index of each detection's image, in the order of falling scores.
        boxes: (D, 4), as GroundTruth.boxes.
        thresholds: (T,) IoU that a match has to exceed.

    Returns:
        Two float arrays of 0 and 1, (T, D): true positives and false positives. A detection of a
        difficult object is neither.
    """
    overlap, best = _best_ground_truth(truth, images, boxes)
    D, T = len(images), len(thresholds)
    matched = overlap > thresholds[:, None]
    relevant = matched & ~truth.difficult[best] if len(truth.boxes) else matched
    true = np.zeros((T, D))
    first = np.empty(len(truth.boxes), dtype=np.int64)
    for row, is_candidate in zip(true, relevant, strict=True):
        (candidates,) = np.nonzero(is_candidate)
        candidates = candidates[::-1]
        # Of several assignments to one element, NumPy keeps the last: here, the highest score's.
        first[best[candidates]] = candidates
        row[first[best[candidates]]] = 1.0
    return true, (~matched | (relevant & (true == 0))).astype(np.float64)


def _best_ground_truth(
    truth: GroundTruth, images: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest IoU of each detection with a ground truth, (D,), and the index of that
    ground truth, (D,). They are -inf and 0 in an image without ground truth.
    """
    overlap = np.full(len(images), -np.inf)
    best = np.zeros(len(images), dtype=np.int64)
    count = truth.count[images]
    (compared,) = np.nonzero(count)
    count = count[compared]
    if len(compared) == 0:
        return overlap, best
    # The P pairs, ordered by detection.
    begin = np.concatenate(([0], np.cumsum(count)[:-1]))
    detection = np.repeat(compared, count)
    partner = np.arange(count.sum()) - np.repeat(begin - truth.start[images[compared]], count)
    iou = _pairwise_iou(truth.boxes[partner], boxes[detection])
    overlap[compared] = np.maximum.reduceat(iou, begin)
    (winners,) = np.nonzero(iou == overlap[detection])
    winners = winners[::-1]  # NumPy keeps the last assignment: the first of ties, as in argmax
    best[detection[winners]] = partner[winners]
    return overlap, best


def _pairwise_iou(truth: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the IoU of P pairs of boxes that include their last pixel. The order of operations is
    the devkit's, because the last bit depends on it.
    """
    low = np.maximum(truth[:, :2], boxes[:, :2])
    high = np.minimum(truth[:, 2:], boxes[:, 2:])
    width, height = np.maximum(high - low + 1.0, 0.0).T
    intersection = width * height
    union = _area(boxes) + _area(truth) - intersection
    return intersection / union


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + 1.0) * (boxes[:, 3] - boxes[:, 1] + 1.0)


def average_precision(
    true: np.ndarray, false: np.ndarray, positives: int, eleven_points: bool
) -> np.ndarray:
    """Return the AP of T precision-recall curves, (T,), in [0, 1].

    Args:
        true, false: (T, points) numbers of true and false positives up to each point.
        positives: Number of objects. With 0, the 11-point AP is 0 and the area is NaN, as in
            Detectron2.
        eleven_points: Whether to average the precision at recall 0, 0.1 ... 1 instead of computing
            the area under the curve.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = true / float(positives)
    # true + false is 0 while all detections are of difficult objects.
    precision = true / np.maximum(true + false, np.finfo(np.float64).eps)
    if eleven_points:
        return _eleven_point_mean(recall, _envelope(precision))
    ends = np.zeros((len(true), 1))
    recall = np.concatenate((ends, recall, ends + 1.0), axis=1)
    precision = _envelope(np.concatenate((ends, precision, ends), axis=1))
    return np.array([_area_under(r, p) for r, p in zip(recall, precision, strict=True)])


def _envelope(precision: np.ndarray) -> np.ndarray:
    """Return the highest precision at each point's recall or a higher one."""
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def _eleven_point_mean(recall: np.ndarray, envelope: np.ndarray) -> np.ndarray:
    T, points = recall.shape
    # Beyond the last point, the precision is 0. A recall of NaN reaches no level.
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
