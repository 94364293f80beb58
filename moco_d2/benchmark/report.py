"""One self-contained HTML page of text, tables and images: it opens anywhere and loads nothing."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
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
    """An image file and the sentence below it, which is also its alternative text."""

    path: str | Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, text, HTML, tables and images.

    `text` is plain and escaped; an empty line separates paragraphs. `html` and `tables` go in as
    they are: pass only what escaped its own content, as ``tables.render(records, "html")`` does.
    """

    title: str
    text: str = ""
    html: str = ""
    tables: Sequence[str] = ()
    images: Sequence[Image] = ()


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
            "html": [Markup(part) for part in (section.html, *section.tables) if part],
            "images": [{"uri": _data_uri(i.path), "caption": i.caption} for i in section.images],
        }
        for section in sections
    ]
    return environment.get_template("report.html").render(title=title, sections=content)


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
