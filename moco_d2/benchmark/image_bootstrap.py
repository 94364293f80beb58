"""AP of weighted test images, and the part of a difference's uncertainty that comes from them.

A bootstrap draws the images of a test set again, with replacement. Here an image that is drawn w
times has the weight w, and nothing is matched again: the detections keep the evaluator's order, and
sums of weights replace counts. So all copies of a detection follow one another, which decides only
where detections of one image and class have equal scores. Only true positives can be corners of the
upper hull of a precision-recall curve, so a curve has a point for each of them.

Shapes: R resamples, I images, S runs, T = 10 IoU thresholds, K classes.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from moco_d2.benchmark.statistics import LEVEL
from moco_d2.records.image_matches import THRESHOLDS, PerImage

#: The metrics that follow from a file of images, and the thresholds that they average.
AVERAGED = {"AP": slice(0, THRESHOLDS), "AP50": slice(0, 1), "AP75": slice(5, 6)}
RESAMPLES = 1000
#: Groups of images that are left out in turn to estimate the acceleration of BCa.
GROUPS = 100
_NO_SPREAD = 1e-9  # points
_RECALLS = {"coco": np.linspace(0.0, 1.0, 101), "voc_2007": np.arange(0.0, 1.1, 0.1)}


class WeightedAP:
    """Computes the APs of one output of a run for any weights of the images.

    The curves of all thresholds and classes stand one after the other, T * K of them, and their
    points are true positives.

    Examples:
    ::
        outputs, _ = read_per_image(Path("run/per_image.npz"))
        WeightedAP(outputs["bbox"])(np.ones(images))  # AP, AP50 and AP75 of the run
    """

    def __init__(self, part: PerImage):
        K, bits = part.classes, 1 << np.arange(THRESHOLDS)[:, None]
        threshold, true = np.nonzero(part.true & bits)
        threshold_of_ignored, ignored = np.nonzero(part.ignored & bits)
        label = np.repeat(np.arange(K), np.diff(part.start))
        curves = np.arange(THRESHOLDS * K + 1)
        self._part = part
        self._recalls = _RECALLS.get(part.metric.removesuffix("_exact"))
        self._empty = np.bincount(part.truth_class, minlength=K) == 0
        self._truth_image = part.truth_image.astype(np.intp)
        self._image = part.image[true].astype(np.intp)
        self._curve = threshold * K + label[true]
        self._begin = np.searchsorted(self._curve, curves)
        # The number of detections up to and with each point, and the last true positive among them.
        self._end, self._last = true + 1, np.arange(len(true))
        if part.metric.endswith("_exact"):  # equal scores are one point
            key = np.stack((label, part.score))
            group = np.cumsum(np.append(True, (key[:, 1:] != key[:, :-1]).any(axis=0)))
            self._end = np.searchsorted(group, group[true], "right")
            place = threshold * (len(label) + 1) + group[true]
            self._last = np.searchsorted(place, place, "right") - 1
        # No detection after the last true positive is looked at.
        self._seen = part.image[: self._end.max(initial=0)].astype(np.intp)
        self._seen_before = np.minimum(np.tile(part.start[:-1], THRESHOLDS), len(self._seen))
        # Ignored detections stand one after the other, too, for each threshold.
        self._ignored = part.image[ignored].astype(np.intp)
        place = threshold_of_ignored * (len(label) + 1) + ignored
        self._ignored_end = np.searchsorted(place, threshold * (len(label) + 1) + self._end)
        starts = np.arange(THRESHOLDS)[:, None] * (len(label) + 1) + part.start[:-1]
        self._ignored_before = np.searchsorted(place, starts.ravel())

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Return AP, AP50 and AP75 in percent, (3,).

        Args:
            weights: (I,) how often each image counts, whole numbers.
        """
        return self.of_copies(weights, 1)[0]

    def of_copies(self, weights: np.ndarray, copies: int) -> np.ndarray:
        """Return AP, AP50 and AP75 of each of several copies of a test set, (copies, 3)."""
        aps = self.of_classes(weights).reshape(THRESHOLDS, copies, -1)
        counted = ~np.isnan(aps[0])  # the same at all thresholds
        with np.errstate(invalid="ignore"):
            means = np.nansum(aps, axis=2) / counted.sum(axis=1)
        return 100 * np.stack([means[chosen].mean(axis=0) for chosen in AVERAGED.values()], axis=1)

    def of_classes(self, weights: np.ndarray) -> np.ndarray:
        """Return the AP of each threshold and class, (T, K), in [0, 1]. It is NaN for a class
        without objects, except that VOC's mean at 11 recalls counts a class that no image has as 0.
        """
        part, weights = self._part, weights.astype(np.int64)
        counts = weights[self._truth_image] * part.truth_count
        positives = np.bincount(part.truth_class, counts, part.classes)
        aps = self._averages(weights, positives).reshape(THRESHOLDS, part.classes)
        aps[:, positives == 0] = np.nan
        if part.metric.startswith("voc_2007"):
            aps[:, self._empty] = 0.0
        return aps

    def _averages(self, weights: np.ndarray, positives: np.ndarray) -> np.ndarray:
        """Return the AP of each curve, (T * K,)."""
        curve, curves = self._curve, len(self._begin) - 1
        if not len(curve):
            return np.zeros(curves)
        own = weights[self._image]
        # Sums run over the curves before, too, which are then subtracted.
        sums, seen, ignored = map(_sums, (own, weights[self._seen], weights[self._ignored]))
        before = sums[self._begin[:-1]]
        counted_before = seen[self._seen_before] - ignored[self._ignored_before]
        true = sums[1:][self._last] - before[curve]
        counted = seen[self._end] - ignored[self._ignored_end] - counted_before[curve]
        precision = np.divide(true, counted, out=np.zeros(len(true)), where=counted > 0)
        # The highest precision from each point to the end of its curve: each curve is lifted above
        # all that follow, so one accumulation serves all.
        lift = 2.0 * (curves - curve)
        hull = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
        if self._recalls is None:
            objects = positives[curve % len(positives)]
            steps = np.divide(own, objects, out=np.zeros(len(own)), where=own > 0)
            return np.bincount(curve, steps * hull, curves)
        needed = np.tile(_needed(self._recalls, positives), (THRESHOLDS, 1))
        at = np.searchsorted(sums[1:], before[:, None] + needed)
        at = np.maximum(at, self._begin[:-1, None])
        reached = at < self._begin[1:, None]
        return np.where(reached, hull[np.where(reached, at, 0)], 0.0).mean(axis=1)


