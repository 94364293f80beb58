"""What is printed in each cell of a table, as spans of text that every format sets its own way.

A measured cell reads ``55.9 ± 0.2 (n=5) (+2.4)``: mean, sample standard deviation over seeds, runs,
difference to supervised. Bold follows the paper's green, from +0.5 points on, and only where the
tests support the difference. Below it the differences: ``+2.4 [+2.1, +2.7] p 0.0004``, with
confidence interval and corrected p.
"""

from collections.abc import Iterable

from moco_d2.benchmark.records.matching import MARKS
from moco_d2.benchmark.statistics import Comparison
from moco_d2.benchmark.tables.table import Cell, Row, Table

#: Text and how it is set: "", "bold", "gain" (bold, and green where there are colors) or "mark"
#: (raised).
Span = tuple[str, str]
#: A label and its cells.
Line = tuple[list[Span], list[list[Span]]]

_SMALLEST_P = 1e-4


def _signed(value: float) -> str:
    """One decimal with its sign, as the paper prints it: +2.4, -0.4, 0.0."""
    value = round(value, 1)
    return f"{value:+.1f}" if value else "0.0"


def _number(value: float) -> str:
    """As printed: a whole number is a count (parameters, epochs), others have a decimal or more."""
    if isinstance(value, int) or value == round(value, 1):
        return str(value)
    return f"{value:.2f}"


def _cell_spans(cell: Cell, row: Row) -> list[Span]:
    if cell.mean is None:
        return [("–", "")]
    # A measured value has as many digits as its spread is worth; a published one those it has.
    spans = [(_number(cell.mean) if cell.n is None else f"{cell.mean:.1f}", "")]
    if cell.std is not None:
        spans = [(f"{cell.mean:.1f} ± {cell.std:.1f}", "")]
    if row.marks:
        spans.append((_signs(row), "mark"))
    if cell.n is not None:
        spans.append((f" (n={cell.n})", ""))
    if cell.difference is not None:
        spans.append((" ", ""))
        spans.append((f"({_signed(cell.difference)})", "gain" if cell.highlighted else ""))
    return spans


def _signs(row: Row) -> str:
    return "".join(MARKS[mark] for mark in row.marks)


def _paper_spans(cell: Cell) -> list[Span]:
    if cell.published is None or cell.gap is None:
        return [("–", "")]
    text = f"{_number(cell.published)}, gap {_signed(cell.gap)}"
    if cell.band is not None:
        # Not rounded towards 0.0, nor to where a gap outside would seem to be inside.
        text += f" ({'within' if cell.within else 'outside'} ±{cell.band:.2f})"
    return [(text, "")]


def value_lines(table: Table) -> Iterable[Line]:
    """The printed lines: a row's label and cells, and the paper's row below where there is one."""
    for row in table.rows:
        yield [(row.label, "")], [_cell_spans(cell, row) for cell in row.cells]
        if row.paper:
            yield [(f"paper: {row.paper}", "")], [_paper_spans(cell) for cell in row.cells]


def difference_lines(table: Table) -> list[Line]:
    """One line a pair of initializations; none where nothing could be tested."""
    if not any(c and c.test for pair in table.pairs for c in pair.comparisons):
        return []
    rows = {row.label: row for row in table.rows}
    return [
        (
            [*_marked(rows[pair.label]), (" − ", ""), *_marked(rows[pair.against])],
            [_difference_spans(c) for c in pair.comparisons],
        )
        for pair in table.pairs
    ]


def _marked(row: Row) -> list[Span]:
    return [(row.label, ""), *([(_signs(row), "mark")] if row.marks else [])]


def _difference_spans(comparison: Comparison | None) -> list[Span]:
    if comparison is None:
        return [("–", "")]
    spans = [(_signed(comparison.difference), "bold" if comparison.supported else "")]
    low, high, p = comparison.low, comparison.high, comparison.p_holm
    if low is not None and high is not None and p is not None:
        spans.append((f" [{_signed(low)}, {_signed(high)}] p {p_value(p)}", ""))
    return spans


def p_value(value: float) -> str:
    if value < _SMALLEST_P:
        return f"<{_SMALLEST_P:.4f}"
    return f"{value:.2g}" if value < 0.995 else "1.0"


def footnotes(table: Table) -> list[Span]:
    """Every sentence below the table with its footnote sign, which is empty for a plain note."""
    return [(text, MARKS[mark]) for mark, text in table.footnotes] + [
        (note, "") for note in table.notes
    ]


def grids(table: Table) -> Iterable[tuple[str, list[Line]]]:
    """What is set as a table: the rows, and their differences if any were tested."""
    yield table.head, list(value_lines(table))
    if differences := difference_lines(table):
        yield "difference", differences
