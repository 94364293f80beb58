"""Runs in the order in which tables and figures show them."""

import re
from collections.abc import Iterable

from moco_d2.benchmark.records.results import Record
from moco_d2.benchmark.tables.comparison import row_order

_LONGEST_NAME = 60


def by_initialization(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Runs by initialization, in the paper's order, those of each by seed."""
    runs: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (row_order(r.initialization), r.seed)):
        runs.setdefault(record.initialization, []).append(record)
    return runs


def by_task(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """by_initialization of each task, tasks by name."""
    tasks: dict[str, list[Record]] = {}
    for record in records:
        tasks.setdefault(record.task, []).append(record)
    return {task: by_initialization(tasks[task]) for task in sorted(tasks)}


def is_voc(records: Iterable[Record]) -> bool:
    """Whether the runs are named and printed as in the paper's VOC tables."""
    return any("voc" in name.lower() for r in records for name in (r.task, *r.datasets_test))


def file_names(tasks: Iterable[str]) -> dict[str, str]:
    """A different name for the files of each task, its own where that is a name for files."""
    names = {}
    for i, task in enumerate(tasks):
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", task)[:_LONGEST_NAME]
        names[task] = task if plain == task else f"{plain}_{i}"
    return names
