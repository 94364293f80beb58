"""The paper's tables from run records, and the paper's own, as Markdown, CSV, LaTeX or HTML.

A measured cell reads ``55.9 ± 0.2 (n=5) (+2.4)``: mean, sample standard deviation over seeds, runs,
difference to supervised. Bold follows the paper's green, from +0.5 points on, and only where the
tests support the difference. Below it the differences: ``+2.4 [+2.1, +2.7] p 0.0004``, with
confidence interval and corrected p.
"""

import csv
import html
import io
from collections.abc import Callable, Iterable

from moco_d2.benchmark.comparison import Cell, Pair, Row, Table, measured_tables
from moco_d2.benchmark.matching import MARKS
from moco_d2.benchmark.published import published_tables
from moco_d2.benchmark.results import Record
from moco_d2.benchmark.statistics import Comparison
from moco_d2.errors import UserError, closest

#: Text and how it is set: "", "bold" or "mark" (raised).
Span = tuple[str, str]
Line = tuple[list[Span], list[list[Span]]]

_SMALLEST_P = 1e-4
_CSV_COLUMNS = (
    *("task", "initialisation", "metric", "mean", "std", "n", "difference", "against"),
    *("low", "high", "p", "p_holm", "test", "supported"),
    *("published", "gap", "band", "within", "marks"),
)
_CSV_COMPARISON = ("difference", "low", "high", "p", "p_holm", "test")


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
        spans.append((f"({_signed(cell.difference)})", "bold" if cell.highlighted else ""))
    return spans


def _signs(row: Row) -> str:
    return "".join(MARKS[mark] for mark in row.marks)


def _paper_spans(cell: Cell) -> list[Span]:
    if cell.published is None:
        return [("–", "")]
    text = f"{_number(cell.published)}, gap {_signed(cell.gap)}"
    if cell.band is not None:
        # Not rounded towards 0.0, nor to where a gap outside would seem to be inside.
        text += f" ({'within' if cell.within else 'outside'} ±{cell.band:.2f})"
    return [(text, "")]


def _lines(table: Table) -> Iterable[Line]:
    """The printed lines: a row's label and cells, and the paper's row below where there is one."""
    for row in table.rows:
        yield [(row.label, "")], [_cell_spans(cell, row) for cell in row.cells]
        if row.paper:
            yield [(f"paper: {row.paper}", "")], [_paper_spans(cell) for cell in row.cells]


def _difference_lines(table: Table) -> list[Line]:
    """One line a pair of initialisations; none where nothing could be tested."""
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
    if comparison.test:
        low, high = _signed(comparison.low), _signed(comparison.high)
        spans.append((f" [{low}, {high}] p {_p(comparison.p_holm)}", ""))
    return spans


def _p(value: float) -> str:
    if value < _SMALLEST_P:
        return f"<{_SMALLEST_P:.4f}"
    return f"{value:.2g}" if value < 0.995 else "1.0"


def _notes(table: Table) -> list[Span]:
    """Every sentence below the table with its footnote sign, which is empty for a plain note."""
    return [(text, MARKS[mark]) for mark, text in table.footnotes] + [
        (note, "") for note in table.notes
    ]


def _grids(table: Table) -> Iterable[tuple[str, list[Line]]]:
    """What is set as a table: the initialisations, and their differences if any were tested."""
    yield "initialisation", list(_lines(table))
    if differences := _difference_lines(table):
        yield "difference", differences


