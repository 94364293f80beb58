"""The paper's tables from run records, and the paper's own, as Markdown, CSV, LaTeX or HTML.

A measured cell reads ``55.9 ± 0.2 (n=5) (+2.4)``: mean, sample standard deviation over seeds, runs,
difference to supervised. Bold follows the paper's green, from +0.5 points on, and only where the
spread supports the difference.
"""

import csv
import html
import io
from collections.abc import Callable, Iterable

from moco_d2.benchmark.comparison import Cell, Row, Table, measured_tables, published_tables
from moco_d2.benchmark.matching import MARKS
from moco_d2.benchmark.results import Record
from moco_d2.errors import UserError, closest

#: Text and how it is set: "", "bold" or "mark" (raised).
Span = tuple[str, str]

_CSV_COLUMNS = (
    *("mean", "std", "n", "difference", "spread", "supported"),
    *("published", "gap", "band", "within"),
)


def render(records: Iterable[Record], format: str = "markdown") -> str:
    """One table a task from run records.

    Args:
        format: a key of FORMATS. ``csv`` has one line a cell, unrounded; ``html`` is a fragment.

    Raises:
        UserError: unknown format.
    """
    return _writer(format)(measured_tables(records))


def render_paper(name: str | None = None, format: str = "markdown") -> str:
    """The paper's own tables, with differences recomputed from the printed values.

    Args:
        name: a table's or a task's name; None for all.

    Raises:
        UserError: unknown name or format.
    """
    return _writer(format)(published_tables(name))


def _writer(format: str) -> Callable[[list[Table]], str]:
    if format not in FORMATS:
        hint = closest(format, FORMATS) or f"there are {', '.join(FORMATS)}"
        raise UserError(f"no table format {format!r}; {hint}")
    return FORMATS[format]


def _signed(value: float) -> str:
    """One decimal with its sign, as the paper prints it: +2.4, -0.4, 0.0."""
    value = round(value, 1)
    return f"{value:+.1f}" if value else "0.0"


def _cell_spans(cell: Cell, row: Row) -> list[Span]:
    if cell.mean is None:
        return [("–", "")]
    # A whole number is a count: parameters, epochs.
    value = f"{cell.mean:d}" if isinstance(cell.mean, int) else f"{cell.mean:.1f}"
    if cell.std is not None:
        value += f" ± {cell.std:.1f}"
    spans = [(value, "")]
    if row.marks:
        spans.append(("".join(MARKS[m] for m in row.marks), "mark"))
    if cell.n is not None:
        spans.append((f" (n={cell.n})", ""))
    if cell.difference is not None:
        spans.append((" ", ""))
        spans.append((f"({_signed(cell.difference)})", "bold" if cell.highlighted else ""))
    return spans


def _paper_spans(cell: Cell) -> list[Span]:
    if cell.published is None:
        return [("–", "")]
    text = f"{cell.published:.1f}, gap {_signed(cell.gap)}"
    if cell.band is not None:
        text += f" ({'within' if cell.within else 'outside'} ±{cell.band:.1f})"
    return [(text, "")]


def _lines(table: Table) -> Iterable[tuple[str, list[list[Span]]]]:
    """The printed lines: a row's label and cells, and the paper's row below where there is one."""
    for row in table.rows:
        yield row.label, [_cell_spans(cell, row) for cell in row.cells]
        if row.paper:
            yield f"paper: {row.paper}", [_paper_spans(cell) for cell in row.cells]


def _notes(table: Table) -> list[Span]:
    """Every sentence below the table with its footnote sign, which is empty for a plain note."""
    return [(text, MARKS[mark]) for mark, text in table.footnotes] + [
        (note, "") for note in table.notes
    ]


def _markdown(tables: list[Table]) -> str:
    def escape(text: str) -> str:
        for special in "\\`*_|<>[]":
            text = text.replace(special, f"\\{special}")
        return text.replace("\n", " ")

    def span(text: str, style: str) -> str:
        return f"**{escape(text)}**" if style == "bold" else escape(text)

    parts = []
    for table in tables:
        lines = [f"### {escape(table.title)}", ""]
        lines.append("| " + " | ".join(map(escape, ("initialisation", *table.columns))) + " |")
        lines.append("|" + "---|" * (len(table.columns) + 1))
        for label, cells in _lines(table):
            texts = ["".join(span(*s) for s in cell) for cell in cells]
            lines.append("| " + " | ".join([escape(label), *texts]) + " |")
        for text, mark in _notes(table):
            lines += ["", f"{escape(mark)} {escape(text)}".strip()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _csv(tables: list[Table]) -> str:
    """One line a cell, for other programs: numbers unrounded, marks by name, no notes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("task", "initialisation", "metric", *_CSV_COLUMNS, "marks"))
    for table in tables:
        for row in table.rows:
            for cell in row.cells:
                values = [getattr(cell, column) for column in _CSV_COLUMNS]
                writer.writerow(
                    (table.task, row.label, cell.metric, *values, " ".join(row.marks)),
                )
    return out.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}",
    **{special: f"\\{special}" for special in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "¶": r"\P{}",
}


def _latex(tables: list[Table]) -> str:
    """Plain ``tabular``: needs no package."""

    def escape(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in text.replace("\n", " "))

    def span(text: str, style: str) -> str:
        commands = {"bold": "textbf", "mark": "textsuperscript"}
        return f"\\{commands[style]}{{{escape(text)}}}" if style else escape(text)

    parts = []
    for table in tables:
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.title)}}}",
            rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
            r"\hline",
            " & ".join(map(escape, ("initialisation", *table.columns))) + r" \\",
            r"\hline",
        ]
        for label, cells in _lines(table):
            texts = ["".join(span(*s) for s in cell) for cell in cells]
            lines.append(" & ".join([escape(label), *texts]) + r" \\")
        lines += [r"\hline", r"\end{tabular}"]
        for text, mark in _notes(table):
            sign = span(mark, "mark") + " " if mark else ""
            lines.append(rf"\par\footnotesize {sign}{escape(text)}")
        lines.append(r"\end{table}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _html(tables: list[Table]) -> str:
    """A fragment for report.py, which has the styles."""

    def span(text: str, style: str) -> str:
        tags = {"bold": "strong", "mark": "sup"}
        return f"<{tags[style]}>{html.escape(text)}</{tags[style]}>" if style else html.escape(text)

    parts = []
    for table in tables:
        head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in table.columns)
        lines = [
            '<div class="table"><table>',
            f"<caption>{html.escape(table.title)}</caption>",
            f'<thead><tr><th scope="col">initialisation</th>{head}</tr></thead>',
            "<tbody>",
        ]
        for label, cells in _lines(table):
            texts = "".join(f"<td>{''.join(span(*s) for s in cell)}</td>" for cell in cells)
            lines.append(f'<tr><th scope="row">{html.escape(label)}</th>{texts}</tr>')
        lines.append("</tbody></table>")
        for text, mark in _notes(table):
            sign = span(mark, "mark") + " " if mark else ""
            lines.append(f'<p class="note">{sign}{html.escape(text)}</p>')
        lines.append("</div>")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


#: Writers by name; each turns tables into text.
FORMATS: dict[str, Callable[[list[Table]], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "html": _html,
}
