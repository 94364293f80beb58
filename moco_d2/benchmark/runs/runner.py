"""Runs what is missing of a suite: a process a run, a few at a time, restartable at any point."""

import contextlib
import dataclasses
import importlib
import math
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs import cell_state, run_log
from moco_d2.benchmark.runs.checks import check_configs, check_conflicts
from moco_d2.benchmark.runs.display import Display, display
from moco_d2.benchmark.runs.execution import (
    BUSY_EXIT_CODE,
    MODULES,
    TOOLS,
    Place,
    main,
)
from moco_d2.benchmark.runs.places import make_places
from moco_d2.benchmark.runs.suites import Cell, Suite, load_suite
from moco_d2.engine.signals import SAME_SIGNAL_S, STOP_SIGNALS, held_back
from moco_d2.errors import USER_ERROR_EXIT_CODE, UserError
from moco_d2.files import sha256_of_json, write_text
from moco_d2.locks import suite_in

_POLL_SECONDS = 0.5
_FAILED_EXIT_CODE = 1


def run(
    suite: str | Path | Suite,
    *,
    folder: Path | None = None,
    gpus_per_run: int = 1,
    jobs: int | None = None,
    submit: list[str] | None = None,
    tools: Path = TOOLS,
) -> int:
    """Run, or submit, every cell that is not done.

    Killed at any point, and started again, it continues what was begun, and repeats nothing that
    was finished. Of several runners of a suite on one folder, each run is had by one.

    Args:
        suite: see suites.load_suite; or a suite itself.
        folder: of its outputs; default: output/SUITE.
        gpus_per_run: of each run; 0: CPU. Without a GPU, 1 is CPU too.
        jobs: runs at a time; default: as many as the GPUs allow, and on a CPU one a core.
        submit: words KEY=VALUE for slurm.submit; None: run here.
        tools: the folder of the cells' tools.

    Returns:
        an exit code: 0; 2 if what failed are user errors alone; 1 if something else failed.

    Raises:
        UserError: nothing was started: no such suite, the folder holds other runs, another suite is
            being run in it, or there are fewer GPUs.
        SystemExit: on SIGINT, SIGTERM and SIGHUP, when the runs have saved and stopped; 128 + its
            number.
    """
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    folder = (Path("output") / suite.name if folder is None else folder).absolute()
    if not tools.is_dir():
        raise UserError(f"no folder {tools}: run suites from a checkout, which has tools/")
    if gpus_per_run < 0 or (jobs is not None and jobs < 1):
        raise UserError("--gpus-per-run must be at least 0, and --jobs at least 1")
    fingerprint = sha256_of_json([dataclasses.asdict(cell) for cell in suite.cells])
    with suite_in(folder, suite.name, fingerprint):
        return _run(suite, folder, gpus_per_run=gpus_per_run, jobs=jobs, submit=submit, tools=tools)


def _run(
    suite: Suite,
    folder: Path,
    *,
    gpus_per_run: int,
    jobs: int | None,
    submit: list[str] | None,
    tools: Path,
) -> int:
    """`run` in a folder in which no other suite is being run."""
    processes = max(1, gpus_per_run)
    run_log.check_log(folder)
    check_conflicts(suite.cells, folder, processes)
    tasks = _Tasks(suite, folder, processes)
    waiting = [task.cell for task in tasks.of("waiting")]
    check_configs(waiting, folder, suite.files, processes=processes)
    for path, content in suite.files.items():
        write_text(folder / path, content)
    if submit is not None:
        place = Place(processes, None if gpus_per_run else (), tools=tools)
        return _submit(tasks, place, gpus_per_run, submit)
    if not tasks.of("waiting"):
        return _report(tasks)
    places = make_places(gpus_per_run, jobs, runs=len(suite.cells), tools=tools)
    with _stop_signals() as stop, display(suite, folder) as shown:
        _Runner(tasks, places, shown, stop).run()
    return _report(tasks)


