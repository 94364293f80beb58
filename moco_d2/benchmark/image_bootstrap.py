"""AP of weighted test images, and the part of a difference's uncertainty that comes from them.

A bootstrap draws the images of a test set again, with replacement. Here an image that is drawn w
times has the weight w, and nothing is matched again: the detections keep the evaluator's order, and
sums of weights replace counts. So all copies of a detection follow one another, which decides only
where detections of one image and class have equal scores. Only true positives can be corners of the
upper hull of a precision-recall curve, so a curve has a point for each of them.

Shapes: R resamples, I images, S runs, T = 10 IoU thresholds, K classes.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from moco_d2.benchmark.statistics import LEVEL
from moco_d2.records.per_image import THRESHOLDS, PerImage

#: The metrics that follow from a file of images, and the thresholds that they average.
AVERAGED = {"AP": slice(0, THRESHOLDS), "AP50": slice(0, 1), "AP75": slice(5, 6)}
RESAMPLES = 1000
#: Groups of images that are left out in turn to estimate the acceleration of BCa.
GROUPS = 100
_RECALLS = {"coco": np.linspace(0.0, 1.0, 101), "voc_2007": np.arange(0.0, 1.1, 0.1)}


class _Curve(NamedTuple):
    """The true positives of one threshold, by class and falling score.

    Attributes:
        image, label: Image and class of each.
        end: Number of detections up to and with each one.
        last: The true positive with which each one's point of the curve ends; it is itself, unless
            equal scores are one point.
        ignored: Images of the ignored detections.
        ignored_end: Number of ignored detections up to each true positive.
        ignored_begin: (K,) number of ignored detections of the classes before.
        begin: (K + 1,) where the true positives of each class begin.
    """

    image: np.ndarray
    label: np.ndarray
    end: np.ndarray
    last: np.ndarray
    ignored: np.ndarray
    ignored_end: np.ndarray
    ignored_begin: np.ndarray
    begin: np.ndarray


class WeightedAP:
    """Computes the APs of one output of a run for any weights of the images.

    Examples:
    ::
        outputs, _ = read_per_image(Path("run/per_image.npz"))
        WeightedAP(outputs["bbox"])(np.ones(images))  # AP, AP50 and AP75 of the run
    """

    def __init__(self, part: PerImage):
        self._part = part
        self._one_point = part.metric.endswith("_exact")
        self._recalls = _RECALLS.get(part.metric.removesuffix("_exact"))
        self._empty = np.bincount(part.truth_class, minlength=part.classes) == 0
        label = np.repeat(np.arange(part.classes), np.diff(part.start))
        self._curves = [self._curve(label, 1 << t) for t in range(THRESHOLDS)]
        # No detection after the last true positive of all thresholds is looked at.
        ends = [curve.end[-1] for curve in self._curves if len(curve.end)]
        self._image = part.image[: max(ends, default=0)].astype(np.intp)
        self._truth_image = part.truth_image.astype(np.intp)

    def _curve(self, label: np.ndarray, bit: int) -> _Curve:
        part = self._part
        (true,) = np.nonzero(part.true & bit)
        (ignored,) = np.nonzero(part.ignored & bit)
        end, last = true + 1, np.arange(len(true))
        if self._one_point:
            key = np.stack((label, part.score))
            group = np.cumsum(np.append(True, (key[:, 1:] != key[:, :-1]).any(axis=0)))
            end = np.searchsorted(group, group[true], "right")
            last = np.searchsorted(group[true], group[true], "right") - 1
        return _Curve(
            part.image[true].astype(np.intp),
            label[true],
            end,
            last,
            part.image[ignored].astype(np.intp),
            np.searchsorted(ignored, end),
            np.searchsorted(ignored, part.start[:-1]),
            np.searchsorted(label[true], np.arange(part.classes + 1)),
        )

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Return AP, AP50 and AP75 in percent, (3,).

        Args:
            weights: (I,) how often each image counts, whole numbers.
        """
        aps = self.of_classes(weights.astype(np.int64))
        # The same classes have objects at all thresholds.
        means = aps[:, ~np.isnan(aps[0])].mean(axis=1) if not np.isnan(aps[0]).all() else aps[:, 0]
        return 100 * np.array([means[chosen].mean() for chosen in AVERAGED.values()])

    def of_classes(self, weights: np.ndarray) -> np.ndarray:
        """Return the AP of each threshold and class, (T, K), in [0, 1]. It is NaN for a class
        without objects, except that VOC's mean at 11 recalls counts a class that no image has as 0.
        """
        part = self._part
        positives = np.bincount(
            part.truth_class,
            weights=weights[self._truth_image] * part.truth_count,
            minlength=part.classes,
        )
        seen = np.concatenate(([0], np.cumsum(weights[self._image])))
        counts = self._needed(positives)
        aps = np.stack(
            [self._average(curve, weights, seen, positives, counts) for curve in self._curves]
        )
        aps[:, positives == 0] = np.nan
        if part.metric.startswith("voc_2007"):
            aps[:, self._empty] = 0.0
        return aps

    def _needed(self, positives: np.ndarray) -> np.ndarray:
        """Return the smallest number of true positives that reaches each recall, (K, recalls)."""
        if self._recalls is None:
            return np.empty((len(positives), 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            needed = np.ceil(self._recalls * positives[:, None])
            # The product may be rounded across a whole number; the quotient is what counts.
            needed -= (needed - 1) / positives[:, None] >= self._recalls
            needed += needed / positives[:, None] < self._recalls
        return needed

    def _average(
        self,
        curve: _Curve,
        weights: np.ndarray,
        seen: np.ndarray,
        positives: np.ndarray,
        needed: np.ndarray,
    ) -> np.ndarray:
        """Return the AP of each class at one threshold, (K,)."""
        K = len(positives)
        if not len(curve.image):
            return np.zeros(K)
        own = weights[curve.image]
        sums = np.cumsum(own)
        true = sums[curve.last]
        ignored = np.concatenate(([0], np.cumsum(weights[curve.ignored])))
        counted = seen[curve.end] - ignored[curve.ignored_end]
        # All sums run over the classes before, too.
        start = self._part.start[:-1]
        start_seen = seen[np.minimum(start, len(seen) - 1)]
        before = np.concatenate(([0], sums))[curve.begin[:-1]]
        true = true - before[curve.label]
        counted = counted - (start_seen - ignored[curve.ignored_begin])[curve.label]
        precision = np.divide(true, counted, out=np.zeros(len(true)), where=counted > 0)
        # The largest precision from each point to the end of its class: classes further to the
        # front are lifted above those behind them, so one accumulation serves all.
        lift = 2.0 * (K - curve.label)
        hull = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
        if self._recalls is None:
            share = np.divide(own, positives[curve.label], out=np.zeros(len(own)), where=own > 0)
            return np.bincount(curve.label, weights=share * hull, minlength=K)
        at = np.searchsorted(sums, before[:, None] + needed)
        at = np.maximum(at, curve.begin[:-1, None])
        reached = at < curve.begin[1:, None]
        return np.where(reached, np.append(hull, 0.0)[np.where(reached, at, -1)], 0.0).mean(axis=1)


class Replicates(NamedTuple):
    """The APs of one output of a run: AP, AP50, AP75 in percent.

    Attributes:
        point: (3,) of the test set.
        drawn: (R, 3) of resampled images.
        left_out: (GROUPS, 3) without one group of images.
    """

    point: np.ndarray
    drawn: np.ndarray
    left_out: np.ndarray


def replicates(part: PerImage, resamples: int = RESAMPLES, seed: int = 0) -> Replicates:
    """Return the APs of a run for images that are drawn again.

    Runs with the same number of images get the same draws, so that their differences are paired.
    """
    ap, images = WeightedAP(part), part.images
    rng = np.random.default_rng(seed)
    group = rng.permutation(images) % min(GROUPS, images)
    weights = (np.bincount(rng.integers(0, images, images), minlength=images)
               for _ in range(resamples))  # fmt: skip
    return Replicates(
        ap(np.ones(images)),
        np.array([ap(drawn) for drawn in weights]),
        np.array([ap(group != left) for left in range(group.max() + 1)]),
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


def uncertainty(
    drawn: np.ndarray,
    point: np.ndarray,
    left_out: np.ndarray,
    variance: float,
    freedom: float,
) -> Uncertainty:
    """Combine the part of the seeds with that of the images.

    A bootstrap over three to five seeds is too narrow, so the part of the seeds comes from the
    test between the rows, which knows how little is known about it. The part of the images is a
    bootstrap with BCa's limits (Efron, JASA 82, 1987). What is due to one seed on these images is
    in both, so it is taken from the second. The sum has the degrees of freedom of Welch and
    Satterthwaite.

    Args:
        drawn: (R, S) value of each resample and seed.
        point: (S,) value of each seed on the test set.
        left_out: (G, S) value without each group of images.
        variance, freedom: Variance of the mean over seeds, and degrees of freedom of its estimate.
    """
    value, means = float(point.mean()), drawn.mean(axis=1)
    own = float((drawn - point).var(axis=1, ddof=1).mean()) / len(point) if len(point) > 1 else 0.0
    total = float(means.var(ddof=1))
    share = max(total - own, 0.0) / total if total else 0.0
    half = special.ndtri((1 + LEVEL) / 2)
    limits = []
    for limit in bca_limits(means, value, left_out.mean(axis=1)):
        images = share * ((limit - value) / half) ** 2
        both = variance + images
        degrees = freedom * (both / variance) ** 2 if variance else math.inf
        limits.append(float(special.stdtrit(degrees, (1 + LEVEL) / 2)) * math.sqrt(both))
    images = share * total
    return Uncertainty(
        value, value - limits[0], value + limits[1],
        images / (images + variance) if images + variance else 0.0,
    )  # fmt: skip


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
