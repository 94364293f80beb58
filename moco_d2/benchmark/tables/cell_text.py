"""The text of each cell of a table, as spans that each format styles in its own way.

A measured cell is ``55.9 ± 0.2 (n=5) (+2.4)``: mean, sample standard deviation over seeds, number
of runs, difference to supervised. Bold stands for the paper's green: differences from +0.5 points
on, and only where the tests support them. A difference is ``+2.4 [+2.1, +2.7] p 0.0004``, with
confidence interval and, in a primary metric, corrected p.
"""

from collections.abc import Iterable

from moco_d2.benchmark.records.matching import MARKS
from moco_d2.benchmark.statistics import Comparison
from moco_d2.benchmark.tables.table import Cell, Row, Table

#: Text and its style: "", "bold", "gain" (bold, and green in color) or "mark" (superscript).
Span = tuple[str, str]
#: A label and its cells.
Line = tuple[list[Span], list[list[Span]]]

_SMALLEST_P = 1e-4


def signed(value: float) -> str:
    """Return a difference as the paper prints it, with one decimal: +2.4, -0.4, 0.0."""
    value = round(value, 1)
    return f"{value:+.1f}" if value else "0.0"


def _number(value: float) -> str:
    """Return a published number as printed. Integers are counts; others have 1 or 2 decimals."""
    if isinstance(value, int) or value == round(value, 1):
        return str(value)
    return f"{value:.2f}"


def _cell_spans(cell: Cell, row: Row) -> list[Span]:
    if cell.mean is None:
        return [("–", "")]
    # A measured value has one decimal, because of its spread; a published one has its own digits.
    spans = [(_number(cell.mean) if cell.n is None else f"{cell.mean:.1f}", "")]
    if cell.std is not None:
        spans = [(f"{cell.mean:.1f} ± {cell.std:.1f}", "")]
    if row.marks:
        spans.append((_signs(row.marks), "mark"))
    if cell.n is not None:
        spans.append((f" (n={cell.n})", ""))
    if cell.difference is not None:
        spans.append((" ", ""))
        spans.append((f"({signed(cell.difference)})", "gain" if cell.highlighted else ""))
    return spans


def _signs(marks: Iterable[str]) -> str:
    return "".join(MARKS[mark] for mark in marks)


def _paper_spans(cell: Cell) -> list[Span]:
    if cell.published is None or cell.gap is None:
        return [("–", "")]
    text = f"{_number(cell.published)}, gap {signed(cell.gap)}"
    if cell.band is not None:
        # With two decimals, a gap outside the band cannot seem to be inside.
        text += f" ({'within' if cell.within else 'outside'} ±{cell.band:.2f})"
    return [(text, "")]


def value_lines(table: Table) -> Iterable[Line]:
    """Yield the label and cells of each row, and of the paper's row below it if there is one."""
    for row in table.rows:
        yield [(row.label, "")], [_cell_spans(cell, row) for cell in row.cells]
        if row.paper:
            label = _marked(f"paper: {row.paper}", row.paper_marks)
            yield label, [_paper_spans(cell) for cell in row.cells]


def difference_lines(table: Table) -> list[Line]:
    """Return one line per pair of initializations; none if nothing could be tested."""
    if not any(c and c.test for pair in table.pairs for c in pair.comparisons):
        return []
    marks = {row.label: row.marks for row in table.rows}
    return [
        (
            [
                *_marked(pair.label, marks[pair.label]),
                (" − ", ""),
                *_marked(pair.against, marks[pair.against]),
            ],
            [_difference_spans(c) for c in pair.comparisons],
        )
        for pair in table.pairs
    ]


def _marked(label: str, marks: Iterable[str]) -> list[Span]:
    return [(label, ""), *([(signs, "mark")] if (signs := _signs(marks)) else [])]


def _difference_spans(comparison: Comparison | None) -> list[Span]:
    if comparison is None:
        return [("–", "")]
    spans = [(signed(comparison.difference), "bold" if comparison.supported else "")]
    low, high, p = comparison.low, comparison.high, comparison.p_holm
    if low is not None and high is not None:
        claim = "" if p is None else f" p {p_value(p)}"
        spans.append((f" [{signed(low)}, {signed(high)}]{claim}", ""))
    return spans


def p_value(value: float) -> str:
    """Return a p value as text: 0.04, <0.0001, 1.0."""
    if value < _SMALLEST_P:
        return f"<{_SMALLEST_P:.4f}"
    return f"{value:.2g}" if value < 0.995 else "1.0"


def footnotes(table: Table) -> list[Span]:
    """Return each sentence below the table with its sign, which is "" for a plain note."""
    return [(text, MARKS[mark]) for mark, text in table.footnotes] + [
        (note, "") for note in table.notes
    ]


def grids(table: Table) -> Iterable[tuple[tuple[str, ...], list[Line]]]:
    """Yield titles and lines of the rows, and of tested differences and text, if there are any."""
    yield (table.head, *table.columns), list(value_lines(table))
    if differences := difference_lines(table):
        yield ("difference", *table.columns), differences
    if table.text:
        titles, *rows = table.text
        yield titles, [([(label, "")], [[(cell, "")] for cell in cells]) for label, *cells in rows]
