"""Tables from run records, before they are written in a format.

A table has initializations x metrics, differences with their significance, the published values
beside them, and footnotes.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moco_d2.benchmark.multiplicity import possible_equal
from moco_d2.benchmark.paper_tables import (
    PaperRow,
    PaperTable,
    baseline_of,
    marks_beside,
    row_beside,
)
from moco_d2.benchmark.records.design import DEFAULT, Design
from moco_d2.benchmark.records.matching import BASELINES, MARKS, Matching, newest
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.records.test_sets import by_test_set, short_name
from moco_d2.benchmark.statistics import (
    MARGIN,
    Blocks,
    Comparison,
    Summary,
    agreement_band,
    corrected,
    summarize,
    welch,
)
from moco_d2.benchmark.tables import notes
from moco_d2.benchmark.tables.grouping import by_initialization, is_voc, is_voc_name
from moco_d2.benchmark.tables.table import Cell, Pair, Row, Table
from moco_d2.config.literals import decode

#: The paper prints a difference to supervised in green from here on, points (caption of Table 2).
HIGHLIGHT_FROM = 0.5
#: With more initializations than this, each is compared with the references only.
_MOST_COMPARED_PAIRWISE = 8
#: With more pairs that may claim an order (many rows without a reference), none is tested.
MOST_CLAIMED = 400

#: The metrics that may claim an order, the first of each output. The others are shown beside them.
PRIMARY_METRICS = ("bbox/AP", "segm/AP", "keypoints/AP", "densepose_gps/AP", "sem_seg/mIoU")
#: The rows that each row is compared with to claim an order; see claimed_pairs.
REFERENCES = ("random", *BASELINES, "supervised_frozen_bn", "supervised_msra")
_MOST_CLAIMED_PAIRWISE = 4

# Columns in the paper's order: AP50 comes first in its VOC tables, AP in all others.
_VOC_COLUMNS = {"bbox/AP50": "AP50", "bbox/AP": "AP", "bbox/AP75": "AP75"}
_COLUMNS = {
    f"{group}/{name}": f"AP{short}{name.removeprefix('AP')}"
    for group, short in {"bbox": "bb", "segm": "mk", "keypoints": "kp"}.items()
    for name in ("AP", "AP50", "AP75")
} | {
    "sem_seg/mIoU": "mIoU",
    "densepose_gps/AP": "APdp",
    "densepose_gps/AP50": "APdp50",
    "densepose_gps/AP75": "APdp75",
}
#: The metrics of a table that a suite can declare.
METRICS = tuple(_COLUMNS)


def measured_tables(records: Iterable[Record]) -> list[Table]:
    """Return one table per task, and one for each further test set of a task."""
    by_task: dict[str, list[Record]] = {}
    for record in by_test_set(records):
        by_task.setdefault(record.task, []).append(record)
    return [_measured_table(task, by_task[task]) for task in sorted(by_task)]


def column_title(metric: str, *, voc: bool) -> str:
    """Return the paper's name of a metric: ``bbox/AP50`` is AP50 on VOC and APbb50 elsewhere."""
    return {**_COLUMNS, **(_VOC_COLUMNS if voc else {})}.get(metric, metric)


def _measured_table(task: str, records: list[Record]) -> Table:
    records, repeated = newest(records)
    voc = is_voc(records)
    order = _VOC_COLUMNS if voc else _COLUMNS
    present = {m for r in records for m in r.metrics}
    metrics = tuple(m for m in order if m in present) or tuple(sorted(present))
    columns = tuple(column_title(m, voc=voc) for m in metrics)
    runs = by_initialization(records)
    matching = Matching(records)
    baseline = next((name for name in baseline_of(task) if name in runs), None)
    design, declared = _declared(records)
    pairs = _pairs(runs, metrics, matching, baseline, design)
    beside = {name: row_beside(task, name, group) for name, group in runs.items()}
    doubts = {
        name: tuple(marks_beside(*row, name, runs[name])) if row else ()
        for name, row in beside.items()
    }
    corrected_for = len(primary_metrics(metrics, design)) * len(planned_pairs(runs, design))
    to_baseline = {pair.label: pair.comparisons for pair in pairs if pair.against == baseline}
    untested = (None,) * len(metrics)
    rows = tuple(
        Row(
            name,
            tuple(
                _cell(metric, group, comparison, beside[name], judged=not doubts[name])
                for metric, comparison in zip(metrics, to_baseline.get(name, untested), strict=True)
            ),
            tuple(matching.marks(group)),
            beside_row[1].label if (beside_row := beside[name]) else None,
            doubts[name],
        )
        for name, group in runs.items()
    )
    marks = {mark for row in rows for mark in row.marks + row.paper_marks}
    tests = sorted({short_name(d) for r in records for d in r.datasets_test})
    return Table(
        task=task,
        title=f"{task}: {', '.join(tests)}",
        metrics=metrics,
        columns=columns,
        rows=rows,
        baseline=baseline,
        pairs=pairs,
        design=design,
        declared=declared,
        footnotes=tuple((m, matching.footnote(m)) for m in MARKS if m in marks),
        notes=(
            *notes.on_significance(pairs, columns, len(runs), declared, corrected_for),
            *notes.on_differences(baseline, HIGHLIGHT_FROM),
            *notes.on_paper(task, beside),
            *notes.on_runs(runs, metrics, pairs, repeated),
        ),
    )


