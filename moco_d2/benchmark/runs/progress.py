"""The cells of a suite with their states, for the runner and its display."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from moco_d2.benchmark.runs import cell_state
from moco_d2.benchmark.runs.suites import Cell, Suite


@dataclasses.dataclass
class Task:
    """A cell with its status: "waiting", "running", "elsewhere", "done" or "failed".

    "elsewhere" means that another process runs it.
    """

    cell: Cell
    status: str = "waiting"
    exit_code: int = 0
    problem: str = ""


class Tasks:
    """The cells of a suite with their states."""

    def __init__(self, suite: Suite, folder: Path, processes: int):
        self.suite, self.folder, self.processes = suite, folder, processes
        self.all = {cell.name: Task(cell) for cell in suite.cells}
        for task in self.all.values():
            if self.state(task.cell).status == "done":
                task.status = "done"

    def state(self, cell: Cell) -> cell_state.State:
        return cell_state.examine(cell, self.folder, processes=self.processes)

    def log(self, cell: Cell) -> Path:
        return self.folder / cell.name / cell_state.OUTPUT_LOG

    def of(self, *statuses: str) -> list[Task]:
        return [task for task in self.all.values() if task.status in statuses]

    def fail(self, task: Task, exit_code: int, problem: str) -> None:
        task.status, task.exit_code, task.problem = "failed", exit_code, problem

    def ready(self) -> Iterator[Task]:
        """Yield the tasks that can start now. A task whose need has failed becomes failed."""
        for task in self.of("waiting", "elsewhere"):
            needed = [self.all[name] for name in task.cell.needs]
            failed = next((t for t in needed if t.status == "failed"), None)
            if failed is not None:
                self.fail(task, failed.exit_code, f"not run: it needs {failed.cell.name}")
            elif all(t.status == "done" for t in needed):
                yield task
