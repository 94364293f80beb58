"""Spread over seeds, tests between initializations, and agreement with a published number.

Blocks compares rows whose seeds are blocks: the two-way analysis of variance without interaction
(Fisher, The Design of Experiments, 1935), with a variance that is never below that of the rows
compared. The source of Welch's t and its degrees of freedom is Welch, Biometrika 34 (1947).
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from moco_d2.benchmark.multiplicity import holm

#: Level of confidence intervals and bands. Tests have the level 1 - LEVEL.
LEVEL = 0.95
# Points. Runs that differ less than this have no spread, so nothing can be tested against them.
_NO_SPREAD = 1e-9
#: Points. Rows whose difference is surely smaller are called equivalent.
MARGIN = 0.5
#: With fewer seeds no order is claimed, however small p is.
LEAST_SEEDS = 3
#: The residual counts with the degrees of freedom of at most so many rows beside one: more rows do
#: not make the spread of these two better known.
MOST_POOLED = 5
# In a declared family, the degrees of freedom of other rows count with a power of the share that
# they explain: the smallest of 1, 2 and 4 that holds 5 %. Few comparisons need the highest.
_FEW, _POWER_OF_FEW, _POWER_OF_MORE = 2, 4, 2
_MOST_FLIPPED = 12  # seeds; with more, the sign-flip test agrees with t
# Standard deviation of the error of a number that was rounded to 0.1.
_ROUNDING = 0.1 / math.sqrt(12)


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (divisor n - 1) of n runs; `std` is None if n is 1."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


@dataclass(frozen=True)
class Comparison:
    """Mean of one set of runs minus the mean of another.

    `test` is "blocked", "paired" or "Welch". `low` and `high` bound the difference at LEVEL. `p` is
    two-sided. Only `p_holm` is corrected for other comparisons; it is None for a comparison that is
    not in the family of those that may claim an order. All of them are None if there is no spread
    to test against. `p_flip` is that of the exact sign-flip test over common seeds. `p_margin` is
    that of two one-sided tests of a difference of `margin` or more (Schuirmann, Journal of
    Pharmacokinetics and Biopharmaceutics 15, 1987), and `p_margin_holm` is corrected like p_holm.
    `variance` of the difference is known with `freedom` degrees of freedom.
    """

    difference: float
    n: tuple[int, int]
    test: str | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    p_flip: float | None = None
    p_margin: float | None = None
    p_margin_holm: float | None = None
    margin: float = MARGIN
    variance: float | None = None
    freedom: float | None = None

    @property
    def equivalent(self) -> bool:
        """Whether the tests support that the difference is smaller than `margin`."""
        return self._holds(self.p_margin_holm)

    @property
    def supported(self) -> bool:
        """Whether the tests support this order, so that a table may claim it."""
        return self._holds(self.p_holm)

    def _holds(self, p: float | None) -> bool:
        return p is not None and p < 1 - LEVEL and min(self.n) >= LEAST_SEEDS

    def reversed(self) -> "Comparison":
        """Return the comparison with the two sets exchanged."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return replace(self, difference=-self.difference, n=self.n[::-1], low=low, high=high)


def summarize(values: Iterable[float]) -> Summary:
    """Return mean, sample standard deviation and number of `values`.

    Raises:
        ValueError: If there is no value.
    """
    values = list(values)
    if not values:
        raise ValueError("no value to summarize")
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


