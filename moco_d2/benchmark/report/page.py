"""The report: one self-contained HTML page about folders of runs."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from moco_d2.benchmark.html import Section, html_figure, html_list, write_report
from moco_d2.benchmark.records.matching import newest
from moco_d2.benchmark.records.run_records import Record, read_records
from moco_d2.benchmark.records.test_sets import by_test_set
from moco_d2.benchmark.report.classes import class_section
from moco_d2.benchmark.report.curves import curve_section
from moco_d2.benchmark.report.detections import detection_section
from moco_d2.benchmark.report.downloads import download_html, source_html
from moco_d2.benchmark.report.errors import error_section
from moco_d2.benchmark.report.forest import forest_image
from moco_d2.benchmark.report.runs import (
    command_section,
    config_section,
    cost_section,
    environment_section,
    run_section,
)
from moco_d2.benchmark.sweeps.report import sweep_section
from moco_d2.benchmark.tables.answer import answer
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.benchmark.tables.formats import to_html, unbroken
from moco_d2.benchmark.tables.grouping import Runs, by_task, file_names
from moco_d2.benchmark.tables.table import Table

_HOW_TO_READ = (
    "In brackets: 95 % confidence interval, not corrected. p: after Holm's correction for all "
    "comparisons of the task. An order is claimed only where p is below 0.05."
)


def write_page(folders: Iterable[str | Path], out: str | Path) -> None:
    """Write the page about all runs in `folders`, fine-tuning and sweeps of pretraining, to `out`.

    The file is written atomically.

    Raises:
        UserError: If a folder does not exist, there are no records, or `out` cannot be written.
    """
    folders = list(folders)
    with tempfile.TemporaryDirectory() as scratch:
        sweeps = sweep_section(folders, Path(scratch))
        records = read_records(folders, required=sweeps is None)
        folder = Path(out).absolute().parent
        sections = page_sections(records, Path(scratch), folder) if records else []
        if sweeps:
            sections.insert(1, sweeps)
        subjects = [*by_task(records), *(["sweeps of pretraining"] if sweeps else [])]
        write_report(out, title=f"Benchmark: {', '.join(subjects)}", sections=sections)


def page_sections(
    records: Sequence[Record], folder: Path, page: Path | None = None
) -> list[Section]:
    """Return the sections of the page, the first of which has the answers and the tables.

    A section whose data are missing in the records says why, and how to get the data.

    Args:
        records: Runs of any tasks.
        folder: Folder of the figures, which must exist until the page is written.
        page: Folder of the page, to which links are relative (default: `folder`).
    """
    records = by_test_set(records)
    counted, _ = newest(records)  # the tables use the same records
    tasks = by_task(counted)
    tables = measured_tables(records)
    sections = [
        _result_section(tasks, tables, folder),
        class_section(tasks),
        curve_section(tasks, folder),
        error_section(tasks, folder),
        detection_section(tasks, folder),
        run_section(tasks, tables, page or folder),
        config_section(tasks),
        cost_section(tasks),
        command_section([r for runs in tasks.values() for group in runs.values() for r in group]),
        environment_section(counted),
    ]
    return [section for section in sections if section]


def _result_section(tasks: Mapping[str, Runs], tables: Sequence[Table], folder: Path) -> Section:
    names = file_names(tasks)
    images = [forest_image(table, folder / f"forest_{names[table.task]}.svg") for table in tables]
    parts = [
        html_list(map(_answer_html, tables), "answers"),
        html_list([_HOW_TO_READ, *_summary(tasks)], "note"),
        *(html_figure(image) for image in images if image),
        to_html(list(tables)),
        download_html(tables, tasks),
        source_html(tables),
    ]
    return Section("Results", tables=parts)


def _answer_html(table: Table) -> Markup:
    name = f"{table.task}:"
    return Markup("<strong>{}</strong>{}").format(name, unbroken(answer(table).removeprefix(name)))


def _summary(tasks: Mapping[str, Runs]) -> list[str]:
    parts = []
    for task, runs in tasks.items():
        group = [record for of_one in runs.values() for record in of_one]
        seeds = sorted({record.seed for record in group})
        parts.append(
            f"{task}: {len(group)} runs, from {', '.join(runs)} "
            f"(seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})."
        )
    return parts
