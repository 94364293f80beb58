"""Tables as Markdown, CSV, LaTeX or HTML."""

import csv
import html
import io
import re

from moco_d2.benchmark.statistics import Comparison
from moco_d2.benchmark.tables.cell_text import footnotes, grids
from moco_d2.benchmark.tables.table import Pair, Table

_CSV_COLUMNS = (
    *("task", "initialization", "metric", "mean", "std", "n", "difference", "against"),
    *("low", "high", "p", "p_holm", "p_flip", "test", "supported", "declared"),
    *("published", "gap", "band", "within", "marks"),
)
_CSV_COMPARISON = ("difference", "low", "high", "p", "p_holm", "p_flip", "test")


def to_markdown(tables: list[Table]) -> str:
    """Return headings, tables and paragraphs; Markdown in a name is escaped."""

    def escape(text: str) -> str:
        for special in "\\`*_|<>[]":
            text = text.replace(special, f"\\{special}")
        return text.replace("\n", " ")

    def span(text: str, style: str) -> str:
        return f"**{escape(text)}**" if style in ("bold", "gain") else escape(text)

    parts = []
    for table in tables:
        lines = [f"### {escape(table.title)}"]
        for titles, body in grids(table):
            lines += ["", "| " + " | ".join(map(escape, titles)) + " |"]
            lines.append("|" + "---|" * len(titles))
            for label, cells in body:
                texts = ["".join(span(*s) for s in cell) for cell in (label, *cells)]
                lines.append("| " + " | ".join(texts) + " |")
        for text, mark in footnotes(table):
            lines += ["", f"{escape(mark)} {escape(text)}".strip()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def to_csv(tables: list[Table]) -> str:
    """Return CSV for other programs: unrounded numbers, names of marks, no notes.

    Each cell is one line, with its difference to the baseline. Each other difference that was
    tested is one more line, without a mean.
    """
    rows: list[dict[str, object]] = []
    for table in tables:
        rows += [
            {
                "task": table.task,
                "initialization": row.label,
                **{c: getattr(cell, c) for c in _CSV_COLUMNS if hasattr(cell, c)},
                **_csv_comparison(cell.comparison),
                "against": None if cell.difference is None else table.baseline,
                "declared": table.declared,
                "marks": " ".join(row.marks + row.paper_marks),
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
    writer.writerows({key: no_formula(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def no_formula(value: object) -> object:
    """Escape a name from a record that a spreadsheet would run as a formula."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@"))
    return f"'{value}" if formula else value


def _csv_pair(table: Table, pair: Pair, metric: str, comparison: Comparison) -> dict[str, object]:
    names = {"task": table.task, "initialization": pair.label, "metric": metric}
    names["declared"] = table.declared
    return {**names, "against": pair.against, **_csv_comparison(comparison)}


def _csv_comparison(comparison: Comparison | None) -> dict[str, object]:
    if comparison is None:
        return {}
    supported = None if comparison.p_holm is None else comparison.supported
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
    "△": r"$\triangle$",
    "▽": r"$\bigtriangledown$",
    "▷": r"$\triangleright$",
    "◊": r"$\diamond$",
    "≡": r"$\equiv$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "↻": r"$\circlearrowright$",
}


def to_latex(tables: list[Table]) -> str:
    """Return LaTeX with ``tabular``, which needs the package booktabs.

    The differences and notes of a table follow its ``table``, so that they can go elsewhere.
    """

    def escape(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in text.replace("\n", " "))

    def span(text: str, style: str) -> str:
        commands = {"bold": "textbf", "gain": "textbf", "mark": "textsuperscript"}
        return f"\\{commands[style]}{{{escape(text)}}}" if style else escape(text)

    parts = []
    for table in tables:
        (titles, body), *more = grids(table)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.title)}}}",
            rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(map(escape, titles)) + r" \\",
            r"\midrule",
        ]
        for label, cells in body:
            texts = ["".join(span(*s) for s in cell) for cell in (label, *cells)]
            # LaTeX would read these characters as an option of the line break before them.
            first = "{}" if texts[0][:1] in ("[", "*") else ""
            lines.append(first + " & ".join(texts) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        notes = []
        for (_, *columns), body in more:  # too wide for columns
            for label, cells in body:
                texts = [
                    f"{escape(column)} {''.join(span(*s) for s in cell)}"
                    for column, cell in zip(columns, cells, strict=True)
                ]
                name = "".join(span(*s) for s in label)
                notes.append(f"{name}: {'; '.join(texts)}.")
        for text, mark in footnotes(table):
            sign = span(mark, "mark") + " " if mark else ""
            notes.append(f"{sign}{escape(text)}")
        if notes:
            lines += ["", "% Notes on this table.", r"\begingroup\footnotesize"]
            lines += [*(rf"\noindent {note}\par" for note in notes), r"\endgroup"]
        parts.append("\n".join(lines) + "\n")
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


# No line break at these spaces in a narrow column: "55.9 ± 0.2", "[-0.1, +0.3]", "p 0.04".
_UNBROKEN = re.compile(r" (?=±)|(?<=±) |(?<=\d,) (?=[+-]?\d)|(?<=\bp) ")


def unbroken(text: str) -> str:
    """Return text whose numbers stay on one line with what belongs to them."""
    return _UNBROKEN.sub("\N{NO-BREAK SPACE}", text)


def to_html(tables: list[Table]) -> str:
    """Return a fragment for benchmark/page.html, which has the styles.

    A gain is green and has a sign for readers who do not see colors.
    """

    def span(text: str, style: str) -> str:
        text = unbroken(html.escape(text))
        if style == "gain":
            return f'<strong class="gain">▲ {text}</strong>'
        return {"bold": f"<strong>{text}</strong>", "mark": f"<sup>{text}</sup>"}.get(style, text)

    parts = []
    for table in tables:
        lines = ['<div class="table">']
        # A row of the paper belongs to the row above it, and the page sorts them together.
        beside = [
            paper for row in table.rows for paper in ((False, True) if row.paper else (False,))
        ]
        for i, (titles, body) in enumerate(grids(table)):
            caption = f"<caption>{html.escape(table.title)}</caption>" if not i else ""
            head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
            lines += [
                f'<div class="scroll"><table>{caption}',
                f"<thead><tr>{head}</tr></thead>",
                "<tbody>",
            ]
            for k, (label, cells) in enumerate(body):
                name, *texts = ("".join(span(*s) for s in cell) for cell in (label, *cells))
                columns = "".join(f"<td>{text}</td>" for text in texts)
                row = '<tr class="beside">' if not i and beside[k] else "<tr>"
                lines.append(f'{row}<th scope="row">{name}</th>{columns}</tr>')
            lines.append("</tbody></table></div>")
        for text, mark in footnotes(table):
            sign = span(mark, "mark") + " " if mark else ""
            lines.append(f'<p class="note">{sign}{html.escape(text)}</p>')
        lines.append("</div>")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