class Blocks:
    """Comparisons of rows that share their seeds, each of which is a block.

    A seed gives all rows the same data order and the same initial head. What is common to a seed is
    removed from all rows, and the residual tells the spread of all of them together. The variance
    of a difference is the largest of three: that of the pooled residual, and the means over the
    pairs of either row. So many rows give power where their spreads agree, and a row that spreads
    more than the others is compared with its own spread. That of the pair alone does not count:
    three seeds tell it badly. The rule depends on no p. A run that is missing changes the number of
    common seeds, and nothing else.

    That holds the level of a family of all rows, in which a noisy pair is one of many. A family
    that a suite declares may be this pair alone, so there its own spread counts, too.

    Examples:
    ::
        blocks = Blocks({"moco": {1: 55.8, 2: 56.1, 3: 55.7}, "supervised": {1: 53.4, 2: 53.7}})
        blocks.compare("moco", "supervised")  # over the seeds 1 and 2
    """

    def __init__(
        self,
        rows: Mapping[str, Mapping[int, float]],
        *,
        margin: float = MARGIN,
        declared: int = 0,
    ):
        """
        Args:
            rows: The value of each seed of each row.
            margin: See Comparison.
            declared: Number of comparisons in a family that a suite declares; 0 for the default.
        """
        self._margin, self._declared = margin, declared
        seeds = {seed: i for i, seed in enumerate(sorted({s for r in rows.values() for s in r}))}
        self._index = {name: i for i, name in enumerate(rows)}
        self._values = np.full((len(rows), len(seeds)), np.nan)
        for name, values in rows.items():
            for seed, value in values.items():
                self._values[self._index[name], seeds[seed]] = value
        self._residual, self._freedom = _two_way(self._values)
        self._around: dict[str, float] = {}  # row -> mean variance of its differences

    def compare(self, row: str, other: str) -> Comparison:
        """Return the comparison of two rows over the seeds that both have.

        Raises:
            ValueError: If they have no seed in common.
        """
        differences = self._differences(row, other)
        n = len(differences)
        if not n:
            raise ValueError(f"{row} and {other} have no seed in common")
        mean = float(differences.mean())
        if n < 2:
            return Comparison(mean, (n, n))
        tested = _tested("blocked", mean, (n, n), [self.uncertainty(row, other)], self._margin)
        return replace(tested, p_flip=sign_flip(differences)) if tested.test else tested

    def uncertainty(self, row: str, other: str) -> tuple[float, float]:
        """Return the variance of the mean difference of two rows, and its degrees of freedom.

        Degrees of freedom beyond those of the two rows count as far as the pooled residual explains
        the variance. The rows need two seeds in common.
        """
        differences = self._differences(row, other)
        n = len(differences)
        pooled, around = 2 * self._residual, map(self._mean_variance, (row, other))
        own = [float(differences.var(ddof=1))] if self._declared else []
        variance = max(pooled, *around, *own)
        more = max(0, min(self._freedom, MOST_POOLED * (n - 1)) - (n - 1))
        share = pooled / variance if variance else 1.0
        if self._declared:
            share **= _POWER_OF_FEW if self._declared <= _FEW else _POWER_OF_MORE
        return variance / n, n - 1 + more * share

    def _differences(self, row: str, other: str) -> np.ndarray:
        differences = self._values[self._index[row]] - self._values[self._index[other]]
        return differences[~np.isnan(differences)]

    def _mean_variance(self, row: str) -> float:
        """Return the mean variance of the differences between a row and each other row."""
        if row not in self._around:
            index = self._index[row]
            differences = self._values[index] - np.delete(self._values, index, axis=0)
            counts = (~np.isnan(differences)).sum(axis=1)
            differences, counts = differences[counts > 1], counts[counts > 1]
            there = ~np.isnan(differences)
            # numpy's nanmean and nansum compute the same in twice the time.
            means = np.where(there, differences, 0.0).sum(axis=1) / counts
            squares = np.where(there, (differences - means[:, None]) ** 2, 0.0).sum(axis=1)
            self._around[row] = float((squares / (counts - 1)).mean())
        return self._around[row]


def _two_way(values: np.ndarray) -> tuple[float, int]:
    """Return variance and degrees of freedom of the residual of value = row + seed + residual.

    Args:
        values: (rows, seeds), NaN where a run is missing.
    """
    there = ~np.isnan(values)
    values, there = values[there.any(axis=1)], there[there.any(axis=1)]
    counts = there.sum(axis=1, keepdims=True)
    means = np.where(there, values, 0.0).sum(axis=1, keepdims=True) / counts
    around = np.where(there, values - means, 0.0)
    # The rows are eliminated from the normal equations, which leaves one unknown per seed.
    matrix = np.diag(there.sum(axis=0).astype(float)) - (there / counts).T @ there
    seeds, _, rank, _ = np.linalg.lstsq(matrix, around.sum(axis=0), rcond=1e-9)
    effect = np.where(there, seeds - there @ seeds[:, None] / counts, 0.0)
    freedom = int(there.sum()) - len(values) - int(rank)
    return (float(((around - effect) ** 2).sum()) / freedom, freedom) if freedom > 0 else (0.0, 0)


def sign_flip(differences: Sequence[float] | np.ndarray) -> float | None:
    """Return the two-sided p of the exact sign-flip test of paired differences.

    It assumes no distribution, only symmetry: the share of all signs of the differences whose mean
    is as far from 0. Its smallest value is 2 / 2^n. None with more than 12 differences.
    """
    n = len(differences)
    if not 0 < n <= _MOST_FLIPPED:
        return None
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    sums = np.abs(signs @ np.asarray(differences, dtype=float))
    return float((sums >= sums[0] * (1 - 1e-12)).mean())


