"""What the tables say, before it is written in any format.

Initialisations x metrics, differences, the paper beside them, and all reservations.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moco_d2.benchmark.matching import (
    BASELINE,
    FOOTNOTES,
    MARKS,
    marks,
    mismatch_text,
    newest,
    reference,
)
from moco_d2.benchmark.paper import PaperRow, PaperTable, find_row, row_beside, tables_named
from moco_d2.benchmark.results import Record
from moco_d2.benchmark.statistics import Summary, difference, summarise, supported

#: Points from which the paper prints a difference to supervised in green (caption of its Table 2).
HIGHLIGHT_FROM = 0.5

# Rows in the paper's order; others follow alphabetically.
_ROW_ORDER = ("random", BASELINE, "supervised_msra", "moco")
# Columns in the paper's order: AP50 leads in its VOC tables, AP in all others.
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


@dataclass(frozen=True)
class Cell:
    """One metric of one initialisation, in percent; a field is None where it does not apply.

    `difference` is to the supervised baseline, `spread` its combined standard deviation over
    seeds. `published` is the paper's value, `gap` the mean minus that, `band` the largest |gap|
    that counts as agreement.
    """

    metric: str
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    difference: float | None = None
    spread: float | None = None
    supported: bool | None = None
    highlighted: bool = False
    published: float | None = None
    gap: float | None = None
    band: float | None = None
    within: bool | None = None


@dataclass(frozen=True)
class Row:
    """One initialisation.

    `marks` are names in MARKS and hold for every cell; `paper` labels the published row set beside
    this one.
    """

    label: str
    cells: tuple[Cell, ...]
    marks: tuple[str, ...] = ()
    paper: str | None = None


@dataclass(frozen=True)
class Table:
    """One task. `footnotes` explain the marks, by name; `notes` are sentences below the table."""

    task: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def measured_tables(records: Iterable[Record]) -> list[Table]:
    """One table a task, from run records."""
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record)
    return [_measured_table(task, by_task[task]) for task in sorted(by_task)]


def published_tables(name: str | None = None) -> list[Table]:
    """The paper's own tables with recomputed differences.

    Args:
        name: a table's name or a task's, whose tables are wanted; None for all.

    Raises:
        UserError: there is no such table.
    """
    return [_published_table(table) for table in tables_named(name)]


def column_title(metric: str, *, voc: bool) -> str:
    """The paper's name of a metric: ``bbox/AP50`` is AP50 on VOC and APbb50 elsewhere."""
    return {**_COLUMNS, **(_VOC_COLUMNS if voc else {})}.get(metric, metric)


def row_order(initialisation: str) -> tuple[int, str]:
    """Sort key: the paper's order, then alphabetical."""
    known = initialisation in _ROW_ORDER
    return (_ROW_ORDER.index(initialisation) if known else len(_ROW_ORDER), initialisation)


def _measured_table(task: str, records: list[Record]) -> Table:
    records, notes = newest(records)
    voc = any("voc" in name.lower() for r in records for name in (task, *r.datasets_test))
    order = _VOC_COLUMNS if voc else _COLUMNS
    present = {m for r in records for m in r.metrics}
    metrics = [m for m in order if m in present] or sorted(present)
    runs: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (row_order(r.initialisation), r.seed)):
        runs.setdefault(record.initialisation, []).append(record)

    held_against = reference(records)
    baseline = {m: _summary(runs.get(BASELINE, []), m) for m in metrics}
    rows = []
    for initialisation, group in runs.items():
        paper = row_beside(task, initialisation, group)
        cells = tuple(
            _measured_cell(m, group, None if initialisation == BASELINE else baseline[m], paper)
            for m in metrics
        )
        rows.append(
            Row(
                initialisation,
                cells,
                tuple(marks(group, held_against)),
                paper[1].label if paper else None,
            )
        )
        notes += _notes_on_row(initialisation, group, metrics)
    found = {mark for row in rows for mark in row.marks}
    texts = {"mismatched": mismatch_text(records, held_against), **FOOTNOTES}
    return Table(
        task=task,
        title=f"{task}: {', '.join(sorted({_short(d) for r in records for d in r.datasets_test}))}",
        columns=tuple(column_title(m, voc=voc) for m in metrics),
        rows=tuple(rows),
        footnotes=tuple((mark, texts[mark]) for mark in MARKS if mark in found),
        notes=(
            *_notes_on_paper(task, runs, rows),
            *_notes_on_order(rows, voc=voc),
            *notes,
        ),
    )


def _short(dataset: str) -> str:
    """A dataset given by path, ``coco:/a/b/test.json:/a/images``, without the folders before it."""
    return ":".join(part.rstrip("/").rsplit("/", 1)[-1] for part in dataset.split(":"))


def _summary(group: Sequence[Record], metric: str) -> Summary | None:
    values = [v for r in group if (v := r.metrics.get(metric)) is not None]
    return summarise(values) if values else None


def _measured_cell(
    metric: str,
    group: list[Record],
    baseline: Summary | None,
    paper: tuple[PaperTable, PaperRow] | None,
) -> Cell:
    summary = _summary(group, metric)
    if summary is None:
        return Cell(metric)
    fields: dict = {"mean": summary.mean, "std": summary.std, "n": summary.n}
    if baseline is not None:
        delta = difference(summary, baseline)
        fields |= {
            "difference": delta.value,
            "spread": delta.spread,
            "supported": supported(delta),
            "highlighted": supported(delta) and round(delta.value, 1) >= HIGHLIGHT_FROM,
        }
    return Cell(metric, **fields, **_beside_paper(metric, summary.mean, paper))