def _values(group: Sequence[Record], metric: str) -> list[tuple[Record, float]]:
    return [(r, v) for r in group if (v := r.metrics.get(metric)) is not None]


def _pairs(
    runs: Mapping[str, list[Record]],
    metrics: Sequence[str],
    matching: Matching,
    baseline: str | None,
    design: Design,
) -> tuple[Pair, ...]:
    names = list(runs)
    claimed = claimed_pairs(names, design)
    shown = {frozenset(pair) for pair in (*claimed, *claimed_pairs(names))}
    if len(shown) > MOST_CLAIMED:  # many rows without a reference
        if not design.comparisons:
            return ()
        shown = set(map(frozenset, claimed))
    few = len(names) <= _MOST_COMPARED_PAIRWISE
    pairs = (p for p in itertools.combinations(names, 2) if few or frozenset(p) in shown)
    compared = [(later, earlier) for earlier, later in pairs]
    primary = primary_metrics(metrics, design)
    # A difference to the baseline is always the other row minus the baseline.
    compared = [(b, a) if a == baseline else (a, b) for a, b in compared]
    tested = {
        (*pair, m): comparison
        for m in metrics
        for pair, comparison in compare_rows(
            {name: _values(group, m) for name, group in runs.items()},
            compared,
            matching,
            design.margin or MARGIN,
            declared=len(primary) * len(design.comparisons),
        ).items()
    }
    family = [
        (label, against, m)
        for label, against, m in tested
        if m in primary and ((label, against) in claimed or (against, label) in claimed)
    ]
    planned = planned_pairs(names, design)
    possible = possible_equal(planned, len(primary))
    found = corrected((tested[key] for key in family), len(primary) * len(planned), possible)
    tested |= dict(zip(family, found, strict=True))
    return tuple(
        Pair(label, against, tuple(tested.get((label, against, m)) for m in metrics))
        for label, against in compared
    )


def _declared(records: Sequence[Record]) -> tuple[Design, str]:
    """Return the design of the suite of some runs, and Table.declared."""
    states = Counter(record.declared for record in records)
    designs = {record.declaration.design if record.declaration else DEFAULT for record in records}
    declared = [*designs] if states.keys() - {"", "missing"} else [DEFAULT]
    if len(declared) > 1 and not states["missing"]:
        return DEFAULT, "differently"
    for state, words in (
        ("missing", "missing for"),
        ("other", "not that of"),
        ("by hand", ""),
        ("after", "after"),
        ("unknown", "unknown for"),
    ):
        if count := states[state]:
            design = DEFAULT if state in ("missing", "other") else declared[0]
            return design, f"{words} {count} of {len(records)} runs" if words else state
    return declared[0], "beforehand" if states["beforehand"] else ""


def planned_pairs(names: Iterable[str], design: Design = DEFAULT) -> Sequence[tuple[str, str]]:
    """Return the pairs of rows that are corrected for in each primary metric: a row without any run
    takes none of the declared comparisons away.
    """
    return design.comparisons or claimed_pairs(names)


def claimed_pairs(names: Iterable[str], design: Design = DEFAULT) -> list[tuple[str, str]]:
    """Return the pairs of rows that may claim an order: those of the design, or by default all
    pairs of few rows, and otherwise each row with each of REFERENCES.
    """
    names = list(names)
    if design.comparisons:
        return [(a, b) for a, b in design.comparisons if a in names and b in names]
    references = [name for name in names if name in REFERENCES]
    return [
        (one, other)
        for one, other in itertools.combinations(names, 2)
        if not references
        or len(names) <= _MOST_CLAIMED_PAIRWISE
        or one in references
        or other in references
    ]


