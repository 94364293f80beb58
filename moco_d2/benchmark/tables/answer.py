"""The answer of a table in one sentence: which initialization is above which, and by how much."""

import itertools
from collections.abc import Iterable, Sequence

from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.statistics import Comparison
from moco_d2.benchmark.tables.cell_text import p_value, signed
from moco_d2.benchmark.tables.comparison import (
    REFERENCES,
    claimed_pairs,
    measured_tables,
    primary_metrics,
)
from moco_d2.benchmark.tables.table import Table

# The names of the primary metrics in a sentence. A table with boxes only says "AP", as the field
# does.
_METRICS = {
    "bbox/AP": "box AP",
    "segm/AP": "mask AP",
    "keypoints/AP": "keypoint AP",
    "densepose_gps/AP": "DensePose AP",
    "sem_seg/mIoU": "mIoU",
}
_NAMES = {"moco": "MoCo"}
# With more rows than this, a sentence with all pairs is longer than the table.
_NOTHING = 0.1  # points
_MOST_PAIRS = 6


def answers(records: Iterable[Record]) -> list[str]:
    """Return one sentence per task, from the same statistics as the tables of `records`.

    An order, or an equivalence, is claimed only where the tests support it after Holm's
    correction. The interval in brackets has 95 % confidence and is not corrected. An example is
    "voc_C4: MoCo is above random in AP by 8.6 [6.1, 11.1] (5 seeds, p 0.0003); no order between
    MoCo and supervised is supported in AP (difference -1.2 [-3.0, +0.6], 5 seeds, p 0.21)."
    """
    return [answer(table) for table in measured_tables(records)]


def answer(table: Table) -> str:
    """Return the sentence of answers() for one table of run records."""
    metrics = headline_metrics(table)
    pairs = headline_pairs(table)
    if len(pairs) > _MOST_PAIRS:  # the sentence has the largest of the supported orders first
        first = next(iter(metrics), "")
        pairs = sorted(pairs, key=lambda pair: _rank(table.comparison(pair[0], pair[1], first)))
    clauses = [
        clause
        for label, against in pairs[:_MOST_PAIRS]
        for clause in _clauses(table, label, against, metrics)
    ]
    if len(pairs) > _MOST_PAIRS:
        more = len(pairs) - _MOST_PAIRS
        clauses.append(f"the table has {more} more comparison{'s' * (more > 1)}")
    if _found_nothing(table, metrics):
        clauses = ["no detector found anything (no row has 0.1 AP), so the schedule was too short"]
    if not clauses:
        names = _joined([_name(row.label) for row in table.rows])
        clauses.append(f"nothing is compared, there are runs from {names}")
    marked = [f"{_name(row.label)} ({', '.join(row.marks)})" for row in table.rows if row.marks]
    if marked:
        clauses.append(f"mind the footnotes on {', '.join(marked)}")
    return f"{table.task}: {'; '.join(clauses)}."


def _found_nothing(table: Table, metrics: Iterable[str]) -> bool:
    places = [table.metrics.index(metric) for metric in metrics]
    means = [row.cells[i].mean for row in table.rows for i in places]
    return bool(means) and all(mean is not None and mean < _NOTHING for mean in means)


def _rank(comparison: Comparison | None) -> tuple[bool, float]:
    if comparison is None:
        return True, 0.0
    return not comparison.supported, -abs(comparison.difference)


def headline_metrics(table: Table) -> dict[str, str]:
    """Return the metrics that answer the question of the table, with their names in a sentence."""
    primary = primary_metrics(table.metrics, table.design)
    if primary == ["bbox/AP"]:
        return {"bbox/AP": "AP"}
    columns = dict(zip(table.metrics, table.columns, strict=True))
    return {metric: _METRICS.get(metric, columns[metric]) for metric in primary}


def headline_pairs(table: Table) -> list[tuple[str, str]]:
    """Return the rows that were compared, as pairs in the order in which a sentence names them.

    They are those of the design. By default each checkpoint comes first, against random and
    supervised, then the checkpoints against each other. Only without a checkpoint, or without the
    other two, all rows are paired.
    """
    labels = [row.label for row in table.rows]
    references = [name for name in REFERENCES if name in labels]
    checkpoints = [name for name in labels if name not in references]
    pairs = [(name, reference) for name in checkpoints for reference in references]
    pairs += [(b, a) for a, b in itertools.combinations(checkpoints or labels, 2)]
    if declared := claimed_pairs(labels, table.design) if table.design.comparisons else []:
        pairs = declared
    # A table of many rows compares each with supervised only.
    compared = {frozenset((pair.label, pair.against)) for pair in table.pairs}
    return [pair for pair in pairs if frozenset(pair) in compared]


def _clauses(table: Table, label: str, against: str, metrics: dict[str, str]) -> Iterable[str]:
    """Yield one clause for each direction of the differences between two rows."""
    orders: dict[str, list[tuple[str, Comparison]]] = {}
    for metric, name in metrics.items():
        comparison = table.comparison(label, against, metric)
        # A comparison outside the family of those that may claim an order is left to the table.
        if comparison is not None and (comparison.p_holm is not None or not comparison.test):
            orders.setdefault(_order(comparison), []).append((name, comparison))
    one, other = _name(label), _name(against)
    for order, found in orders.items():
        if order in ("above", "below"):
            sizes = [f"in {name} by {_size(c)}" for name, c in found]
            yield f"{one} is {order} {other} {_joined(sizes)}"
        elif order == "equivalent":
            sizes = [f"in {name} ({_difference(c, c.p_margin_holm)})" for name, c in found]
            yield f"{one} and {other} are equivalent within {found[0][1].margin:g} {_joined(sizes)}"
        else:
            sizes = [f"in {name} ({_difference(c, c.p_holm)})" for name, c in found]
            verb = "is supported" if order == "open" else "can be tested"
            yield f"no order between {one} and {other} {verb} {_joined(sizes)}"


def _order(comparison: Comparison) -> str:
    if comparison.supported:
        return "above" if comparison.difference > 0 else "below"
    if comparison.equivalent:
        return "equivalent"
    return "untested" if comparison.test is None else "open"


def _size(comparison: Comparison) -> str:
    """Return the size of a supported difference: ``8.6 [6.1, 11.1] (5 seeds, p 0.0003)``."""
    c = comparison if comparison.difference > 0 else comparison.reversed()
    interval = "" if c.low is None or c.high is None else f" [{c.low:.1f}, {c.high:.1f}]"
    p = "" if c.p_holm is None else f", p {p_value(c.p_holm)}"
    return f"{c.difference:.1f}{interval} ({_seeds(c)}{p})"


def _difference(c: Comparison, corrected: float | None) -> str:
    text = f"difference {signed(c.difference)}"
    if c.low is not None and c.high is not None:
        interval = f"[{signed(c.low)}, {signed(c.high)}]"
        p = "" if corrected is None else f", p {p_value(corrected)}"
        return f"{text} {interval}, {_seeds(c)}{p}"
    return f"{text}, {_seeds(c)}: no spread to test against"


def _seeds(c: Comparison) -> str:
    n, m = c.n
    return f"{n} seed{'s' * (n != 1)}" if n == m else f"{n} and {m} seeds"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _name(label: str) -> str:
    return _NAMES.get(label, label)
