"""The page of a board, made from run records alone: results, provenance and cost of every row.

The same records give the same page, byte for byte, wherever they are.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import special

from moco_d2.benchmark.board.ranks import rank_ranges
from moco_d2.benchmark.html import Section, html_table, render_report
from moco_d2.benchmark.records.matching import MARKS, newest
from moco_d2.benchmark.records.run_records import Record, read_content, read_records
from moco_d2.benchmark.records.test_sets import by_test_set
from moco_d2.benchmark.report.runs import distinct, duration, hardware_of, value_range
from moco_d2.benchmark.statistics import LEVEL, Summary
from moco_d2.benchmark.tables.answer import headline_metrics
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.benchmark.tables.grouping import Runs, by_task, row_order
from moco_d2.benchmark.tables.table import Table
from moco_d2.errors import UserError
from moco_d2.files import sha256, write_text

_ABSENT = "–"
_SHORT = 12  # characters of a hash
_HOW_TO_READ = (
    "A cell has the mean over seeds in percent, its 95 % confidence interval, the range of ranks "
    "that the tests allow, and the number of runs. Rows whose ranges do not overlap are in a "
    "supported order; tools/benchmark.py table has the test of each pair."
)
_VERIFY = "To check a run against its folder: tools/benchmark.py verify RECORD."


@dataclass(frozen=True)
class Part:
    """A heading with a table of text and notes below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def write_board(folders: Iterable[str | Path], out: str | Path) -> None:
    """Write the board of all runs in `folders` to `out` atomically.

    Args:
        folders: Folders with records at any depth, or records.
        out: A ``.md`` or ``.html`` file. The page names records relative to its folder.

    Raises:
        UserError: If a folder does not exist, there are no records, or `out` has another suffix or
            cannot be written.
    """
    suffix = Path(out).suffix.lower()
    if suffix not in (".md", ".html"):
        raise UserError(f"--out {out} must end in .md or .html; rename it")
    write_text(out, render_board(read_records(folders), Path(out).parent, html=suffix == ".html"))


def render_board(records: Sequence[Record], folder: Path, *, html: bool = False) -> str:
    """Return the board of run records as Markdown or as a self-contained HTML page.

    Args:
        records: Runs of any tasks.
        folder: The folder of the page, to which the paths of records are relative.
        html: Whether the result is HTML.
    """
    title, parts = board_parts(records, folder)
    if not html:
        return "\n".join([f"# {title}\n", *map(markdown, parts)])
    sections = [
        Section(part.title, tables=[html_table(part.columns, part.rows, notes=part.notes)])
        for part in parts
    ]
    return render_report(title=title, sections=sections)


def board_parts(records: Sequence[Record], folder: Path) -> tuple[str, tuple[Part, Part, Part]]:
    """Return the title of a board, and its results, provenance and runs; see render_board."""
    split = sorted(by_test_set(records), key=lambda r: os.path.relpath(r.path, folder))
    counted, repeated = newest(split)
    tasks = by_task(counted)
    tables = {table.task: table for table in measured_tables(split)}
    names = sorted({name for runs in tasks.values() for name in runs}, key=row_order)
    title = f"Board: {_number(names, 'initialization')}, {_number(tasks, 'task')}"
    older = [f"Older records of the same runs, not counted: {len(repeated)}."] if repeated else []
    return title, (_results(names, tables), _rows(tasks), _runs(tasks, tables, folder, older))


def _number(things: Iterable[object], noun: str) -> str:
    n = len(list(things))
    return f"{n} {noun}{'s' * (n != 1)}"


def _results(names: Sequence[str], tables: Mapping[str, Table]) -> Part:
    cells: dict[str, list[str]] = {name: [] for name in names}
    columns, notes = ["initialization"], [_HOW_TO_READ]
    for table in tables.values():
        rows = {row.label: row for row in table.rows}
        for metric, title in headline_metrics(table).items():
            columns.append(f"{table.task}, {title}")
            ranks, i = rank_ranges(table, metric), table.metrics.index(metric)
            for name, texts in cells.items():
                cell = rows[name].cells[i] if name in rows else None
                if cell is None or cell.mean is None or cell.n is None:
                    texts.append(_ABSENT)
                    continue
                signs = "".join(MARKS[mark] for mark in rows[name].marks)
                value = interval_text(Summary(cell.mean, cell.std, cell.n))
                texts.append(f"{value}{signs}, rank {_span(*ranks[name])} (n={cell.n})")
        notes.append(f"Test set of {table.title}.")
        shown = {mark for row in table.rows for mark in row.marks}
        notes += [f"{table.task}: {MARKS[m]} {text}." for m, text in table.footnotes if m in shown]
    return Part("Results", columns, [[name, *texts] for name, texts in cells.items()], notes)