def _markdown(tables: list[Table]) -> str:
    def escape(text: str) -> str:
        for special in "\\`*_|<>[]":
            text = text.replace(special, f"\\{special}")
        return text.replace("\n", " ")

    def span(text: str, style: str) -> str:
        return f"**{escape(text)}**" if style == "bold" else escape(text)

    parts = []
    for table in tables:
        lines = [f"### {escape(table.title)}"]
        for head, body in _grids(table):
            lines += ["", "| " + " | ".join(map(escape, (head, *table.columns))) + " |"]
            lines.append("|" + "---|" * (len(table.columns) + 1))
            for label, cells in body:
                texts = ["".join(span(*s) for s in cell) for cell in (label, *cells)]
                lines.append("| " + " | ".join(texts) + " |")
        for text, mark in _notes(table):
            lines += ["", f"{escape(mark)} {escape(text)}".strip()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _csv(tables: list[Table]) -> str:
    """For other programs: numbers unrounded, marks by name, no notes.

    One line a cell, with its difference to the baseline; then one for every other difference that
    was tested, without a mean.
    """
    rows: list[dict[str, object]] = []
    for table in tables:
        rows += [
            {
                "task": table.task,
                "initialisation": row.label,
                **{c: getattr(cell, c) for c in _CSV_COLUMNS if hasattr(cell, c)},
                **_csv_comparison(cell.comparison),
                "against": None if cell.difference is None else table.baseline,
                "marks": " ".join(row.marks),
            }
            for row in table.rows
            for cell in row.cells
        ]
        rows += [
            _csv_pair(table, pair, metric, comparison)
            for pair in table.pairs
            if pair.against != table.baseline
            for metric, comparison in zip(table.metrics, pair.comparisons, strict=True)
            if comparison
        ]
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def _no_formula(value: object) -> object:
    """A name from a record may begin as what a spreadsheet takes for a formula, and runs."""
    runs = isinstance(value, str) and value.startswith(("=", "+", "-", "@"))
    return f"'{value}" if runs else value


def _csv_pair(table: Table, pair: Pair, metric: str, comparison: Comparison) -> dict[str, object]:
    names = {"task": table.task, "initialisation": pair.label, "metric": metric}
    return {**names, "against": pair.against, **_csv_comparison(comparison)}


def _csv_comparison(comparison: Comparison | None) -> dict[str, object]:
    if comparison is None:
        return {}
    supported = comparison.supported if comparison.test else None
    return {**{c: getattr(comparison, c) for c in _CSV_COMPARISON}, "supported": supported}


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
    "−": "$-$",
    "‖": r"$\|$",
    "◊": r"$\diamond$",
    "≡": r"$\equiv$",
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
            texts = ["".join(span(*s) for s in cell) for cell in (label, *cells)]
            lines.append(" & ".join(texts) + r" \\")
        lines += [r"\hline", r"\end{tabular}"]
        for label, cells in _difference_lines(table):  # too wide for columns, so a sentence each
            texts = [
                f"{escape(column)} {''.join(span(*s) for s in cell)}"
                for column, cell in zip(table.columns, cells, strict=True)
            ]
            pair = "".join(span(*s) for s in label)
            lines.append(rf"\par\footnotesize {pair}: {'; '.join(texts)}.")
        for text, mark in _notes(table):
            sign = span(mark, "mark") + " " if mark else ""
            lines.append(rf"\par\footnotesize {sign}{escape(text)}")
        lines.append(r"\end{table}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _html(tables: list[Table]) -> str:
    """A fragment for report.py, which has the styles: green, beside the sign and the bold type."""

    def span(text: str, style: str) -> str:
        tags = {"bold": "strong", "mark": "sup"}
        if style == "bold" and "+" in text:
            text = f"▲ {text}"
        return f"<{tags[style]}>{html.escape(text)}</{tags[style]}>" if style else html.escape(text)

    parts = []
    for table in tables:
        lines = ['<div class="table">']
        for i, (first, body) in enumerate(_grids(table)):
            caption = f"<caption>{html.escape(table.title)}</caption>" if not i else ""
            head = "".join(
                f'<th scope="col">{html.escape(c)}</th>' for c in (first, *table.columns)
            )
            lines += [f"<table>{caption}", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
            for label, cells in body:
                name, *texts = ("".join(span(*s) for s in cell) for cell in (label, *cells))
                columns = "".join(f"<td>{text}</td>" for text in texts)
                lines.append(f'<tr><th scope="row">{name}</th>{columns}</tr>')
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
