"""What a comparison can find, said before it starts."""

import math

from scipy import optimize, special, stats

from moco_d2.benchmark.paper import tables_named
from moco_d2.benchmark.statistics import LEAST_SEEDS, LEVEL, MOST_POOLED
from moco_d2.benchmark.tables.comparison import claimed_pairs
from moco_d2.errors import UserError

POWER = 0.8


def detectable(seeds: int, rows: int, comparisons: int) -> float | None:
    """Return the difference that a table claims with a probability of POWER.

    The unit is the standard deviation between the seeds of a row, which is taken to be that of all
    rows. The test is that of statistics.Blocks, and the level that of the largest of `comparisons`
    differences after Holm's correction. None with fewer than LEAST_SEEDS seeds.
    """
    if seeds < LEAST_SEEDS:
        return None
    freedom = min(rows - 1, MOST_POOLED) * (seeds - 1)
    critical = float(special.stdtrit(freedom, 1 - (1 - LEVEL) / 2 / comparisons))

    def missing(shift: float) -> float:
        return POWER - float(stats.nct.sf(critical, freedom, shift))

    return float(optimize.brentq(missing, 0, 4 * critical + 10)) * math.sqrt(2 / seeds)


def sentence(task: str, rows: int, seeds: int, metrics: int = 1) -> str:
    """Return what `seeds` seeds of `rows` rows can find, in one sentence.

    Args:
        task: The task, whose published spread is used if there is one.
        rows, seeds: Size of the grid.
        metrics: Number of primary metrics of the task; one if it is not known.
    """
    comparisons = claimed_pairs(rows) * metrics
    size = detectable(seeds, rows, comparisons)
    if size is None:
        return f"With fewer than {LEAST_SEEDS} seeds no order will be claimed."
    text = (
        f"{seeds} seeds find a difference of about {size:.1f} standard deviations between seeds "
        f"({POWER:.0%} of the time, corrected for {comparisons} comparisons)"
    )
    spread = published_spread(task)
    if spread is None:
        return f"{text}."
    return (
        f"{text}: {size * spread:.1f} AP at the published spread of {spread:g} AP; shorter "
        "schedules and smaller sets spread more."
    )


def published_spread(task: str) -> float | None:
    """Return the published standard deviation of a task's AP between seeds, if there is one."""
    try:
        tables = tables_named(task)
    except UserError:
        return None
    for table in tables:
        if table.std and "bbox/AP" in table.metrics:
            return table.std[table.metrics.index("bbox/AP")]
    return None