def interval_text(summary: Summary) -> str:
    """Return a mean with its confidence interval (Student's t), ``55.9 [55.7, 56.1]``."""
    if summary.std is None:
        return f"{summary.mean:.1f}"
    t = float(special.stdtrit(summary.n - 1, (1 + LEVEL) / 2))
    half = t * summary.std / math.sqrt(summary.n)
    return f"{summary.mean:.1f} [{summary.mean - half:.1f}, {summary.mean + half:.1f}]"


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def _rows(tasks: Mapping[str, Runs]) -> Part:
    columns = ["row", "seeds", "weights", "weights made from", "run by", "code", "training images"]
    columns += ["images seen", "time of a run", "peak memory, GiB", "hardware"]
    rows = []
    for task, runs in tasks.items():
        for name, group in runs.items():
            starts = [(read_content(r.path) or {}).get("weights") for r in group]
            rows.append(
                [
                    f"{task}, {name}",
                    ", ".join(str(r.seed) for r in group),
                    distinct(map(_file, starts)),
                    distinct(map(_origin, starts)),
                    distinct(r.origin["source"] or r.origin["how"] for r in group),
                    distinct(map(_code, group)),
                    distinct(map(_training_images, group)),
                    value_range(r.images for r in group),
                    duration([r.seconds for r in group]),
                    value_range(r.cost.get("peak_memory_gib") for r in group),
                    distinct(map(hardware_of, group)),
                ]
            )
    return Part("Provenance and cost", columns, rows)


def _file(weights: Mapping[str, Any] | None) -> str:
    if not weights:
        return "none"
    return f"{weights['file']} {(weights['sha256'] or 'of unknown sha256')[:_SHORT]}"


def _origin(weights: Mapping[str, Any] | None) -> str:
    """Return what the converter said about the weights, as far as it is known."""
    if not weights:
        return "random initialization"
    made = weights["provenance"] or {}
    published = made.get("published")
    name = published.get("name") if isinstance(published, dict) else None
    parts = [name, made.get("source"), made.get("family")]
    known = [part for part in parts if isinstance(part, str)]
    return ", ".join(dict.fromkeys(known)) or "unknown"


def _training_images(record: Record) -> str | int | None:
    data = record.data or {}
    return data.get("train_content", data.get("train_images"))


def _code(record: Record) -> str:
    names = ("moco_d2", "detectron2", "torch")
    return ", ".join(f"{n} {v}" for n in names if (v := record.environment.get(n))) or "unknown"


def _runs(
    tasks: Mapping[str, Runs], tables: Mapping[str, Table], folder: Path, notes: Sequence[str]
) -> Part:
    rows = []
    for task, runs in tasks.items():
        metrics = headline_metrics(tables[task])
        for record in (record for group in runs.values() for record in group):
            values = [
                f"{title} {_ABSENT if (v := record.metrics.get(metric)) is None else f'{v:.2f}'}"
                for metric, title in metrics.items()
            ]
            path = Path(os.path.relpath(record.path, folder)).as_posix()
            rows.append(
                [
                    f"{task}, {record.initialization}, seed {record.seed}",
                    ", ".join(values),
                    path,
                    sha256(record.path)[:_SHORT],
                ]
            )
    columns = ["run", "result", "record", "sha256 of the record"]
    return Part("Runs", columns, rows, [_VERIFY, *notes])


def markdown(part: Part) -> str:
    """Return a part of a board as Markdown, with all text of the records escaped."""
    lines = [part.columns, ["---"] * len(part.columns), *part.rows]
    table = [f"| {' | '.join(map(escaped, line))} |" for line in lines]
    notes = (f"\n{escaped(note)}" for note in part.notes)
    return "\n".join([f"## {part.title}\n", *table, *notes, ""])


def escaped(text: str) -> str:
    """Return text on one line in which nothing is markup of Markdown."""
    for special_character in "\\`*_|<>[]":
        text = text.replace(special_character, f"\\{special_character}")
    return " ".join(text.split())
