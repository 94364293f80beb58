"""Corrections of p for several comparisons that are read together.

The sources are Holm, Scandinavian Journal of Statistics 6 (1979), and Shaffer, Journal of the
American Statistical Association 81 (1986).
"""

import functools
from collections.abc import Iterator, Sequence

# With three rows, one comparison would be left without a correction when the others have an order.
_FEWEST_ROWS = 4
_MOST_ROWS = 7  # they fall into equal ones in 877 ways


def holm(p_values: Sequence[float], possible: Sequence[int] = ()) -> list[float]:
    """Return p-values after Holm's correction, in the same order.

    If all values below 5 % are called significant, the chance of at least one false call is at most
    5 %, whatever the dependence between the tests.

    Args:
        p_values: The p-values.
        possible: The numbers of differences that can be none at the same time; see possible_equal.
            With them it is Shaffer's correction, which never claims less. Any number if empty.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, i in enumerate(ascending):
        left = len(p_values) - rank
        count = max((n for n in possible if 0 < n <= left), default=left)
        largest = max(largest, min(1.0, count * p_values[i]))
        corrected[i] = largest
    return corrected


def possible_equal(pairs: Sequence[tuple[str, str]], metrics: int = 1) -> tuple[int, ...]:
    """Return how many of some differences can be none at the same time.

    If A is B, and B is C, then A is C: of the three differences of three rows none, one or three
    are none, never two. The result is empty for fewer than four rows and for more than seven.

    Args:
        pairs: The rows that are compared.
        metrics: In so many metrics, each with equal rows of its own.
    """
    rows = {name: i for i, name in enumerate(dict.fromkeys(n for pair in pairs for n in pair))}
    if not _FEWEST_ROWS <= len(rows) <= _MOST_ROWS:
        return ()
    edges = tuple(sorted((rows[one], rows[other]) for one, other in pairs))
    one_metric = _counts(edges, len(rows))
    counts = {0}
    for _ in range(metrics):
        counts = {a + b for a in counts for b in one_metric}
    return tuple(sorted(counts))


@functools.cache
def _counts(pairs: tuple[tuple[int, int], ...], rows: int) -> frozenset[int]:
    return frozenset(sum(of[a] == of[b] for a, b in pairs) for of in _partitions(rows))


def _partitions(rows: int) -> Iterator[tuple[int, ...]]:
    """Yield the group of each row, for each way to divide rows into groups."""
    if not rows:
        yield ()
        return
    for groups in _partitions(rows - 1):
        for group in range(max(groups, default=-1) + 2):
            yield (*groups, group)
