"""What a comparison can find, said before it starts."""

import math

from scipy import optimize, special, stats

from moco_d2.benchmark.paper import tables_named
from moco_d2.benchmark.statistics import LEVEL
from moco_d2.errors import UserError

POWER = 0.8


def detectable(seeds: int, comparisons: int) -> float | None:
    """Return the difference that a paired t-test finds with a probability of POWER.

    The unit is the standard deviation of the differences between two rows of the same seed. The
    level is that of the largest of `comparisons` differences after Holm's correction. None with
    fewer than two seeds.
    """
    if seeds < 2:
        return None
    freedom = seeds - 1
    critical = float(special.stdtrit(freedom, 1 - (1 - LEVEL) / 2 / comparisons))

    def missing(shift: float) -> float:
        return POWER - float(stats.nct.sf(critical, freedom, shift))

    largest = 4 * critical + 10
    while missing(largest) > 0:
        largest *= 2
    return optimize.brentq(missing, 0, largest) / math.sqrt(seeds)


def sentence(task: str, rows: int, seeds: int, metrics: int) -> str:
    """Return what `seeds` seeds of `rows` rows can find, in one sentence.

    Args:
        task: The task, whose published spread is used if there is one.
        rows, seeds: Size of the grid.
        metrics: Number of metrics in the table of the task.
    """
    comparisons = rows * (rows - 1) // 2 * metrics
    size = detectable(seeds, comparisons)
    if size is None:
        return "With one seed nothing can be tested: no order will be claimed."
    text = (
        f"{seeds} seeds find a difference of about {size:.1f} standard deviations between paired "
        f"runs ({POWER:.0%} of the time, corrected for {comparisons} comparisons)"
    )
    spread = published_spread(task)
    if spread is None:
        return f"{text}."
    return (
        f"{text}: {size * spread * math.sqrt(2):.1f} AP at the published spread of {spread:g} AP "
        "between seeds; shorter schedules and smaller sets spread more."
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
