"""The sentences below a table: the tests, the claims that they support, and missing runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from moco_d2.benchmark.paper import PaperRow, PaperTable, find_row
from moco_d2.benchmark.records.matching import BASELINE
from moco_d2.benchmark.records.results import Record
from moco_d2.benchmark.statistics import LEAST_SEEDS, LEVEL, MARGIN, Comparison
from moco_d2.config.plain import flatten

if TYPE_CHECKING:
    from moco_d2.benchmark.tables.table import Pair

_PERCENT = f"{LEVEL:.0%}".replace("%", " %")
_TESTS = {
    "blocked": "t-test with seeds as blocks (one seed: the same data order and initial head)",
    "Welch": "Welch's t-test",
}
_LONGEST_VALUE, _LONGEST_RULE = 60, 400  # characters; the text of a record may be long


def on_paper(task: str, beside: Mapping[str, tuple[PaperTable, PaperRow] | None]) -> Iterable[str]:
    """Yield the sources of the published values, and why some are missing."""
    bands: dict[str, list[str]] = {}
    for initialization, published in beside.items():
        if published is not None:
            table, _ = published
            text = f"{table.source}; {_runs(table)}; {_spread(table)}"
            bands.setdefault(text, []).append(initialization)
    for text, names in bands.items():
        yield f"Paper values of {', '.join(names)}: {text}."
    if bands:
        yield (
            f"Within: the gap to the paper is inside the {_PERCENT} band of Welch's t for the "
            "difference between our mean and the paper's, which is rounded to 0.1. A side without "
            "a spread takes the spread of the other; without both there is no band."
        )
    other = [name for name, row in beside.items() if row is None and find_row(task, name)]
    if other:
        yield (
            f"{', '.join(other)}: other data or schedule than the paper's, "
            f"so no paper values are set beside {'them' if len(other) > 1 else 'it'}."
        )
    if not any(find_row(task, initialization) for initialization in beside):
        yield "The paper has no rows for these initializations, so no paper values are shown."


def on_differences(
    baseline: str | None, highlight_from: float, *, measured: bool = True
) -> Iterable[str]:
    """Yield the meaning of parentheses and of bold."""
    if baseline is None:
        yield f"There is no {BASELINE} run, so there are no differences."
        return
    rule = f"at least +{highlight_from}"
    rule += " and an order that the tests support" if measured else ""
    yield f"In parentheses: difference to {baseline}; bold: {rule}."


def on_significance(
    pairs: Sequence["Pair"], columns: Sequence[str], initializations: int
) -> Iterable[str]:
    """Yield the names of the tests, and all orders that may be claimed from the table."""
    if not pairs:
        if initializations > 1:
            yield f"{initializations} initializations are too many to compare all pairs."
        return
    compared = [c for pair in pairs for c in pair.comparisons if c]
    tested = [c for c in compared if c.test]
    untested = _listed(pairs, columns, lambda c: c.test is None)
    family = [c for c in tested if c.p_holm is not None]
    if family:
        yield " ".join(_on_tests(pairs, columns, tested, len(family)))
        clear = _listed(pairs, columns, lambda c: c.supported)
        rest = "; of the other differences no order is claimed"
        if not clear or all(c.supported for c in tested):
            rest = ""
        yield (
            f"Orders that the tests support (corrected p < {1 - LEVEL:.2f}): "
            f"{'; '.join(clear) or 'none'}{rest}."
        )
        equal = _listed(pairs, columns, lambda c: c.equivalent and not c.supported)
        if equal:
            yield (
                f"Differences that are surely below {MARGIN} (two one-sided tests, corrected "
                f"p < {1 - LEVEL:.2f}): {'; '.join(equal)}."
            )
        fewest = min(min(c.n) for c in family)
        if fewest < LEAST_SEEDS:
            yield (
                f"No order is claimed with fewer than {LEAST_SEEDS} seeds on both sides, however "
                "small p is."
            )
    if untested:
        yield (
            "No spread to test against (a single common seed, or the same difference with every "
            "seed), so no order is claimed: "
            f"{'; '.join(untested)}."
        )


def on_design(declared: str) -> Iterable[str]:
    """Yield why the comparisons that may claim an order were not fixed beforehand.

    Args:
        declared: See Table.
    """
    if declared == "differently":
        yield "The suites of these runs declare different comparisons, so the default ones count."
    elif declared == "by hand":
        yield (
            "The declaration of what may claim an order was edited by hand, so it is not known to "
            "be fixed beforehand."
        )
    elif declared.startswith("after"):
        yield (
            f"What may claim an order was declared {declared} had finished, so it was not fixed "
            "beforehand."
        )


def on_runs(runs: Mapping[str, Sequence[Record]], metrics: Sequence[str]) -> Iterable[str]:
    """Yield notes on missing metrics, several weights files and different machines."""
    for initialization, group in runs.items():
        empty = sum(any(r.metrics.get(m) is None for m in metrics) for r in group)
        if empty:
            yield (
                f"{initialization}: {empty} of {len(group)} runs lack a metric; "
                "n counts those that have it."
            )
        weights = {r.weights_sha256 for r in group if r.weights_sha256}
        if len(weights) > 1:
            yield f"{initialization}: its runs start from {len(weights)} different weights files."
    seeds = [{r.seed for r in group} for group in runs.values()]
    if any(one != seeds[0] for one in seeds[1:]):
        yield (
            "The initializations have different seeds: a difference is over the seeds that both "
            "have, or over all if none is common."
        )
    yield from _on_tuning(runs)
    machines = _environments(r for group in runs.values() for r in group)
    different = [f"{k} ({', '.join(sorted(v))})" for k, v in machines.items() if len(v) > 1]
    if different:
        yield f"Different between runs: {', '.join(different)}."


def _on_tuning(runs: Mapping[str, Sequence[Record]]) -> Iterable[str]:
    """Yield the learning rate of each row that one rule chose."""
    rates: dict[str, dict[str, str]] = {}
    for initialization, group in runs.items():
        for record in group:
            settings = flatten({key: record.config.get(key) for key in ("MOCO", "SOLVER")})
            if rule := settings.get("MOCO.TUNED"):
                rate = str(settings.get("SOLVER.BASE_LR"))[:_LONGEST_VALUE]
                rates.setdefault(str(rule)[:_LONGEST_RULE], {})[initialization] = rate
    for rule, chosen in rates.items():
        listed = ", ".join(f"{name} {rate}" for name, rate in chosen.items())
        yield f"Each row has the learning rate that is best by {rule}: {listed}."


def _environments(records: Iterable[Record]) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for record in records:
        named = {"hardware": record.hardware.get("name") or record.hardware.get("device")}
        for key, value in {**record.environment, **named}.items():
            text = str(value or "not recorded")[:_LONGEST_VALUE]
            values.setdefault(key, set()).add(text)
    return values


def _runs(table: PaperTable) -> str:
    return (
        f"mean of {table.trials} runs"
        if table.trials
        else "number of runs not stated, so one is assumed"
    )


def _spread(table: PaperTable) -> str:
    if table.std:
        return f"standard deviation {table.std_text}"
    remark = f"; {table.spread_remark}" if table.spread_remark else ""
    return f"spread not published, so ours is used{remark}"


def _on_tests(
    pairs: Sequence["Pair"],
    columns: Sequence[str],
    tested: Sequence[Comparison],
    family: int,
) -> Iterable[str]:
    kinds = {c.test for c in tested if c.test is not None}
    if len(kinds) == 1:
        (kind,) = kinds
        yield f"Differences: two-sided {_TESTS[kind]},"
    else:
        welch = [
            f"{p.label} and {p.against}"
            for p in pairs
            if any(c and c.test == "Welch" for c in p.comparisons)
        ]
        yield (
            f"Differences: two-sided {_TESTS['blocked']}, and {_TESTS['Welch']} where seeds, "
            f"configs or processes differ ({'; '.join(welch)}),"
        )
    claimed = [
        column
        for i, column in enumerate(columns)
        if any(c is not None and c.p_holm is not None for c in (p.comparisons[i] for p in pairs))
    ]
    others = "" if len(tested) == family else "; the other differences claim no order"
    yield (
        f"p after Holm's correction for {family} comparisons ({', '.join(claimed)}) and bold below "
        f"{1 - LEVEL:.2f}{others}; in brackets the {_PERCENT} confidence interval, not corrected."
    )
    flips = [c for c in tested if c.p_holm is not None and c.p_flip is not None]
    if flips:
        n = min(min(c.n) for c in flips)
        yield (
            f"The exact sign-flip test, which assumes no distribution, cannot go below p "
            f"{2 / 2**n:.2g} with {n} seeds; its p are in the CSV."
        )


def _listed(
    pairs: Sequence["Pair"], columns: Sequence[str], wanted: Callable[[Comparison], bool]
) -> list[str]:
    """Return ``moco above supervised in AP, AP75`` for each pair and direction."""
    orders: dict[tuple[str, str, str], list[str]] = {}
    for pair in pairs:
        for column, comparison in zip(columns, pair.comparisons, strict=True):
            if comparison and wanted(comparison):
                word = "and"
                if comparison.supported:
                    word = "above" if comparison.difference > 0 else "below"
                orders.setdefault((pair.label, word, pair.against), []).append(column)
    return [f"{' '.join(key)} in {', '.join(titles)}" for key, titles in orders.items()]
