"""What a comparison can find, said before it starts."""

import bisect
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import special

from moco_d2.benchmark.paper_tables import tables_named
from moco_d2.benchmark.records.design import DEFAULT, Design
from moco_d2.benchmark.statistics import LEAST_SEEDS, LEVEL, Blocks
from moco_d2.benchmark.tables.comparison import MOST_CLAIMED, claimed_pairs, planned_pairs
from moco_d2.errors import UserError

POWER = 0.8
_DRAWS = 1000  # the result is known to about 2 %
_MOST_SEEDS = 50
_NOT_COMPARED = "No two rows are compared, so no order will be claimed."


@functools.cache
def detectable(seeds: int, rows: int, comparisons: int, *, declared: int = 0) -> float | None:
    """Return the difference that a table claims with a probability of POWER.

    The unit is the standard deviation between the seeds of a row, which is taken to be that of all
    rows. The level is that of the largest of `comparisons` differences after Holm's correction. It
    is measured: tables of random runs go through statistics.Blocks, which explains `declared`. None
    with fewer than LEAST_SEEDS seeds.
    """
    if seeds < LEAST_SEEDS:
        return None
    rng = np.random.default_rng(0)
    level = 1 - (1 - LEVEL) / 2 / comparisons
    needed = []
    for _ in range(_DRAWS):
        values = rng.standard_normal((max(rows, 2), seeds))
        rows_of_seeds = {str(i): dict(enumerate(row)) for i, row in enumerate(values)}
        blocks = Blocks(rows_of_seeds, declared=declared)
        variance, freedom = blocks.uncertainty("0", "1")
        critical = float(special.stdtrit(freedom, level)) * math.sqrt(variance)
        needed.append(critical - float((values[0] - values[1]).mean()))
    return float(np.quantile(needed, POWER))


def seeds_for(difference: float, rows: int, comparisons: int, *, declared: int = 0) -> int | None:
    """Return how many seeds a table needs to claim a difference with a probability of POWER.

    None if it needs more than 50. `difference` is in standard deviations between seeds; for the
    other arguments see detectable.
    """
    numbers = range(LEAST_SEEDS, _MOST_SEEDS + 1)

    def found(seeds: int) -> float:
        return -(detectable(seeds, rows, comparisons, declared=declared) or math.inf)

    place = bisect.bisect_left(numbers, -difference, key=found)
    return numbers[place] if place < len(numbers) else None


def seeds_sentence(
    names: Iterable[str], metrics: int, design: Design, difference: float, spread: float | None
) -> str:
    """Return how many seeds of some rows find a difference, in one sentence.

    Args:
        names, metrics, design: See sentence.
        difference: The difference that is wanted, points.
        spread: Standard deviation of a row between seeds, points; None if it is not known.
    """
    if spread is None:
        return (
            "No spread between seeds is published for this task; with --spread, the plan says how "
            f"many seeds find a difference of {difference:g} AP."
        )
    names = list(names)
    comparisons, declared = _family(names, metrics, design)
    if not comparisons:
        return _NOT_COMPARED
    found = seeds_for(difference / spread, len(names), comparisons, declared=declared)
    seeds = f"more than {_MOST_SEEDS}" if found is None else str(found)
    return (
        f"A difference of {difference:g} AP needs {seeds} seeds at a spread of {spread:g} AP "
        f"({POWER:.0%} of the time, corrected for {comparisons} comparison(s))."
    )


def _family(names: Sequence[str], metrics: int, design: Design) -> tuple[int, int]:
    """Return the number of comparisons, 0 if no two rows are compared, and of declared ones."""
    if not 0 < len(claimed_pairs(names, design)) <= MOST_CLAIMED:
        return 0, 0
    comparisons = len(planned_pairs(names, design)) * metrics
    return comparisons, comparisons if design.comparisons else 0


def sentence(
    task: str, names: Iterable[str], seeds: int, metrics: int, design: Design = DEFAULT
) -> str:
    """Return what `seeds` seeds of some rows can find, in one sentence.

    Args:
        task: The task, whose published spread is used if there is one.
        names, seeds: The grid.
        metrics: Number of primary metrics of the task; see comparison.planned_metrics.
        design: What the suite declares.
    """
    names = list(names)
    comparisons, declared = _family(names, metrics, design)
    if not comparisons:
        return _NOT_COMPARED
    size = detectable(seeds, len(names), comparisons, declared=declared)
    if size is None:
        return f"With fewer than {LEAST_SEEDS} seeds no order will be claimed."
    text = (
        f"{seeds} seeds find a difference of about {size:.1f} standard deviations between seeds "
        f"({POWER:.0%} of the time, corrected for {comparisons} comparison(s))"
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
