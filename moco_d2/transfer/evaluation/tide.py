"""What a detector's AP50 loses to each kind of error: TIDE (Bolya et al., "TIDE: A General Toolbox
for Identifying Object Detection Errors", ECCV 2020), for boxes.

A detection is right if it overlaps an object of its class, which no better detection has taken, by
an IoU of 0.5 or more. One that is not is an error of the first kind that fits:

========  ==========================================================================================
``Loc``   an object of its class overlaps it by 0.1 to 0.5: right but for the box
``Cls``   an object of another class overlaps it by 0.5 or more: right but for the class
``Dupe``  an object of its class overlaps it by 0.5 or more, and is taken
``Bkg``   no object overlaps it by more than 0.1
``Both``  what is left: an object of another class overlaps it by 0.1 to 0.5
``Miss``  an object that is not found, and that no ``Loc`` or ``Cls`` error would find if corrected
========  ==========================================================================================

The cost of a kind is by how much AP50 rises when every error of that kind alone is corrected:
``Loc`` and ``Cls`` become right if their object is free, the one with the highest score for each
object, and the others of them, ``Dupe``, ``Bkg`` and ``Both`` are taken away; objects missed do not
have to be found. So the costs need not add up to what is missing to 100.

AP50 is COCO's, for any dataset: the mean over classes with objects of the mean precision at 101
recalls. It is not the 11-point AP50 of VOC 2007, and not that of VOC 2012.

Where this differs from the authors' tidecv 1.0.1: there, detections of a class without objects
bring a class of AP 0 into the mean (COCO leaves it out), and a detection that is excused by an
ignored object may still be an error (here it is none).

Shapes: D detections, G objects, P pairs of them in one image.
"""

from typing import NamedTuple

import numpy as np

KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
#: t_f and t_b of the paper.
FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
_RECALLS = np.linspace(0.0, 1.0, 101)
# Detections whose pairs are compared at a time: 100,000 with ten objects each are 8 MB an array.
_CHUNK = 100_000


class Detections(NamedTuple):
    """Found boxes.

    Attributes:
        images: (D,) int, any numbering that Objects shares.
        classes: (D,) int.
        scores: (D,). Of equal ones the first comes first.
        boxes: (D, 4) x0, y0, x1, y1, without a pixel added.
    """

    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


class Objects(NamedTuple):
    """Annotated boxes.

    Attributes:
        images, classes, boxes: as in Detections.
        ignored: (G,) bool, neither to be found nor a mistake: VOC's difficult, COCO's crowds.
        crowd: (G,) bool, of them those that excuse any number of detections inside: overlap with
            them is the share of the detection that they cover.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray
    crowd: np.ndarray


class _Pairs(NamedTuple):
    """(P,) pairs, by detection, then by falling overlap, then by object."""

    found: np.ndarray
    truth: np.ndarray
    overlap: np.ndarray

    def where(self, mask: np.ndarray) -> "_Pairs":
        return _Pairs(*(values[mask] for values in self))


def decompose(found: Detections, truth: Objects) -> dict[str, float]:
    """AP50 in percent, and the points of it that each of KINDS costs.

    Raises:
        ValueError: there is no object to be found.
    """
    found = Detections(*(values[np.argsort(-found.scores, kind="stable")] for values in found))
    wanted = ~truth.ignored
    if not wanted.any():
        raise ValueError("no object to be found")
    pairs = _pairs(found, truth)
    same, real, close = _relations(pairs, found, truth)
    D, G = len(found.scores), len(wanted)

    owner = _match(pairs.where(same & real & close), D, G)
    right = np.zeros(D, dtype=bool)
    right[owner[owner >= 0]] = True
    excused = np.zeros(D, dtype=bool)
    excused[pairs.found[same & ~real & close]] = True
    excused &= ~right

    kind, target = _classify(pairs, same, real, owner, right | excused)
    # Of the errors that would find the same free object, the best one is right when corrected.
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

    base = ap(~excused, found.classes, right, positives)
    costs = {}
    for name in KINDS[:-1]:
        chosen = kind == name
        classes = found.classes
        if name == "Cls":
            classes = np.where(chosen & corrected, truth.classes[target], classes)
        keep = ~excused & (~chosen | corrected)
        costs[name] = ap(keep, classes, right | (chosen & corrected), positives)
    fewer = positives - np.bincount(truth.classes[missed], minlength=len(positives))
    costs["Miss"] = ap(~excused, found.classes, right, fewer)
    # Below 0 only where the 101 recalls fall on other points of the curve.
    return {"AP50": base} | {name: max(costs[name] - base, 0.0) for name in KINDS}


def is_right(found: Detections, truth: Objects) -> np.ndarray:
    """(D,) whether each detection is right, ``found`` in any order."""
    order = np.argsort(-found.scores, kind="stable")
    found = Detections(*(values[order] for values in found))
    pairs = _pairs(found, truth)
    same, real, close = _relations(pairs, found, truth)
    owner = _match(pairs.where(same & real & close), len(order), len(truth.classes))
    right = np.zeros(len(order), dtype=bool)
    right[order[owner[owner >= 0]]] = True
    return right


def _pairs(found: Detections, truth: Objects) -> _Pairs:
    """The pairs that overlap by BACKGROUND_IOU or more."""
    ids, images = np.unique(np.concatenate((found.images, truth.images)), return_inverse=True)
    of_found, of_truth = images[: len(found.images)], images[len(found.images) :]
    by_image = np.argsort(of_truth, kind="stable")
    count = np.bincount(of_truth, minlength=len(ids))
    start = np.cumsum(count) - count
    parts = []
    for begin in range(0, len(of_found), _CHUNK):
        image = of_found[begin : begin + _CHUNK]
        n = count[image]
        detection = np.repeat(np.arange(begin, begin + len(image)), n)
        step = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        partner = by_image[np.repeat(start[image], n) + step]
        overlap = _overlap(found.boxes[detection], truth.boxes[partner], truth.crowd[partner])
        parts.append(_Pairs(detection, partner, overlap).where(overlap >= BACKGROUND_IOU))
    empty = np.empty(0, dtype=np.int64)
    pairs = _Pairs(
        *map(np.concatenate, zip(_Pairs(empty, empty, np.empty(0)), *parts, strict=True))
    )
    return pairs.where(np.lexsort((pairs.truth, -pairs.overlap, pairs.found)))


def _relations(
    pairs: _Pairs, found: Detections, truth: Objects
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) whether the classes are the same, the object is not ignored, and they overlap enough."""
    return (
        found.classes[pairs.found] == truth.classes[pairs.truth],
        ~truth.ignored[pairs.truth],
        pairs.overlap >= FOREGROUND_IOU,
    )


