"""The paper's tables from run records, and the paper's own, as Markdown, CSV, LaTeX or HTML."""

from collections.abc import Callable, Iterable
from pathlib import Path

from moco_d2.benchmark.records.pretext_records import read_pretext_records
from moco_d2.benchmark.records.results import Record, read_records
from moco_d2.benchmark.sweeps.tables import sweep_tables
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.benchmark.tables.formats import to_csv, to_html, to_latex, to_markdown
from moco_d2.benchmark.tables.published import published_tables
from moco_d2.benchmark.tables.table import Table
from moco_d2.errors import UserError, closest

#: Writers by name; each turns tables into text.
FORMATS: dict[str, Callable[[list[Table]], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "html": to_html,
}


def render(records: Iterable[Record], format: str = "markdown") -> str:
    """One table a task from run records.

    Args:
        format: a key of FORMATS. ``csv`` has one line a cell, unrounded; ``html`` is a fragment.

    Raises:
        UserError: unknown format.
    """
    return _writer(format)(measured_tables(records))


def render_folders(paths: Iterable[str | Path], format: str = "markdown") -> str:
    """One table a task from the run records in folders, and one a sweep of the pretraining.

    Raises:
        UserError: unknown format, a path does not exist, or there is neither.
    """
    writer, paths = _writer(format), list(paths)
    sweeps = sweep_tables(read_pretext_records(paths))
    return writer([*measured_tables(read_records(paths, required=not sweeps)), *sweeps])


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
