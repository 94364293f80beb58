"""Tables from run records, before they are written in a format.

A table has initializations x metrics, differences with their significance, the published values
beside them, and footnotes.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from moco_d2.benchmark.paper import PaperRow, PaperTable, baseline_of, row_beside
from moco_d2.benchmark.records.matching import MARKS, Matching, newest
from moco_d2.benchmark.records.results import Record
from moco_d2.benchmark.records.test_sets import by_test_set, short_name
from moco_d2.benchmark.statistics import (
    Comparison,
    Summary,
    agreement_band,
    corrected,
    paired,
    summarize,
    welch,
)
from moco_d2.benchmark.tables import notes
from moco_d2.benchmark.tables.grouping import by_initialization, is_voc
from moco_d2.benchmark.tables.table import Cell, Pair, Row, Table

#: The paper prints a difference to supervised in green from here on, points (caption of Table 2).
HIGHLIGHT_FROM = 0.5
#: With more initializations than this, each is compared with the baseline only.
_MOST_COMPARED_PAIRWISE = 8

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
    pairs = _pairs(runs, metrics, matching, baseline)
    beside = {name: row_beside(task, name, group) for name, group in runs.items()}
    to_baseline = {pair.label: pair.comparisons for pair in pairs if pair.against == baseline}
    untested = (None,) * len(metrics)
    rows = tuple(
        Row(
            name,
            tuple(
                _cell(metric, group, comparison, beside[name])
                for metric, comparison in zip(metrics, to_baseline.get(name, untested), strict=True)
            ),
            tuple(matching.marks(group)),
            beside_row[1].label if (beside_row := beside[name]) else None,
        )
        for name, group in runs.items()
    )
    marks = {mark for row in rows for mark in row.marks}
    tests = sorted({short_name(d) for r in records for d in r.datasets_test})
    return Table(
        task=task,
        title=f"{task}: {', '.join(tests)}",
        metrics=metrics,
        columns=columns,
        rows=rows,
        baseline=baseline,
        pairs=pairs,
        footnotes=tuple((m, matching.footnote(m)) for m in MARKS if m in marks),
        notes=(
            *notes.on_paper(task, beside),
            *notes.on_differences(baseline, HIGHLIGHT_FROM),
            *notes.on_significance(pairs, columns, len(runs)),
            *notes.on_runs(runs, metrics),
            *repeated,
        ),
    )


def _values(group: Sequence[Record], metric: str) -> list[tuple[Record, float]]:
    return [(r, v) for r in group if (v := r.metrics.get(metric)) is not None]


def _pairs(
    runs: Mapping[str, list[Record]],
    metrics: Sequence[str],
    matching: Matching,
    baseline: str | None,
) -> tuple[Pair, ...]:
    names = list(runs)
    if len(names) <= _MOST_COMPARED_PAIRWISE:
        compared = [(later, earlier) for earlier, later in itertools.combinations(names, 2)]
    else:
        compared = [(name, baseline) for name in names if baseline not in (None, name)]
    # A difference to the baseline is always the other row minus the baseline.
    compared = [(b, a) if a == baseline else (a, b) for a, b in compared]
    values = {(name, m): _values(group, m) for name, group in runs.items() for m in metrics}
    family = {
        (label, against, m): compare_values(values[label, m], values[against, m], matching)
        for label, against in compared
        for m in metrics
        if values[label, m] and values[against, m]
    }
    family = dict(zip(family, corrected(family.values()), strict=True))
    return tuple(
        Pair(label, against, tuple(family.get((label, against, m)) for m in metrics))
        for label, against in compared
    )


def compare_values(
    runs: list[tuple[Record, float]], others: list[tuple[Record, float]], matching: Matching
) -> Comparison:
    """Test the difference of two initializations.

    The test is paired if seeds, configs and numbers of processes are equal on both sides. The seed
    then gives both runs of a pair the same data order and the same initial head.
    """

    def design(side: list[tuple[Record, float]]) -> list[tuple[int, str, int | None]]:
        return [(r.seed, matching.fingerprint(r), r.world_size) for r, _ in side]

    in_pairs = design(runs) == design(others) and all(r.seed >= 0 for r, _ in runs)
    return (paired if in_pairs else welch)([v for _, v in runs], [v for _, v in others])


def _cell(
    metric: str,
    group: Sequence[Record],
    comparison: Comparison | None,
    paper: tuple[PaperTable, PaperRow] | None,
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
        **_beside_paper(metric, summary, paper),
    )


def _beside_paper(
    metric: str, summary: Summary, paper: tuple[PaperTable, PaperRow] | None
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
        "band": agreement_band(summary, table.std[i] if table.std else None, table.trials),
    }