def _sums(values: np.ndarray) -> np.ndarray:
    """Return the sums of the first 0, 1, 2 ... values."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _needed(recalls: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return the smallest number of true positives that reaches each recall, (K, recalls)."""
    positives = positives[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.ceil(recalls * positives)
        # The product may be rounded across a whole number; the quotient is what counts.
        needed -= (needed - 1) / positives >= recalls
        needed += needed / positives < recalls
    return needed


class Replicates(NamedTuple):
    """The APs of one output of a run: AP, AP50, AP75 in percent.

    Differences of runs are such replicates, too, with an axis of other things than metrics.

    Attributes:
        point: (3,) of the test set.
        drawn: (R, 3) of resampled images.
        left_out: (groups, 3) without one group of images.
        images: Number of images, I.
    """

    point: np.ndarray
    drawn: np.ndarray
    left_out: np.ndarray
    images: int


def replicates(
    part: PerImage, resamples: int = RESAMPLES, groups: int = GROUPS, seed: int = 0
) -> Replicates:
    """Return the APs of a run for images that are drawn again.

    Runs with the same number of images get the same draws, so that their differences are paired.
    """
    images, rng = part.images, np.random.default_rng(seed)
    group = rng.permutation(images) % min(groups, images)
    ones = np.ones(images, dtype=np.int64)
    drawn = (rng.integers(0, images, images) for _ in range(resamples))
    weights = itertools.chain(  # all of them at once would take gigabytes for many images
        (ones,),
        (np.bincount(chosen, minlength=images) for chosen in drawn),
        (group != left for left in range(group.max() + 1)),
    )
    # A small test set is evaluated for several weights at a time, as that many sets of classes.
    points = max(len(part.image), images) + 1
    copies = min(_MOST_POINTS // points, _MOST_CURVES // part.classes) or 1
    ap = WeightedAP(_copied(part, copies))
    aps = np.concatenate(
        [
            ap.of_copies(np.concatenate([*chunk, *[ones] * (copies - len(chunk))]), copies)
            for chunk in iter(lambda: list(itertools.islice(weights, copies)), [])
        ]
    )[: 1 + resamples + group.max() + 1]
    return Replicates(aps[0], aps[1 : resamples + 1], aps[resamples + 1 :], images)


# With more points or curves at a time, nothing is faster, and sums lose digits.
_MOST_POINTS, _MOST_CURVES = 20_000, 50


def _copied(part: PerImage, copies: int) -> PerImage:
    """Return a test set of so many copies of all images and classes."""
    shifts = np.arange(copies)[:, None]
    start = (part.start[:-1] + shifts * len(part.image)).ravel()
    return part._replace(
        about=part.about * (copies, copies, 1),
        start=np.append(start, copies * len(part.image)),
        image=(part.image + shifts * part.images).ravel(),
        score=np.tile(part.score, copies),
        true=np.tile(part.true, copies),
        ignored=np.tile(part.ignored, copies),
        truth_image=(part.truth_image + shifts * part.images).ravel(),
        truth_class=(part.truth_class + shifts * part.classes).ravel(),
        truth_count=np.tile(part.truth_count, copies),
    )


class Uncertainty(NamedTuple):
    """A mean over runs, or a difference of two, with its interval at LEVEL over seeds and images.

    `images` is the share of the variance that the choice of the test images accounts for; the seeds
    account for the rest.
    """

    value: float
    low: float
    high: float
    images: float


def uncertainty(of: Replicates, variance: float, freedom: float) -> Uncertainty:
    """Combine the part of the seeds with that of the images.

    A bootstrap over three to five seeds is too narrow, so the part of the seeds comes from the
    test between the rows, which knows how little is known about it. The part of the images is a
    bootstrap with BCa's limits (Efron, JASA 82, 1987), as a variance with the divisor I - 1. What
    is due to one seed on these images is in both, so it is taken from the second. The sum has the
    degrees of freedom of Welch and Satterthwaite, and is never narrower than the part of the seeds:
    with two degrees of freedom for it, their interval alone would hold 92 % (studies/intervals.py).

    Args:
        of: The values or differences of one metric, whose last axis is that of the seeds (S).
        variance, freedom: Variance of the mean over seeds, and degrees of freedom of its estimate.
    """
    point, drawn, left_out, images = of
    value, means, unbiased = float(point.mean()), drawn.mean(axis=1), images / max(images - 1, 1)
    own = float((drawn - point).var(axis=1, ddof=1).mean()) / len(point) if len(point) > 1 else 0.0
    total = float(means.var(ddof=1))
    share = max(total - own, 0.0) / total if total else 0.0
    half = special.ndtri((1 + LEVEL) / 2)
    without = left_out.mean(axis=1)
    known = freedom_of_images(without, images)
    limits = []
    for limit in bca_limits(means, value, without):
        of_images = unbiased * share * ((limit - value) / half) ** 2
        both = variance + of_images
        inverse = (variance / both) ** 2 / freedom + (of_images / both) ** 2 / known if both else 0
        degrees = 1 / inverse if inverse else math.inf
        wide = float(special.stdtrit(degrees, (1 + LEVEL) / 2)) * math.sqrt(both)
        limits.append(max(wide, float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * variance**0.5))
    of_images = unbiased * share * total
    return Uncertainty(
        value, value - limits[0], value + limits[1],
        of_images / (of_images + variance) if of_images + variance else 0.0,
    )  # fmt: skip


def freedom_of_images(left_out: np.ndarray, images: int) -> float:
    """Return how well the bootstrap knows the variance due to the images, in degrees of freedom.

    They are 2 / (2 / (I - 1) + (k - 3) / I) if the influence of an image has the kurtosis k: a few
    images with many objects are much of the variance. The kurtosis of a group is nearer to 3, by
    the number of its images, so (k - 3) / I is the same of groups.

    Args:
        left_out: (G,) value without each group of images.
    """
    from scipy import stats  # takes seconds

    excess = 0.0
    around = left_out - left_out.mean()
    if len(around) > 3 and np.ptp(around) > _NO_SPREAD:
        excess = max(float(stats.kurtosis(around, bias=False)), 0.0)
    return 2 / (2 / max(images - 1, 1) + excess / len(left_out))


def bca_limits(drawn: np.ndarray, value: float, left_out: np.ndarray) -> tuple[float, float]:
    """Return the BCa limits at LEVEL of a bootstrap distribution, (R,), around `value`.

    The acceleration is that of a jackknife over groups, (G,).
    """
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    bias = special.ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    around = left_out.mean() - left_out
    squares = (around**2).sum()
    acceleration = (around**3).sum() / (6 * squares**1.5) if squares else 0.0
    shifted = bias + special.ndtri(np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    levels = special.ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(drawn, levels)
    return min(float(low), value), max(float(high), value)
