"""The sentences below a table, at most four: the claims, the signs, the paper, and the runs.

docs/statistics.md explains the tests.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from moco_d2.benchmark.paper_tables import PaperRow, PaperTable, find_row
from moco_d2.benchmark.records.design import DESIGN_FILE
from moco_d2.benchmark.records.matching import BASELINES
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.statistics import LEAST_SEEDS, LEVEL, Comparison
from moco_d2.config.plain import flatten

if TYPE_CHECKING:
    from moco_d2.benchmark.tables.table import Pair

_PERCENT = f"{LEVEL:.0%}".replace("%", " %")
_MOST_NAMED = 3  # rows, seeds and older records that the sentence about the runs names
_LONGEST_VALUE, _LONGEST_RULE = 60, 400  # characters; the text of a record may be long


def on_paper(task: str, beside: Mapping[str, tuple[PaperTable, PaperRow] | None]) -> Iterable[str]:
    """Yield the sources of the published values, and why some are missing, in one sentence."""
    bands: dict[str, list[str]] = {}
    for initialization, published in beside.items():
        if published is not None:
            table, _ = published
            text = f"{table.source}; {_runs(table)}; {_spread(table)}"
            bands.setdefault(text, []).append(initialization)
    parts = [f"of {', '.join(names)} from {text}" for text, names in bands.items()]
    if bands:
        parts.append(f"within: chance explains the gap ({_PERCENT} band)")
    other = [name for name, row in beside.items() if row is None and find_row(task, name)]
    if other:
        parts.append(f"none for {', '.join(other)}, whose data or schedule is not the paper's")
    if not any(find_row(task, initialization) for initialization in beside):
        parts.append("the paper has no rows for these initializations")
    yield from _sentence("Paper values", parts)


def on_differences(
    baseline: str | None, highlight_from: float, *, measured: bool = True
) -> Iterable[str]:
    """Yield the meaning of parentheses, bold, brackets and p."""
    parts = [f"There is no {BASELINES[0]} run, so no cell has a difference to it"]
    if baseline is not None:
        rule = " and an order that the tests support" if measured else ""
        parts = [
            f"In parentheses: difference to {baseline}; bold: at least +{highlight_from}{rule}"
        ]
    if measured:
        parts.append(f"in brackets: {_PERCENT} confidence interval, not corrected")
        parts.append("p: corrected, and only where an order may be claimed")
    yield f"{'; '.join(parts)}."


def on_significance(
    pairs: Sequence["Pair"],
    columns: Sequence[str],
    initializations: int,
    declared: str,
    corrected_for: int,
) -> Iterable[str]:
    """Yield all orders that may be claimed from the table, in one sentence.

    Args:
        pairs: See Table.
        columns: See Table.
        initializations: Number of rows.
        declared: See Table.
        corrected_for: Number of comparisons, also of those that could not be tested.
    """
    if not pairs:
        if initializations > 1:
            yield f"{initializations} initializations are too many to compare all pairs."
        return
    tested = [c for pair in pairs for c in pair.comparisons if c and c.test]
    family = [c for c in tested if c.p_holm is not None]
    clear = _listed(pairs, columns, lambda c: c.supported)
    parts = clear or ["none"]
    if family:
        claimed = [
            column
            for i, column in enumerate(columns)
            if any(c and c.p_holm is not None for c in (pair.comparisons[i] for pair in pairs))
        ]
        if clear and not all(c.supported for c in tested):
            parts.append("of the other differences no order is claimed")
        if equal := _listed(pairs, columns, lambda c: c.equivalent and not c.supported):
            parts.append(f"surely closer than {family[0].margin:g} are {' and '.join(equal)}")
        if min(min(c.n) for c in family) < LEAST_SEEDS:
            parts.append(f"no order is claimed with fewer than {LEAST_SEEDS} seeds on both sides")
    if untested := _listed(pairs, columns, lambda c: c.test is None):
        parts.append(f"no spread to test against for {', '.join(untested)}")
    if welch := [
        f"{pair.label} and {pair.against}"
        for pair in pairs
        if any(c and c.test == "Welch" for c in pair.comparisons)
    ]:
        parts.append(
            f"Welch's t-test where seeds, configs or processes differ ({', '.join(welch)})"
        )
    parts += on_design(declared)
    where = f", {corrected_for} comparison(s) in {', '.join(claimed)}" if family else ""
    yield from _sentence(
        f"Orders that the tests support (corrected p < {1 - LEVEL:.2f}{where})", parts
    )


def on_design(declared: str) -> Iterable[str]:
    """Yield why the comparisons that may claim an order were not fixed beforehand, if so.

    Args:
        declared: See Table.
    """
    if declared == "differently":
        yield "the suites of these runs declare different comparisons, so the default ones count"
    elif declared.startswith("missing"):
        yield (
            f"the declaration of what may claim an order is {declared}, so the default comparisons "
            f"count; put {DESIGN_FILE} back into the folder of the suite"
        )
    elif declared.startswith("not that of"):
        yield (
            f"the declaration of what may claim an order is {declared}, whose notes (cell.json) "
            "name another one or cannot be read, so the default comparisons count; put their own "
            f"{DESIGN_FILE} back into the folder of the suite"
        )
    elif declared.startswith("unknown"):
        yield (
            f"the start is {declared}, so what may claim an order is not known to be declared "
            "beforehand"
        )
    elif declared == "by hand":
        yield (
            "the declaration of what may claim an order was edited by hand, so it is not known to "
            "be fixed beforehand"
        )
    elif declared.startswith("after"):
        yield (
            f"what may claim an order was declared {declared} had started, so it was not fixed "
            "beforehand"
        )


def on_runs(
    runs: Mapping[str, Sequence[Record]],
    metrics: Sequence[str],
    pairs: Sequence["Pair"],
    repeated: Iterable[str],
) -> Iterable[str]:
    """Yield what is unequal or missing among the runs, in one sentence.

    Args:
        runs: The runs by initialization.
        metrics: The metrics of the table.
        pairs: See Table.
        repeated: What the search for older records says.
    """
    again = [note.removesuffix(".") for note in repeated]
    more = [f"and {len(again) - _MOST_NAMED} more"] * (len(again) > _MOST_NAMED)
    parts = [*_about_runs(runs, metrics, pairs), *again[:_MOST_NAMED], *more]
    yield from _sentence("The runs", parts)


def _about_runs(
    runs: Mapping[str, Sequence[Record]], metrics: Sequence[str], pairs: Sequence["Pair"]
) -> Iterable[str]:
    for initialization, group in runs.items():
        empty = sum(any(r.metrics.get(m) is None for m in metrics) for r in group)
        if empty:
            yield f"{empty} of {len(group)} runs of {initialization} lack a metric"
        weights = {r.weights_sha256 for r in group if r.weights_sha256}
        if len(weights) > 1:
            yield f"those of {initialization} start from {len(weights)} different weights files"
    yield from _on_seeds(runs, pairs)
    yield from _on_tuning(runs)
    machines = _environments(r for group in runs.values() for r in group)
    different = [f"{k} ({', '.join(sorted(v))})" for k, v in machines.items() if len(v) > 1]
    if different:
        yield f"not the same for all: {', '.join(different)}"


def _on_seeds(runs: Mapping[str, Sequence[Record]], pairs: Sequence["Pair"]) -> Iterable[str]:
    """Yield the seeds that some rows lack, and what a difference is over."""
    seeds = {name: {r.seed for r in group} for name, group in runs.items()}
    every = {seed for of_row in seeds.values() for seed in of_row}
    rows: dict[tuple[int, ...], list[str]] = {}  # the seeds that are missing -> the rows
    for name, of_row in seeds.items():
        if lacking := tuple(sorted(every - of_row)):
            rows.setdefault(lacking, []).append(name)
    if not rows:
        return
    missing = [
        f"{_shortly(names)} {'lack' if len(names) > 1 else 'lacks'} "
        f"seed{'s' * (len(lacking) > 1)} {_shortly(lacking)}"
        for lacking, names in rows.items()
    ]
    said = f"the seeds differ ({_shortly(missing, '; ')})"
    if pairs:
        said += ", so a difference is over the seeds that both rows have"
    if any(c and c.test != "blocked" for pair in pairs for c in pair.comparisons):
        said += (
            ", and over all their runs if they have none in common, or if their configs or "
            "processes differ"
        )
    yield said


def _shortly(items: Iterable[object], separator: str = ", ") -> str:
    """Return the first of some items, and how many more there are."""
    texts = [str(item) for item in items]
    more = [f"and {len(texts) - _MOST_NAMED} more"] * (len(texts) > _MOST_NAMED)
    return separator.join([*texts[:_MOST_NAMED], *more])


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
        yield f"each row has the learning rate that is best by {rule}: {listed}"


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


def _sentence(subject: str, parts: Iterable[str]) -> Iterable[str]:
    parts = list(parts)
    if parts:
        yield f"{subject}: {'; '.join(parts)}."


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