def _overlap(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of P pairs of boxes, or the share of the detection inside a crowd; 0 of empty boxes."""
    sides = np.minimum(found[:, 2:], truth[:, 2:]) - np.maximum(found[:, :2], truth[:, :2])
    common = sides.clip(0).prod(axis=1)
    area = (found[:, 2:] - found[:, :2]).prod(axis=1)
    union = np.where(crowd, area, area + (truth[:, 2:] - truth[:, :2]).prod(axis=1) - common)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _match(pairs: _Pairs, detections: int, objects: int) -> np.ndarray:
    """(G,) the detection that takes each object, -1 for none: from the highest score on, each takes
    the free object that it overlaps most.
    """
    owner, served = [-1] * objects, [False] * detections
    for detection, item in zip(pairs.found.tolist(), pairs.truth.tolist(), strict=True):
        if not served[detection] and owner[item] < 0:
            owner[item] = detection
            served[detection] = True
    return np.array(owner, dtype=np.int64)


def _classify(
    pairs: _Pairs, same: np.ndarray, real: np.ndarray, owner: np.ndarray, no_error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(D,) kind of each detection's error, "" for none, and (D,) the object of Loc and Cls."""
    D = len(no_error)
    own, own_object = _best(pairs.where(same & real), D)
    other, other_object = _best(pairs.where(~same & real), D)
    taken, _ = _best(pairs.where(same & real & (owner[pairs.truth] >= 0)), D)
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
    """(D,) each detection's largest overlap, 0 without any, and (D,) the object of it."""
    overlap, item = np.zeros(number), np.zeros(number, dtype=np.int64)
    detections, first = np.unique(pairs.found, return_index=True)
    overlap[detections], item[detections] = pairs.overlap[first], pairs.truth[first]
    return overlap, item


def _mean_ap(
    classes: np.ndarray, right: np.ndarray, positives: np.ndarray, counted: np.ndarray
) -> float:
    """Mean AP in [0, 1] of detections from the highest to the lowest score.

    Args:
        positives: number of objects to be found, by class.
        counted: classes in the mean, but for those that have neither objects nor detections left.
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
    """COCO's: mean over 101 recalls of the highest precision at this recall or a higher one."""
    if not positives or not len(right):
        return 0.0
    true = np.cumsum(right)
    precision = true / np.arange(1, len(right) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(true / positives, _RECALLS)].mean())
