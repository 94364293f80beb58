"""One self-contained HTML page of text, tables and images: it opens anywhere and loads nothing."""

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
    """An image file, the sentence below it, and its alternative text: by default that sentence."""

    path: str | Path
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, text, HTML, tables and images.

    `text` is plain and escaped; an empty line separates paragraphs. `html` and `tables` go in as
    they are: pass only what escaped its own content, as html_table, html_code, html_figure and
    ``rendering.render(records, "html")`` do.
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
    """A table for Section.tables; every text in it is escaped.

    Args:
        columns: titles.
        rows: as many cells each as there are columns; the first is the row's title.
        caption: above it.
        notes: sentences below it.
        wrap: break lines within cells; for words, not for numbers.
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
    """Command lines for Section.html, each below its title, if it has one; escaped."""
    return "\n".join(
        (f'<p class="note">{escape(title)}</p>\n' if title else "")
        + f"<pre><code>{escape(line)}</code></pre>"
        for title, line in commands
    )


def html_figure(image: Image) -> str:
    """An image with its caption, for Section.html or among its tables.

    Raises:
        UserError: it is missing, or of a type browsers do not show.
    """
    return (
        f'<figure><img src="{_data_uri(image.path)}" alt="{escape(image.alt or image.caption)}">'
        f"<figcaption>{escape(image.caption)}</figcaption></figure>"
    )


def render_report(*, title: str, sections: Sequence[Section]) -> str:
    """The page as HTML, images as base64 data URIs.

    Raises:
        UserError: an image is missing or of a type browsers do not show.
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
            # What its maker has escaped, by the contract of Section.
            "html": [Markup(part) for part in _parts(section) if part],  # noqa: S704
        }
        for section in sections
    ]
    return environment.get_template("page.html").render(title=title, sections=content)


def _parts(section: Section) -> list[str]:
    return [section.html, *section.tables, *map(html_figure, section.images)]


def write_report(path: str | Path, *, title: str, sections: Sequence[Section]) -> None:
    """Write the page of render_report to `path`, atomically.

    Raises:
        UserError: as render_report, or `path` cannot be written.
    """
    write_text(path, render_report(title=title, sections=sections))


def _data_uri(path: str | Path) -> str:
    path = Path(path)
    mime = _MIME_TYPES.get(path.suffix.lower())
    if mime is None:
        raise UserError(f"{path} is not an image for a page; use one of {', '.join(_MIME_TYPES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}; draw it first") from error
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