# ---- what is left to do --------------------------------------------------------------------------


@dataclasses.dataclass
class _Task:
    """A cell, and what became of it: "waiting", "running", "elsewhere", "done" or "failed"."""

    cell: Cell
    status: str = "waiting"
    exit_code: int = 0
    problem: str = ""


class _Tasks:
    """The cells of a suite and how far they are."""

    def __init__(self, suite: Suite, folder: Path, processes: int):
        self.suite, self.folder, self.processes = suite, folder, processes
        self.all = {cell.name: _Task(cell) for cell in suite.cells}
        for task in self.all.values():
            if self.state(task.cell).status == "done":
                task.status = "done"

    def state(self, cell: Cell) -> cell_state.State:
        return cell_state.examine(cell, self.folder, processes=self.processes)

    def log(self, cell: Cell) -> Path:
        return self.folder / cell.name / cell_state.OUTPUT_LOG

    def of(self, *statuses: str) -> list[_Task]:
        return [task for task in self.all.values() if task.status in statuses]

    def fail(self, task: _Task, exit_code: int, problem: str) -> None:
        task.status, task.exit_code, task.problem = "failed", exit_code, problem

    def ready(self) -> Iterator[_Task]:
        """What can be started now; what cannot be any more becomes failed."""
        for task in self.of("waiting", "elsewhere"):
            needed = [self.all[name] for name in task.cell.needs]
            failed = next((t for t in needed if t.status == "failed"), None)
            if failed is not None:
                self.fail(task, failed.exit_code, f"not run: it needs {failed.cell.name}")
            elif all(t.status == "done" for t in needed):
                yield task


class _Runner:
    """Starts processes and waits for them."""

    def __init__(
        self, tasks: _Tasks, places: list[Place], shown: Display, stop: "_StopRequest"
    ) -> None:
        self.tasks, self.shown, self.stop = tasks, shown, stop
        self.free = list(places)
        self.running: dict[Any, tuple[_Task, Place]] = {}
        left = [task.cell for task in tasks.of("waiting")]
        self.context = _warmed({tool for cell in left for tool, _ in cell.commands})

    def run(self) -> None:
        """Until nothing is left.

        Raises:
            SystemExit: told to stop.
        """
        try:
            while self.running or (self.tasks.of("waiting", "elsewhere") and not self.stop.number):
                self._start_ready()
                self._collect()
                self.shown.update(self.tasks.all.values())
                if self.stop.number:
                    self._tell_to_stop()
        finally:  # by an error here: let nothing go on that nobody reports
            for process in self.running:
                process.terminate()
        if self.stop.number:
            raise SystemExit(128 + self.stop.number)

    def _start_ready(self) -> None:
        if self.stop.number:
            return
        for task in self.tasks.ready():
            if not self.free:
                return
            if cell_state.is_running(task.cell, self.tasks.folder):
                if task.status != "elsewhere":
                    task.status = "elsewhere"
                    self.shown.event(task, "is being run by another process; waiting for it")
                continue
            state = self.tasks.state(task.cell)
            if state.status == "done":  # by another runner
                self._done(task)
                continue
            if state.status == "conflict":
                self.tasks.fail(task, USER_ERROR_EXIT_CODE, state.problem)
                continue
            place = self.free.pop(0)
            process = self.context.Process(target=main, args=(task.cell, self.tasks.folder, place))
            # A signal to the new process must find its own handlers, not those of this one.
            with held_back():
                process.start()
            self.running[process] = task, place
            task.status = "running"
            self.shown.event(task, "continues" if state.status == "partial" else "started")

    def _collect(self) -> None:
        sentinels = [process.sentinel for process in self.running]
        if sentinels:
            wait(sentinels, _POLL_SECONDS)
        else:
            time.sleep(_POLL_SECONDS)
        for process in [p for p in self.running if not p.is_alive()]:
            task, place = self.running.pop(process)
            self.free.append(place)
            self._judge(task, process.exitcode, process.pid)

    def _judge(self, task: _Task, exit_code: int, pid: int) -> None:
        # Killed, or ended by a signal before it trained: it could not say so itself.
        if exit_code < 0 or not self._has_said(task, pid):
            run_log.log_event(
                self.tasks.folder, "killed", task.cell.name, pid=pid, exit_code=exit_code
            )
        state = self.tasks.state(task.cell)
        if state.status == "done":
            self._done(task)
        elif exit_code in (0, BUSY_EXIT_CODE):  # its next command; or it is not ours to run now
            task.status = "waiting"
        elif self.stop.number:
            task.status = "waiting"
            self.shown.event(task, "stopped")
        else:
            said = (
                f"killed by {signal.Signals(-exit_code).name}"
                if exit_code < 0
                else run_log.last_line(self.tasks.log(task.cell))
            )
            code = USER_ERROR_EXIT_CODE if exit_code == USER_ERROR_EXIT_CODE else _FAILED_EXIT_CODE
            self.tasks.fail(task, code, said)
            self.shown.event(task, f"failed: {said}")

    def _has_said(self, task: _Task, pid: int) -> bool:
        """Whether the log has the end of a process as often as its start."""
        of = [
            line["event"]
            for line in run_log.read_log(self.tasks.folder)
            if line["cell"] == task.cell.name and line.get("pid") == pid
        ]
        return of.count("started") <= of.count("ended")

    def _done(self, task: _Task) -> None:
        task.status = "done"
        self.shown.event(task, "done")

    def _tell_to_stop(self) -> None:
        """The first time: to save and stop. Again: at once."""
        if self.stop.count > self.stop.served:
            self.stop.served = self.stop.count
            for process in self.running:
                if self.stop.served == 1:
                    process.terminate()
                else:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)


