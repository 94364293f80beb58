"""The display of a runner: a live table on a terminal, or lines in a log."""

import contextlib
import datetime
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from moco_d2.benchmark.runs.progress import Task
from moco_d2.benchmark.runs.suites import Suite
from moco_d2.files import read_tail
from moco_d2.records.metrics_json import finite, parse_line

_TAIL = 4096  # bytes at the end of metrics.json; its last line is shorter
_MOST_FAILED = 5  # failed runs in the live table; all are named at the end


class Display(Protocol):
    """Shows the progress of the cells."""

    def event(self, task: Task, text: str) -> None:
        """Show that the cell of `task` has started, continued, stopped or ended."""

    def update(self, tasks: Iterable[Task]) -> None:
        """Show all tasks of the suite; the runner calls this about twice a second."""


@contextlib.contextmanager
def display(suite: Suite, folder: Path) -> Iterator[Display]:
    """Yield the display that fits stdout."""
    if not sys.stdout.isatty():
        yield _Lines(suite)
        return
    from rich.live import Live

    # Without auto_refresh it has no thread; the runner refreshes it.
    with Live(auto_refresh=False) as live:
        yield _Table(suite, folder, live)


class _Lines:
    def __init__(self, suite: Suite):
        self.total = len(suite.cells)
        self.counts: Counter[str] = Counter()

    def event(self, task: Task, text: str) -> None:
        now = datetime.datetime.now().strftime("%H:%M:%S")
        print(f"{now} {task.cell.name} {text}", flush=True)

    def update(self, tasks: Iterable[Task]) -> None:
        counts = Counter(task.status for task in tasks)
        if counts["done"] != self.counts["done"]:
            print(f"{counts['done']} of {self.total} done, {counts['running']} running", flush=True)
        self.counts = counts


class _Table:
    def __init__(self, suite: Suite, folder: Path, live: Any):
        self.suite, self.folder, self.live = suite, folder, live
        self.started: dict[str, float] = {}

    def event(self, task: Task, text: str) -> None:
        if task.status == "running":
            self.started[task.cell.name] = time.monotonic()

    def update(self, tasks: Iterable[Task]) -> None:
        from rich.table import Table

        tasks = list(tasks)
        counts = Counter(task.status for task in tasks)
        total = ", ".join(f"{counts[s]} {s}" for s in _ORDER if counts[s])
        columns = ("run", "status", "iteration", "time left", "running for")
        table = Table(*columns, title=f"{self.suite.name}: {total}")
        failed = [task for task in tasks if task.status == "failed"]
        shown = [task for task in tasks if task.status in ("running", "elsewhere")]
        for task in [*failed[-_MOST_FAILED:], *shown]:
            table.add_row(task.cell.name, task.status, *self._progress(task))
        self.live.update(table, refresh=True)

    def _progress(self, task: Task) -> tuple[str, str, str]:
        if task.status == "failed":
            from rich.markup import escape

            return escape(task.problem), "", ""
        line = last_metrics(self.folder / task.cell.name / "metrics.json")
        seconds = time.monotonic() - self.started.get(task.cell.name, time.monotonic())
        return (
            str(line["iteration"] + 1) if "iteration" in line else "",
            duration(line["eta_seconds"]) if "eta_seconds" in line else "",
            duration(seconds) if task.status == "running" else "",
        )


_ORDER = ("done", "running", "elsewhere", "waiting", "failed")


def last_metrics(path: Path) -> dict[str, Any]:
    """Return the numbers in the last line of a metrics.json; {} without a complete last line."""
    try:
        lines = read_tail(path, _TAIL).splitlines()
    except (OSError, ValueError):  # the file is missing or not a regular file
        return {}
    line = parse_line(lines[-1]) if lines else None
    return {key: value for key, value in (line or {}).items() if finite(value) is not None}


def duration(seconds: float) -> str:
    """Return a duration as text: ``45 s``, ``3 min``, ``2 h 05 min``, ``1 d 03 h``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"
