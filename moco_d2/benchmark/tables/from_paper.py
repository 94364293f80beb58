"""The published tables in the form of measured tables, with recomputed differences."""

from collections.abc import Iterable

from moco_d2.benchmark.paper_tables import PaperRow, PaperTable, tables_named
from moco_d2.benchmark.records.matching import FOOTNOTES, MARKS
from moco_d2.benchmark.tables.comparison import HIGHLIGHT_FROM, column_title
from moco_d2.benchmark.tables.notes import on_differences
from moco_d2.benchmark.tables.table import Cell, Row, Table


def published_tables(name: str | None = None) -> list[Table]:
    """Return the published tables. As in the paper, bold depends only on the size of a difference.

    Args:
        name: Name of a table or of a task; None for all tables.

    Raises:
        UserError: If there is no such table.
    """
    return [_published_table(table) for table in tables_named(name)]


def _published_table(table: PaperTable) -> Table:
    voc = table.name.startswith("voc")
    rows = tuple(
        Row(row.label, _cells(table, row), ("unconfirmed",) if row.unconfirmed else ())
        for row in table.rows
    )
    marks = {mark for row in rows for mark in row.marks}
    return Table(
        task=table.name,
        title=table.title,
        metrics=table.metrics,
        columns=tuple(column_title(m, voc=voc) for m in table.metrics),
        rows=rows,
        baseline=table.baseline.label if table.baseline else None,
        footnotes=tuple((mark, FOOTNOTES[mark]) for mark in MARKS if mark in marks),
        notes=tuple(_notes(table)),
    )


def _cells(table: PaperTable, row: PaperRow) -> tuple[Cell, ...]:
    base: tuple[float | None, ...] = (None,) * len(row.values)
    if table.baseline is not None and row is not table.baseline:
        base = table.baseline.values
    cells = []
    for metric, value, other in zip(table.metrics, row.values, base, strict=True):
        # In floating point 81.5 - 81.3 is slightly above 0.2.
        difference = None if value is None or other is None else round(value - other, 2)
        highlighted = difference is not None and difference >= HIGHLIGHT_FROM
        cells.append(Cell(metric, mean=value, difference=difference, highlighted=highlighted))
    return tuple(cells)


def _notes(table: PaperTable) -> Iterable[str]:
    setting = table.setting
    trials = f"mean of {table.trials} runs" if table.trials else "number of runs not stated"
    if setting is None:
        yield f"Source: {table.source}{f', {trials}' if table.trials else ''}."
    else:
        yield (
            f"Source: {table.source}. {' + '.join(setting.train)} to {' + '.join(setting.test)}, "
            f"{setting.iterations} iterations of {setting.images_per_batch} images, {trials}."
        )
    if table.baseline is not None:
        yield from on_differences(table.baseline.label, HIGHLIGHT_FROM, measured=False)
    if table.std:
        yield f"Standard deviation of single runs: {table.std_text}."
    if table.spread_remark:
        yield f"Spread: {table.spread_remark}."
    yield from table.remarks