def paired(values: Sequence[float], others: Sequence[float]) -> Comparison:
    """Apply Student's t-test to differences between runs with equal seeds, in the same order."""
    differences = summarize(a - b for a, b in zip(values, others, strict=True))
    n = (len(values), len(others))
    if differences.std is None:
        return Comparison(differences.mean, n)
    variance = differences.std**2 / differences.n
    return _tested("paired", differences.mean, n, [(variance, differences.n - 1)])


def welch(
    values: Sequence[float], others: Sequence[float], *, margin: float = MARGIN
) -> Comparison:
    """Apply Welch's t-test to independent runs, whose spreads may differ."""
    one, other = summarize(values), summarize(others)
    difference, n = one.mean - other.mean, (one.n, other.n)
    if one.std is None or other.std is None:
        return Comparison(difference, n)
    parts = [(one.std**2 / one.n, one.n - 1), (other.std**2 / other.n, other.n - 1)]
    return _tested("Welch", difference, n, parts, margin)


def corrected(
    comparisons: Iterable[Comparison], planned: int = 0, possible: Sequence[int] = ()
) -> list[Comparison]:
    """Return comparisons that are read together, a family, each with its `p_holm` and
    `p_margin_holm`. Orders and equivalences are corrected each by themselves.

    Args:
        comparisons: Those that could be tested count; the others stay without a corrected p.
        planned: At least so many are corrected for. A comparison that a missing run makes
            untestable must not make it easier for the others.
        possible: See holm; for orders only.
    """
    comparisons = list(comparisons)
    for i, p in _holm_of([c.p for c in comparisons], planned, possible):
        comparisons[i] = replace(comparisons[i], p_holm=p)
    for i, p in _holm_of([c.p_margin for c in comparisons], planned):
        comparisons[i] = replace(comparisons[i], p_margin_holm=p)
    return comparisons


def _holm_of(
    p_values: Sequence[float | None], planned: int, possible: Sequence[int] = ()
) -> Iterable[tuple[int, float]]:
    """Return indices and corrected values of those that are not None."""
    tested = [(i, p) for i, p in enumerate(p_values) if p is not None]
    absent = [1.0] * (planned - len(tested))
    values = holm([*(p for _, p in tested), *absent], possible)
    return zip((i for i, _ in tested), values, strict=False)


def agreement_band(
    summary: Summary, published_std: float | None = None, trials: int | None = None
) -> float | None:
    """Return the largest |mean - published value| that chance explains in LEVEL of all cases.

    It is Welch's interval for the difference between our mean of n runs and the published mean of
    `trials` runs, plus in quadrature the interval for rounding to 0.1. A side without a spread
    takes the spread of the other side. The result is None if neither side has a spread.

    Args:
        summary: Our runs.
        published_std: Standard deviation of the published single runs, in points.
        trials: Number of published runs; one is assumed if the source does not say it.
    """
    trials = trials or 1
    measured = None if summary.std is None else (summary.std**2, summary.n - 1)
    published = None if published_std is None else (published_std**2, max(trials - 1, 1))
    if measured and published:
        parts = [(measured[0] / summary.n, measured[1]), (published[0] / trials, published[1])]
    elif known := measured or published:
        parts = [(known[0] * (1 / summary.n + 1 / trials), known[1])]
    else:
        return None
    # Rounding is not a further part of the variance: its infinite degrees of freedom would make the
    # spread of two or three runs look well known. The band then held 89 % of cases instead of 95 %.
    return math.hypot(_half_width(parts), _half_width([(_ROUNDING**2, math.inf)]))


def _tested(
    test: str,
    difference: float,
    n: tuple[int, int],
    parts: Sequence[tuple[float, float]],
    margin: float = MARGIN,
) -> Comparison:
    variance, freedom = _combined(parts)
    if variance < _NO_SPREAD**2:
        return Comparison(difference, n)
    half = _half_width(parts)
    error = math.sqrt(variance)
    p = 2 * float(special.stdtr(freedom, -abs(difference) / error))
    p_margin = float(special.stdtr(freedom, (abs(difference) - margin) / error))
    low, high = difference - half, difference + half
    known = {"margin": margin, "variance": variance, "freedom": freedom}
    return Comparison(difference, n, test, low, high, p, p_margin=p_margin, **known)


def _half_width(parts: Sequence[tuple[float, float]]) -> float:
    variance, freedom = _combined(parts)
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)


def _combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return a sum of independent variances with its Welch-Satterthwaite degrees of freedom.

    Args:
        parts: Pairs of the variance of a mean and the degrees of freedom of its estimate.
    """
    variance = sum(part for part, _ in parts)
    if not variance:
        return 0.0, math.inf
    inverse = sum((part / variance) ** 2 / freedom for part, freedom in parts)
    return variance, (1 / inverse if inverse else math.inf)
