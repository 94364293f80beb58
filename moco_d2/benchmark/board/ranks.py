"""Rank ranges: the ranks that the tests of a table allow for each of its rows."""

from moco_d2.benchmark.tables.table import Table


def rank_ranges(table: Table, metric: str) -> dict[str, tuple[int, int]]:
    """Return the best and the worst rank of each row that has a value; 1 is the highest value.

    A row is below every row whose order above it is supported, directly or through rows between
    them. The orders of a table are corrected together, so with 95 % confidence all its ranges hold
    the true rank. A row that was compared with nothing, or has fewer than three seeds, may have any
    rank. Compare Al Mohamad et al., Journal of the Royal Statistical Society A 185 (2022).

    Args:
        table: A table of run records.
        metric: One of its metrics.
    """
    column = table.metrics.index(metric)
    labels = [row.label for row in table.rows if row.cells[column].mean is not None]
    above = set()
    for pair in table.pairs:
        comparison = pair.comparisons[column]
        if comparison is not None and comparison.supported:
            order = (pair.label, pair.against)
            above.add(order if comparison.difference > 0 else order[::-1])
    for between in labels:
        above |= {
            (one, other)
            for one in labels
            for other in labels
            if (one, between) in above and (between, other) in above
        }
    # Rows with different seeds could contradict each other in a circle, which then says nothing.
    above = {(one, other) for one, other in above if (other, one) not in above}
    return {
        name: (
            1 + sum((other, name) in above for other in labels),
            len(labels) - sum((name, other) in above for other in labels),
        )
        for name in labels
    }
