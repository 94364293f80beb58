"""The files inside the report: tables as CSV, LaTeX and Markdown, records and configs of runs."""

import io
import itertools
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moco_d2.benchmark.html import Download, html_downloads, html_source
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.report.classes import classes_csv
from moco_d2.benchmark.tables.formats import to_csv, to_latex, to_markdown
from moco_d2.benchmark.tables.grouping import Runs
from moco_d2.benchmark.tables.table import Table
from moco_d2.files import read_regular_file

_MOST_FILE_BYTES = 16 << 20  # 20 evaluations of LVIS, class by class, take 4 MB
# Compressed. Record and config of a run of the demo take 7.9 kB.
_MOST_BYTES = 6 << 20
_LONGEST_NAME = 60  # characters

_logger = logging.getLogger(__name__)


def source_html(tables: Sequence[Table]) -> str:
    """Return the tables as text to copy, as escaped HTML."""
    texts = {"LaTeX": to_latex, "Markdown": to_markdown, "CSV": to_csv}
    return "\n".join(
        html_source(f"Show as {name}", write(list(tables))) for name, write in texts.items()
    )


def download_html(tables: Sequence[Table], tasks: Mapping[str, Runs]) -> str:
    """Return links to the files that are inside the page, as escaped HTML.

    Args:
        tables: The tables of the page.
        tasks: Runs by task and initialization, see grouping.by_task.
    """
    # A run with several test sets has a row for each, and one record.
    files: dict[Path, Record] = {}
    for runs in tasks.values():
        for group in runs.values():
            for record in group:
                files.setdefault(record.path, record)
    records = list(files.values())
    archive, left_out = _archive(records)
    downloads = [
        Download("table.csv", to_csv(list(tables)).encode(), "text/csv"),
        Download("table.tex", to_latex(list(tables)).encode(), "application/x-tex"),
        Download("table.md", to_markdown(list(tables)).encode(), "text/markdown"),
    ]
    if (classes := classes_csv(tasks)).count("\n") > 1:
        downloads.append(Download("classes.csv", classes.encode(), "text/csv"))
    downloads.append(Download("runs.zip", archive, "application/zip"))
    note = "runs.zip has the record and the config of each run."
    if left_out:
        note += (
            f" It would be too large with all: the files of {left_out} runs are only in their "
            "folders."
        )
    return html_downloads(downloads, note)


def _archive(records: Sequence[Record]) -> tuple[bytes, int]:
    """Return a zip file of the runs, and the number of runs that it leaves out."""
    out = io.BytesIO()
    names: set[str] = set()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in records:
            if out.tell() > _MOST_BYTES:
                break
            names.add(folder := _folder(record, names))
            for file, content in _contents(record):
                # Without a date, equal runs give equal files.
                info = zipfile.ZipInfo(f"{folder}/{file}")
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
    return out.getvalue(), len(records) - len(names)


def _folder(record: Record, taken: set[str]) -> str:
    """Return a folder of the archive. Names in a record may have slashes and dots."""
    parts = (record.task, record.initialization, f"seed{record.seed}")
    name = "/".join(re.sub(r"[^A-Za-z0-9_-]", "_", part)[:_LONGEST_NAME] for part in parts)
    free = (f"{name}_{i}" for i in itertools.count(2))
    return name if name not in taken else next(other for other in free if other not in taken)


def _contents(record: Record) -> Iterator[tuple[str, bytes]]:
    # Records may have any name; the config beside them is absent in an imported run.
    for name, path in (
        ("record.json", record.path),
        ("config.yaml", record.path.parent / "config.yaml"),
    ):
        try:
            yield name, read_regular_file(path, _MOST_FILE_BYTES)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            _logger.warning("%s is not in the report: %s", path, error)