def _warmed(tools: set[str]) -> Any:
    """A multiprocessing context whose processes need not import what `tools` need.

    On a CPU, that import takes as long as a small run. This process imports it, which neither
    initializes CUDA nor starts threads of Python, and forks.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    for tool in tools & MODULES.keys():
        importlib.import_module(MODULES[tool])
    # From 3.12, Python warns of the threads of numerical libraries, which are idle.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    return multiprocessing.get_context("fork")


@dataclasses.dataclass
class _StopRequest:
    """Signals received: the last one's number and time, how many there were and how many were
    passed on.
    """

    number: int = 0
    time: float = -math.inf
    count: int = 0
    served: int = 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[_StopRequest]:
    request = _StopRequest()

    def receive(number: int, frame: object) -> None:
        request.number = number
        now = time.monotonic()
        if now - request.time > SAME_SIGNAL_S:
            request.count += 1
        request.time = now

    numbers = [n for n in STOP_SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    before = {n: signal.signal(n, receive) for n in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(tasks: _Tasks) -> int:
    """Say what failed, last."""
    failed = tasks.of("failed")
    done = len(tasks.of("done"))
    print(f"{done} of {len(tasks.all)} runs done, in {tasks.folder}")
    for task in failed:
        log = tasks.log(task.cell)
        where = f" (whole log: {log})" if log.exists() else ""
        print(f"failed: {task.cell.name}: {task.problem}{where}")
    codes = {task.exit_code for task in failed}
    return 0 if not failed else codes.pop() if len(codes) == 1 else _FAILED_EXIT_CODE


def _submit(tasks: _Tasks, place: Place, gpus: int, words: list[str]) -> int:
    from moco_d2.benchmark.runs.cluster import submit_cells

    ready = [task.cell for task in tasks.ready()]
    for name, outcome in submit_cells(ready, tasks.folder, place, words, gpus=gpus).items():
        print(f"{name}: {outcome}")
    waiting = len(tasks.of("waiting")) - len(ready)
    if waiting:
        print(f"{waiting} more need these: give the same command again when they are done")
    return 0
