"""The AP50 that a detector loses to each kind of error: TIDE for boxes (Bolya et al., "TIDE: A
General Toolbox for Identifying Object Detection Errors", ECCV 2020).

A detection is right if its IoU with an object of its class is 0.5 or more and no better detection
is matched to this object. Any other detection is an error of the first kind that fits:

========  ==========================================================================================
``Loc``   an object of its class overlaps it by 0.1 to 0.5: only the box is wrong
``Cls``   an object of another class overlaps it by 0.5 or more: only the class is wrong
``Dupe``  an object of its class overlaps it by 0.5 or more, but is matched to another detection
``Bkg``   no object overlaps it by more than 0.1
``Both``  all others: an object of another class overlaps it by 0.1 to 0.5
``Miss``  an object without detection that no corrected ``Loc`` or ``Cls`` error would match
========  ==========================================================================================

The cost of a kind is the rise of AP50 if every error of only this kind is corrected. For ``Loc``
and ``Cls``, the error with the highest score for each unmatched object becomes right, and the
others are removed. ``Dupe``, ``Bkg`` and ``Both`` are removed. For ``Miss``, missed objects no
longer count. The costs need not add up to 100 - AP50.

AP50 is COCO's for every dataset: the mean precision at 101 recalls, averaged over classes with
objects. It is neither the 11-point AP50 of VOC 2007 nor the AP50 of VOC 2012.

This differs from the authors' tidecv 1.0.1 in two points. There, detections of a class without
objects add a class with AP 0 to the mean (COCO leaves it out). There, a detection that an ignored
object excuses may still be an error (here it never is).

Shapes: D detections, G objects, P pairs of a detection and an object in one image.
"""

from typing import NamedTuple

import numpy as np

KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
#: The paper's thresholds t_f and t_b.
FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
_RECALLS = np.linspace(0.0, 1.0, 101)
# Number of detections that are compared at a time: with ten objects each, an array takes 8 MB.
_CHUNK = 100_000


class Detections(NamedTuple):
    """Predicted boxes.

    Attributes:
        images: (D,) int, image numbers as in Objects.
        classes: (D,) int.
        scores: (D,). Equal scores keep their order.
        boxes: (D, 4) x0, y0, x1, y1; x1 - x0 is the width.
    """

    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


class Objects(NamedTuple):
    """Annotated boxes.

    Attributes:
        images, classes, boxes: As in Detections.
        ignored: (G,) bool, objects that count neither if detected nor if missed: VOC's difficult
            objects and COCO's crowds.
        crowd: (G,) bool, ignored objects that excuse any number of detections. The overlap of a
            detection with a crowd is the fraction of the detection's area inside it.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray
    crowd: np.ndarray


class _Pairs(NamedTuple):
    """(P,) pairs, sorted by detection, then by falling overlap, then by falling object."""

    detection: np.ndarray
    item: np.ndarray
    overlap: np.ndarray

    def where(self, mask: np.ndarray) -> "_Pairs":
        return _Pairs(*(values[mask] for values in self))


def decompose(detections: Detections, truth: Objects) -> dict[str, float]:
    """Return AP50 in percent, and the percentage points of it that each of KINDS costs.

    Raises:
        ValueError: If there are no objects, or all are ignored.
    """
    order = np.argsort(-detections.scores, kind="stable")
    detections = Detections(*(values[order] for values in detections))
    wanted = ~truth.ignored
    if not wanted.any():
        raise ValueError("there is no object that is not ignored")
    pairs = _pairs(detections, truth)
    same, real, close = _relations(pairs, detections, truth)
    D, G = len(order), len(wanted)

    owner = _match(pairs.where(same & real & close), D, G)
    right = np.zeros(D, dtype=bool)
    right[owner[owner >= 0]] = True
    excused = np.zeros(D, dtype=bool)
    excused[pairs.detection[same & ~real & close]] = True
    excused &= ~right

    kind, target = _classify(pairs, same, real, owner, right | excused)
    # Of all errors that would match the same free object, only the best one becomes right.
    correctable = np.flatnonzero(np.isin(kind, ("Loc", "Cls")) & (owner[target] < 0))
    objects, first = np.unique(target[correctable], return_index=True)
    corrected = np.zeros(D, dtype=bool)
    corrected[correctable[first]] = True
    missed = wanted & (owner < 0)
    missed[objects] = False

    positives = np.bincount(truth.classes[wanted])
    counted = np.flatnonzero(positives)

    def ap(keep: np.ndarray, classes: np.ndarray, true: np.ndarray, wanted: np.ndarray) -> float:
        return 100 * _mean_ap(classes[keep], true[keep], wanted, counted)

    base = ap(~excused, detections.classes, right, positives)
    costs = {}
    for name in KINDS[:-1]:
        chosen = kind == name
        classes = detections.classes
        if name == "Cls":
            classes = np.where(chosen & corrected, truth.classes[target], classes)
        keep = ~excused & (~chosen | corrected)
        costs[name] = ap(keep, classes, right | (chosen & corrected), positives)
    fewer = positives - np.bincount(truth.classes[missed], minlength=len(positives))
    costs["Miss"] = ap(~excused, detections.classes, right, fewer)
    # A difference below 0 is an artifact of the 101 recalls, which sample other points.
    return {"AP50": base} | {name: max(costs[name] - base, 0.0) for name in KINDS}


def is_right(detections: Detections, truth: Objects) -> np.ndarray:
    """Return whether each detection is right, (D,). The detections may have any order."""
    order = np.argsort(-detections.scores, kind="stable")
    detections = Detections(*(values[order] for values in detections))
    pairs = _pairs(detections, truth)
    same, real, close = _relations(pairs, detections, truth)
    owner = _match(pairs.where(same & real & close), len(order), len(truth.classes))
    right = np.zeros(len(order), dtype=bool)
    right[order[owner[owner >= 0]]] = True
    return right


def _pairs(detections: Detections, truth: Objects) -> _Pairs:
    """Return the pairs that overlap by BACKGROUND_IOU or more."""
    ids, images = np.unique(np.concatenate((detections.images, truth.images)), return_inverse=True)
    image_of_detection, image_of_item = np.split(images, [len(detections.images)])
    by_image = np.argsort(image_of_item, kind="stable")
    count = np.bincount(image_of_item, minlength=len(ids))
    start = np.cumsum(count) - count
    parts = []
    for begin in range(0, len(image_of_detection), _CHUNK):
        image = image_of_detection[begin : begin + _CHUNK]
        n = count[image]
        detection = np.repeat(np.arange(begin, begin + len(image)), n)
        step = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        partner = by_image[np.repeat(start[image], n) + step]
        overlap = _overlap(detections.boxes[detection], truth.boxes[partner], truth.crowd[partner])
        parts.append(_Pairs(detection, partner, overlap).where(overlap >= BACKGROUND_IOU))
    empty = np.empty(0, dtype=np.int64)
    pairs = _Pairs(
        *map(np.concatenate, zip(_Pairs(empty, empty, np.empty(0)), *parts, strict=True))
    )
    # Of objects that a detection overlaps equally, COCO's evaluation takes the last one.
    return pairs.where(np.lexsort((-pairs.item, -pairs.overlap, pairs.detection)))


def _relations(
    pairs: _Pairs, detections: Detections, truth: Objects
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three masks (P,): both have the same class, the object is not ignored, and the overlap
    is FOREGROUND_IOU or more.
    """
    return (
        detections.classes[pairs.detection] == truth.classes[pairs.item],
        ~truth.ignored[pairs.item],
        pairs.overlap >= FOREGROUND_IOU,
    )


