"""A self-contained HTML page of text, tables and images, which loads no other files."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import jinja2
from markupsafe import Markup

from moco_d2.errors import UserError
from moco_d2.files import write_text

_MIME_TYPES = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


@dataclass(frozen=True)
class Image:
    """An image file with its caption and its alternative text (default: the caption)."""

    path: str | Path
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, text, HTML, tables and images.

    `text` is plain text, which is escaped; an empty line separates paragraphs. `html` and `tables`
    are not escaped. They must come from functions that escape their content: html_table, html_code,
    html_figure and ``rendering.render(records, "html")``.
    """

    title: str
    text: str = ""
    html: str = ""
    tables: Sequence[str] = ()
    images: Sequence[Image] = ()


def html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    notes: Iterable[str] = (),
    wrap: bool = False,
) -> str:
    """Return a table for Section.tables; all its text is escaped.

    Args:
        columns: Titles of the columns.
        rows: Rows with one cell per column; the first cell is the title of the row.
        caption: Text above the table.
        notes: Sentences below the table.
        wrap: Whether lines break within cells, for words instead of numbers.
    """
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns)
    lines = [f'<div class="table{" text" if wrap else ""}"><table>']
    lines += [f"<caption>{escape(caption)}</caption>"] if caption else []
    lines += [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for title, *cells in rows:
        texts = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(str(title))}</th>{texts}</tr>')
    lines.append("</tbody></table>")
    lines += [f'<p class="note">{escape(note)}</p>' for note in notes]
    return "\n".join([*lines, "</div>"])


def html_code(commands: Iterable[tuple[str, str]]) -> str:
    """Return (title, command line) pairs as escaped HTML for Section.html; a title may be ""."""
    return "\n".join(
        (f'<p class="note">{escape(title)}</p>\n' if title else "")
        + f"<pre><code>{escape(line)}</code></pre>"
        for title, line in commands
    )


def html_figure(image: Image) -> str:
    """Return an image with its caption, for Section.html or Section.tables.

    Raises:
        UserError: If the file does not exist, or browsers do not show its type.
    """
    return (
        f'<figure><img src="{_data_uri(image.path)}" alt="{escape(image.alt or image.caption)}">'
        f"<figcaption>{escape(image.caption)}</figcaption></figure>"
    )


def render_report(*, title: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML with images as base64 data URIs.

    Raises:
        UserError: If an image does not exist, or browsers do not show its type.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moco_d2.benchmark", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = [
        {
            "title": section.title,
            "paragraphs": [p for p in section.text.split("\n\n") if p.strip()],
            # By the contract of Section these parts are escaped already.
            "html": [Markup(part) for part in _parts(section) if part],  # noqa: S704
        }
        for section in sections
    ]
    return environment.get_template("page.html").render(title=title, sections=content)


def _parts(section: Section) -> list[str]:
    return [section.html, *section.tables, *map(html_figure, section.images)]


def write_report(path: str | Path, *, title: str, sections: Sequence[Section]) -> None:
    """Write the page of render_report to `path` atomically.

    Raises:
        UserError: As in render_report, or if `path` cannot be written.
    """
    write_text(path, render_report(title=title, sections=sections))


def _data_uri(path: str | Path) -> str:
    path = Path(path)
    mime = _MIME_TYPES.get(path.suffix.lower())
    if mime is None:
        raise UserError(f"{path} must be an image of type {', '.join(_MIME_TYPES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}; draw it first") from error
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
