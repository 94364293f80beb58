"""A self-contained HTML page of text, tables and images, which loads no other files."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import jinja2
import markupsafe
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
class Download:
    """A file inside the page, which the reader can save."""

    name: str
    content: bytes
    mime: str


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, text, HTML, tables and images.

    `text` is plain text, which is escaped; an empty line separates paragraphs. `html` and `tables`
    are not escaped. They must come from functions that escape their content: the functions
    html_* of this file and ``rendering.render(records, "html")``.
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
        rows: Rows with one cell per column; the first cell is the title of the row. A cell of
            html_link stays a link.
        caption: Text above the table.
        notes: Sentences below the table.
        wrap: Whether lines break within cells, for words instead of numbers.
    """
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns)
    lines = [f'<div class="table{" text" if wrap else ""}"><div class="scroll"><table>']
    lines += [f"<caption>{escape(caption)}</caption>"] if caption else []
    lines += [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for title, *cells in rows:
        texts = "".join(f"<td>{markupsafe.escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{markupsafe.escape(title)}</th>{texts}</tr>')
    lines.append("</tbody></table></div>")
    lines += [f'<p class="note">{escape(note)}</p>' for note in notes]
    return "\n".join([*lines, "</div>"])


def html_code(commands: Iterable[tuple[str, str]]) -> str:
    """Return (title, command line) pairs as escaped HTML for Section.html; a title may be ""."""
    return "\n".join(
        (f'<p class="note">{escape(title)}</p>\n' if title else "")
        + f"<pre><code>{escape(line)}</code></pre>"
        for title, line in commands
    )


def html_link(text: str, path: str) -> Markup:
    """Return a link to a file or folder by its path relative to the page, as a cell of html_table.

    The path is no address of another kind, whatever its names are.
    """
    # "javascript:..." as the name of a folder would be an address without "./" and the quotes.
    return Markup('<a href="./{}">{}</a>').format(quote(path, safe="/"), text)


def html_list(texts: Iterable[str], kind: str) -> str:
    """Return an escaped list for Section.html; `kind` is its class in benchmark/page.css."""
    items = "\n".join(f"<li>{markupsafe.escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">\n{items}\n</ul>'


def html_source(title: str, text: str) -> str:
    """Return text to copy that is shown when the reader opens its title."""
    return (
        f'<details class="source"><summary>{escape(title)}</summary>'
        f"<pre><code>{escape(text)}</code></pre></details>"
    )


def html_downloads(files: Iterable[Download], note: str = "") -> str:
    """Return links that save files, which are inside the page, and a note below them."""
    links = "\n".join(
        f'<a download="{escape(file.name)}" href="{_base64_uri(file.mime, file.content)}">'
        f"{escape(file.name)}</a>"
        for file in files
    )
    return f'<p class="downloads">{links}</p>\n<p class="note">{escape(note)}</p>'


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
    parts = {name: Markup(_shipped(f"page.{name}")) for name in ("css", "js")}  # noqa: S704
    hashes = {name: _csp_hash(text) for name, text in parts.items()}
    return environment.get_template("page.html").render(
        title=title, sections=content, hashes=hashes, **parts
    )


def _shipped(name: str) -> str:
    return resources.files("moco_d2.benchmark").joinpath(name).read_text("utf-8")


def _csp_hash(text: str) -> str:
    """Return the source of a content security policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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
    return _base64_uri(mime, content)


def _base64_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
