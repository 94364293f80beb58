"""Spread over seeds, tests between initializations, and agreement with a published number.

Welch's t and its degrees of freedom: Welch, Biometrika 34 (1947). Correction for several
comparisons: Holm, Scandinavian Journal of Statistics 6 (1979).
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scipy import special

#: Of confidence intervals and bands; 1 - LEVEL is the level of tests.
LEVEL = 0.95
# Points. Runs that agree better than this did not vary, and nothing can be tested against them.
_NO_SPREAD = 1e-9
# Standard deviation of the error of a number that was rounded to 0.1.
_ROUNDING = 0.1 / math.sqrt(12)


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (divisor n - 1) of n runs; `std` is None if n is 1."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """Mean of one set of runs minus that of another.

    `test` is "paired" or "Welch", `low` and `high` bound the difference at LEVEL and `p` is
    two-sided, neither corrected for other comparisons; `p_holm` is. All are None where there is no
    spread to test against.
    """

    difference: float
    n: tuple[int, int]
    test: str | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def supported(self) -> bool:
        """Whether a table may claim this order."""
        return self.p_holm is not None and self.p_holm < 1 - LEVEL


def summarize(values: Iterable[float]) -> Summary:
    """Mean, sample standard deviation and number of `values`.

    Raises:
        ValueError: there is no value.
    """
    values = list(values)
    if not values:
        raise ValueError("no value to summarize")
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


def paired(values: Sequence[float], others: Sequence[float]) -> Comparison:
    """Student's t-test of the differences between runs that share a seed, in the same order."""
    differences = summarize(a - b for a, b in zip(values, others, strict=True))
    n = (len(values), len(others))
    if differences.std is None:
        return Comparison(differences.mean, n)
    variance = differences.std**2 / differences.n
    return _tested("paired", differences.mean, n, [(variance, differences.n - 1)])


def welch(values: Sequence[float], others: Sequence[float]) -> Comparison:
    """Welch's t-test of independent runs, whose spreads may differ."""
    one, other = summarize(values), summarize(others)
    difference, n = one.mean - other.mean, (one.n, other.n)
    if one.std is None or other.std is None:
        return Comparison(difference, n)
    parts = [(one.std**2 / one.n, one.n - 1), (other.std**2 / other.n, other.n - 1)]
    return _tested("Welch", difference, n, parts)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's p-values, corrected for their number; their order is kept.

    Calling those below 5 % significant, the chance of one or more false calls among all of them is
    at most 5 %, however they depend on each other.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, i in enumerate(ascending):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def corrected(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """All comparisons that are read together, each with its `p_holm`."""
    comparisons = list(comparisons)
    tested = [(i, c.p) for i, c in enumerate(comparisons) if c.p is not None]
    for (i, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        comparisons[i] = replace(comparisons[i], p_holm=p)
    return comparisons


def agreement_band(
    summary: Summary, published_std: float | None = None, trials: int | None = None
) -> float | None:
    """The largest |mean - published value| that chance explains in LEVEL of all cases.

    It is Welch's interval for the difference of two means, ours over n runs and the published one
    over `trials` runs; and the interval of its rounding to 0.1, added in quadrature. Where one side
    has no spread of its own, the other's stands in for it; None where neither has.

    Args:
        published_std: standard deviation of single runs behind the published number, in points.
        trials: their number; one is assumed where the source does not say.
    """
    trials = trials or 1
    ours = None if summary.std is None else (summary.std, summary.n - 1)
    theirs = None if published_std is None else (published_std, max(trials - 1, 1))
    known = ours or theirs
    if known is None:
        return None
    if ours and theirs:
        parts = [(ours[0] ** 2 / summary.n, ours[1]), (theirs[0] ** 2 / trials, theirs[1])]
    else:
        std, freedom = known
        parts = [(std**2 * (1 / summary.n + 1 / trials), freedom)]
    # As one more part of the variance, known exactly, rounding would make a small spread of two or
    # three runs look well known too: the band then held 89 % instead of 95.
    return math.hypot(_half_width(parts), _half_width([(_ROUNDING**2, math.inf)]))


def least_detectable(n: int, comparisons: int) -> float:
    """The difference that a paired test of n >= 2 seeds finds, in its own standard deviations.

    The largest of `comparisons` differences, to which Holm's correction is strictest.
    """
    return float(special.stdtrit(n - 1, 1 - (1 - LEVEL) / 2 / comparisons)) / math.sqrt(n)


def _tested(
    test: str, difference: float, n: tuple[int, int], parts: Sequence[tuple[float, float]]
) -> Comparison:
    variance, freedom = _combined(parts)
    if variance < _NO_SPREAD**2:
        return Comparison(difference, n)
    half = _half_width(parts)
    p = 2 * float(special.stdtr(freedom, -abs(difference) / math.sqrt(variance)))
    return Comparison(difference, n, test, difference - half, difference + half, p)


def _half_width(parts: Sequence[tuple[float, float]]) -> float:
    variance, freedom = _combined(parts)
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)


def _combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Sum of independent variances, and its degrees of freedom after Welch and Satterthwaite.

    Args:
        parts: variance of a mean and the degrees of freedom it was estimated with.
    """
    variance = sum(part for part, _ in parts)
    if not variance:
        return 0.0, math.inf
    share = sum((part / variance) ** 2 / freedom for part, freedom in parts)
    return variance, (1 / share if share else math.inf)
