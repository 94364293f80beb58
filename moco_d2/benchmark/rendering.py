"""Tables of run records and published tables as Markdown, CSV, LaTeX or HTML."""

from collections.abc import Callable, Iterable
from pathlib import Path

from moco_d2.benchmark.records.pretext_records import read_pretext_records
from moco_d2.benchmark.records.run_records import Record, read_records
from moco_d2.benchmark.sweeps.tables import sweep_tables
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.benchmark.tables.formats import to_csv, to_html, to_latex, to_markdown
from moco_d2.benchmark.tables.from_paper import published_tables
from moco_d2.benchmark.tables.table import Table
from moco_d2.errors import UserError, closest

#: Name of a format -> function that writes tables as text.
FORMATS: dict[str, Callable[[list[Table]], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "html": to_html,
}


def render(records: Iterable[Record], format: str = "markdown") -> str:
    """Return one table per task from run records.

    Args:
        records: The runs.
        format: A key of FORMATS. ``csv`` has one line per cell, unrounded; ``html`` is a fragment.

    Raises:
        UserError: If the format is unknown.
    """
    return _writer(format)(measured_tables(records))


def render_folders(
    paths: Iterable[str | Path], format: str = "markdown", *, images: bool = False
) -> str:
    """Return one table per task from the run records in folders, and one per pretraining sweep.

    Args:
        paths: Folders with records at any depth.
        format: A key of FORMATS.
        images: Whether to add the intervals over seeds and images (CSV has none).

    Raises:
        UserError: If the format is unknown, a path does not exist, or there are no records; with
            `images`, if no run has a usable per_image.npz.
    """
    writer, paths = _writer(format), list(paths)
    sweeps = sweep_tables(read_pretext_records(paths))
    records = read_records(paths, required=not sweeps)
    tables = measured_tables(records)
    if images:
        from moco_d2.benchmark.tables.image_intervals import with_images

        tables = with_images(tables, records)
    return writer([*tables, *sweeps])


def render_paper(name: str | None = None, format: str = "markdown") -> str:
    """Return published tables with differences recomputed from the printed values.

    Args:
        name: Name of a table or of a task; None for all tables.
        format: A key of FORMATS.

    Raises:
        UserError: If the name or the format is unknown.
    """
    return _writer(format)(published_tables(name))


def _writer(format: str) -> Callable[[list[Table]], str]:
    if format not in FORMATS:
        hint = closest(format, FORMATS) or f"there are {', '.join(FORMATS)}"
        raise UserError(f"unknown table format {format!r}; {hint}")
    return FORMATS[format]
