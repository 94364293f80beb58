"""The order of runs in tables and figures."""

import re
from collections.abc import Iterable, Mapping, Sequence

from moco_d2.benchmark.records.matching import BASELINES
from moco_d2.benchmark.records.run_records import Record

# Rows in the paper's order; others follow alphabetically.
_ROW_ORDER = ("random", *BASELINES, "supervised_msra", "moco")
_LONGEST_NAME = 60  # characters

#: Initialization -> runs.
Runs = Mapping[str, Sequence[Record]]


def row_order(initialization: str) -> tuple[int, str]:
    """Return a sort key: the paper's order, then alphabetical."""
    known = initialization in _ROW_ORDER
    return (_ROW_ORDER.index(initialization) if known else len(_ROW_ORDER), initialization)


def by_initialization(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return runs by initialization in the paper's order, sorted by seed."""
    runs: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (row_order(r.initialization), r.seed)):
        runs.setdefault(record.initialization, []).append(record)
    return runs


def by_task(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """Return by_initialization of each task, sorted by task."""
    tasks: dict[str, list[Record]] = {}
    for record in records:
        tasks.setdefault(record.task, []).append(record)
    return {task: by_initialization(tasks[task]) for task in sorted(tasks)}


def is_voc(records: Iterable[Record]) -> bool:
    """Return whether the runs belong to the paper's VOC tables, which name metrics differently."""
    return is_voc_name(*(name for r in records for name in (r.task, *r.datasets_test)))


def is_voc_name(*names: str) -> bool:
    """Return whether a name of a task or of a dataset is one of VOC."""
    return any("voc" in name.lower() for name in names)


def file_names(tasks: Iterable[str]) -> dict[str, str]:
    """Return a unique file name for each task: the name of the task if that is a file name."""
    names = {}
    for i, task in enumerate(tasks):
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", task)[:_LONGEST_NAME]
        names[task] = task if plain == task else f"{plain}_{i}"
    return names
