"""Mean and spread over seeds, and when a difference is larger than the spread."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (divisor n - 1) of n runs; `std` is None if n is 1."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean minus the baseline's, and the combined standard deviation.

    `spread` is None if either side is a single run.
    """

    value: float
    spread: float | None


def summarise(values: Iterable[float]) -> Summary:
    """Mean, sample standard deviation and number of `values`.

    Raises:
        ValueError: there is no value.
    """
    values = list(values)
    if not values:
        raise ValueError("no value to summarise")
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


def difference(summary: Summary, baseline: Summary) -> Difference:
    """`summary` minus `baseline` with the combined standard deviation sqrt(s1^2 + s2^2).

    That is the standard deviation of the difference between one run of each, if independent.
    """
    value = summary.mean - baseline.mean
    if summary.std is None or baseline.std is None:
        return Difference(value, None)
    return Difference(value, math.hypot(summary.std, baseline.std))


def supported(difference: Difference) -> bool:
    """Whether |difference| is larger than the combined standard deviation sqrt(s1^2 + s2^2).

    A rule for what a table may claim, not a significance test. Without a spread nothing is
    supported.
    """
    return difference.spread is not None and abs(difference.value) > difference.spread