def _beside_paper(
    metric: str, mean: float, paper: tuple[PaperTable, PaperRow] | None
) -> dict[str, float | bool]:
    """The cell's fields about the published value, if there is one."""
    if paper is None or metric not in paper[0].metrics:
        return {}
    table, row = paper
    i = table.metrics.index(metric)
    if row.values[i] is None:
        return {}
    # Rounded because 81.1 - 81.5 is a hair below -0.4, the edge of a band of 0.4.
    gap = round(mean - row.values[i], 6)
    found = {"published": row.values[i], "gap": gap}
    if table.band:
        found |= {"band": table.band[i], "within": abs(gap) <= table.band[i]}
    return found


def _notes_on_row(
    initialisation: str, group: list[Record], metrics: Sequence[str]
) -> Iterable[str]:
    empty = sum(any(r.metrics.get(m) is None for m in metrics) for r in group)
    if empty:
        yield (
            f"{initialisation}: {empty} of {len(group)} runs lack a metric; "
            "n counts those that have it."
        )
    weights = {r.weights_sha256 for r in group if r.weights_sha256}
    if len(weights) > 1:
        yield f"{initialisation}: its runs start from {len(weights)} different weights files."


def _notes_on_paper(task: str, runs: dict[str, list[Record]], rows: Sequence[Row]) -> Iterable[str]:
    beside = [row for row in rows if row.paper]
    if beside:
        sources: dict[str, list[str]] = {}
        for row in beside:
            table, _ = find_row(task, row.label)
            band = f"; band: {table.band_source}" if table.band else "; no band is published"
            sources.setdefault(f"{table.source}{band}", []).append(row.label)
        for source, labels in sources.items():
            yield f"Paper values of {', '.join(labels)}: {source}."
    other = [row.label for row in rows if not row.paper and find_row(task, row.label)]
    if other:
        yield (
            f"{', '.join(other)}: other data or schedule than the paper's, "
            f"so no paper values are set beside {'them' if len(other) > 1 else 'it'}."
        )
    if not any(find_row(task, initialisation) for initialisation in runs):
        yield "No published row for these, so no paper values are set beside them."


def _notes_on_order(rows: Sequence[Row], *, voc: bool) -> Iterable[str]:
    """Which orders the spread supports: a table reads as an order, so it says where it is none."""
    if any(row.label == BASELINE for row in rows):
        yield (
            f"In parentheses: difference to {BASELINE}; bold: at least +{HIGHLIGHT_FROM} "
            "and larger than the spread."
        )
    else:
        yield f"No {BASELINE} run, so no differences."
    said: dict[str, list[str]] = {"clear": [], "within": [], "single": []}
    for first, second in itertools.combinations(rows, 2):
        columns: dict[tuple[str, str], list[str]] = {}
        for one, other in zip(first.cells, second.cells, strict=True):
            if one.mean is None or other.mean is None:
                continue
            delta = difference(_cell_summary(other), _cell_summary(one))
            if supported(delta):
                key = ("clear", "above" if delta.value > 0 else "below")
            else:
                key = ("single" if delta.spread is None else "within", "and")
            columns.setdefault(key, []).append(column_title(one.metric, voc=voc))
        for (kind, word), titles in columns.items():
            said[kind].append(f"{second.label} {word} {first.label} in {', '.join(titles)}")
    if not any(said.values()):
        return
    yield (
        "Orders the spread over seeds supports (difference larger than the combined standard "
        f"deviation): {'; '.join(said['clear']) or 'none'}."
    )
    if said["within"]:
        yield f"Differences within the spread, no order claimed: {'; '.join(said['within'])}."
    if said["single"]:
        yield f"A single run has no spread, no order claimed: {'; '.join(said['single'])}."


def _cell_summary(cell: Cell) -> Summary:
    return Summary(cell.mean, cell.std, cell.n)


def _published_table(table: PaperTable) -> Table:
    voc = table.name.startswith("voc")
    baseline = table.baseline
    rows = []
    for row in table.rows:
        cells = []
        for i, (metric, value) in enumerate(zip(table.metrics, row.values, strict=True)):
            base = None if row is baseline or baseline is None else baseline.values[i]
            delta = None if base is None or value is None else round(value - base, 1)
            highlighted = delta is not None and delta >= HIGHLIGHT_FROM
            cells.append(Cell(metric, mean=value, difference=delta, highlighted=highlighted))
        rows.append(Row(row.label, tuple(cells), ("unconfirmed",) if row.unconfirmed else ()))
    return Table(
        task=table.name,
        title=table.title,
        columns=tuple(column_title(m, voc=voc) for m in table.metrics),
        rows=tuple(rows),
        footnotes=tuple(
            (mark, FOOTNOTES[mark]) for mark in MARKS if any(mark in r.marks for r in rows)
        ),
        notes=tuple(_notes_on_published(table)),
    )


def _notes_on_published(table: PaperTable) -> Iterable[str]:
    setting = table.setting
    if setting is None:
        yield f"Source: {table.source}."
    else:
        trials = f"mean of {table.trials} runs" if table.trials else "number of runs not stated"
        yield (
            f"Source: {table.source}. {' + '.join(setting.train)} to {' + '.join(setting.test)}, "
            f"{setting.iterations} iterations of {setting.images_per_batch} images, {trials}."
        )
    if table.baseline is not None:
        label = table.baseline.label
        yield f"In parentheses: difference to {label}; bold: at least +{HIGHLIGHT_FROM}."
    yield from table.remarks