def primary_metrics(metrics: Sequence[str], design: Design = DEFAULT) -> list[str]:
    """Return those of a table's metrics that may claim an order.

    A design that names none of them belongs to other tasks of the suite.
    """
    if declared := [metric for metric in design.primary if metric in metrics]:
        return declared
    return [metric for metric in PRIMARY_METRICS if metric in metrics] or list(metrics[:1])


def planned_metrics(settings: Mapping[str, Any], design: Design = DEFAULT) -> list[str]:
    """Return primary_metrics of the table of a run before it has run.

    Args:
        settings: The settings of the run; a key that is missing has Detectron2's default.
        design: What the suite declares.
    """
    tests = decode(settings.get("DATASETS.TEST", ()))
    first = str(next(iter([tests] if isinstance(tests, str) else tests), ""))
    if settings.get("MODEL.META_ARCHITECTURE") == "SemanticSegmentor":
        outputs = ["sem_seg"]
    elif first.startswith("cityscapes_fine_instance_seg"):
        outputs = ["segm"]  # Cityscapes' own scripts know no boxes
    else:
        heads = {"MASK": "segm", "KEYPOINT": "keypoints", "DENSEPOSE": "densepose_gps"}
        on = [out for head, out in heads.items() if decode(settings.get(f"MODEL.{head}_ON"))]
        outputs = ["bbox", *on]
    voc = outputs[0] == "bbox" and is_voc_name(str(settings.get("MOCO.TASK")), first)
    columns = _VOC_COLUMNS if voc else _COLUMNS
    return primary_metrics([m for m in columns if m.partition("/")[0] in outputs], design)


def compare_rows(
    values: Mapping[str, Sequence[tuple[Record, float]]],
    pairs: Iterable[tuple[str, str]],
    matching: Matching,
    margin: float = MARGIN,
    *,
    declared: int = 0,
) -> dict[tuple[str, str], Comparison]:
    """Test differences between rows in one metric.

    Seeds are blocks if both rows have the same config and number of processes, and any seed in
    common. Otherwise it is Welch's test. The design decides, never the outcome.

    Args:
        values: The runs of each row with their values.
        pairs: Pairs of rows; those without a value are left out.
        matching: The fingerprints of the runs.
        margin: See Comparison.
        declared: See Blocks.
    """
    seeds = {name: {r.seed for r, _ in side} for name, side in values.items()}
    designs: dict[tuple[str, int | None], dict[str, dict[int, float]]] = {}
    for name, side in values.items():
        of_row = {(matching.fingerprint(r), r.world_size) for r, _ in side}
        if len(of_row) == 1 and min(seeds[name]) >= 0:
            designs.setdefault(of_row.pop(), {})[name] = {r.seed: v for r, v in side}
    blocks = {
        name: each
        for rows in designs.values()
        for each in [Blocks(rows, margin=margin, declared=declared)]
        for name in rows
    }
    comparisons = {}
    for one, other in pairs:
        if not values[one] or not values[other]:
            continue
        shared = blocks.get(one)
        if shared is not None and shared is blocks.get(other) and seeds[one] & seeds[other]:
            comparisons[one, other] = shared.compare(one, other)
        else:
            sides = ([value for _, value in values[name]] for name in (one, other))
            comparisons[one, other] = welch(*sides, margin=margin)
    return comparisons


def _cell(
    metric: str,
    group: Sequence[Record],
    comparison: Comparison | None,
    paper: tuple[PaperTable, PaperRow] | None,
    *,
    judged: bool,
) -> Cell:
    values = [value for _, value in _values(group, metric)]
    if not values:
        return Cell(metric)
    summary = summarize(values)
    difference = comparison.difference if comparison else None
    return Cell(
        metric,
        mean=summary.mean,
        std=summary.std,
        n=summary.n,
        difference=difference,
        comparison=comparison,
        highlighted=bool(
            comparison
            and comparison.supported
            and difference is not None
            and round(difference, 1) >= HIGHLIGHT_FROM
        ),
        **_beside_paper(metric, summary, paper, judged),
    )


def _beside_paper(
    metric: str, summary: Summary, paper: tuple[PaperTable, PaperRow] | None, judged: bool
) -> dict[str, float | None]:
    """Return the fields of the cell for the published value, if there is one."""
    if paper is None or metric not in paper[0].metrics:
        return {}
    table, row = paper
    i = table.metrics.index(metric)
    value = row.values[i]
    if value is None:
        return {}
    return {
        "published": value,
        "gap": summary.mean - value,
        "band": agreement_band(summary, table.std[i] if table.std else None, table.trials)
        if judged
        else None,
    }