def _overlap(boxes: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return the IoU of P pairs of boxes, or the fraction of the detection inside a crowd; 0 for
    empty boxes.
    """
    sides = np.minimum(boxes[:, 2:], truth[:, 2:]) - np.maximum(boxes[:, :2], truth[:, :2])
    common = sides.clip(0).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = np.where(crowd, area, area + (truth[:, 2:] - truth[:, :2]).prod(axis=1) - common)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _match(pairs: _Pairs, detections: int, objects: int) -> np.ndarray:
    """Match detections to objects in the order of falling scores: each detection gets the free
    object that it overlaps most.

    Returns:
        The detection of each object, (G,), or -1.
    """
    owner, matched = [-1] * objects, [False] * detections
    for detection, item in zip(pairs.detection.tolist(), pairs.item.tolist(), strict=True):
        if not matched[detection] and owner[item] < 0:
            owner[item] = detection
            matched[detection] = True
    return np.array(owner, dtype=np.int64)


def _classify(
    pairs: _Pairs, same: np.ndarray, real: np.ndarray, owner: np.ndarray, no_error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kind of each detection's error, (D,), "" for none, and the object of Loc and Cls
    errors, (D,).
    """
    D = len(no_error)
    own, own_object = _best(pairs.where(same & real), D)
    other, other_object = _best(pairs.where(~same & real), D)
    taken, _ = _best(pairs.where(same & real & (owner[pairs.item] >= 0)), D)
    conditions = {
        "": no_error,
        "Loc": (own >= BACKGROUND_IOU) & (own <= FOREGROUND_IOU),
        "Cls": other >= FOREGROUND_IOU,
        "Dupe": taken >= FOREGROUND_IOU,
        "Bkg": np.maximum(own, other) <= BACKGROUND_IOU,
    }
    kind = np.select(list(conditions.values()), list(conditions), default="Both")
    return kind, np.where(kind == "Loc", own_object, other_object)


def _best(pairs: _Pairs, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's largest overlap, (D,), 0 without any, and its object, (D,)."""
    overlap, item = np.zeros(number), np.zeros(number, dtype=np.int64)
    detections, first = np.unique(pairs.detection, return_index=True)
    overlap[detections], item[detections] = pairs.overlap[first], pairs.item[first]
    return overlap, item


def _mean_ap(
    classes: np.ndarray, right: np.ndarray, positives: np.ndarray, counted: np.ndarray
) -> float:
    """Return the mean AP in [0, 1] of detections that are sorted by falling score.

    Args:
        classes, right: (D,) class of each detection, and whether it is right.
        positives: Number of objects of each class.
        counted: Classes in the mean. Those with neither objects nor detections are left out.
    """
    order = np.argsort(classes, kind="stable")
    begin, end = (np.searchsorted(classes[order], counted, side) for side in ("left", "right"))
    aps = [
        _average_precision(right[order[b:e]], positives[label])
        for label, b, e in zip(counted, begin, end, strict=True)
        if positives[label] or e > b
    ]
    return float(np.mean(aps)) if aps else 0.0


def _average_precision(right: np.ndarray, positives: int) -> float:
    """Return COCO's AP: the highest precision at each recall or a higher one, averaged over 101
    recalls.
    """
    if not positives or not len(right):
        return 0.0
    true = np.cumsum(right)
    precision = true / np.arange(1, len(right) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(true / positives, _RECALLS)].mean())
