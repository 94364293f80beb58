"""The runner of suites: one process per run, several at the same time, restartable at any point."""

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.design import declare
from moco_d2.benchmark.runs import cell_lock, retention, run_log
from moco_d2.benchmark.runs.children import warmed
from moco_d2.benchmark.runs.config_checks import check_configs, check_conflicts
from moco_d2.benchmark.runs.display import Display, display
from moco_d2.benchmark.runs.execution import BUSY_EXIT_CODE, TOOLS, Place, main
from moco_d2.benchmark.runs.held_out_parts import draw_parts
from moco_d2.benchmark.runs.input_checks import check_inputs, check_parts
from moco_d2.benchmark.runs.places import make_places
from moco_d2.benchmark.runs.progress import Task, Tasks
from moco_d2.benchmark.runs.suites import Suite, load_suite
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

    After a kill at any point, the same call continues unfinished runs and repeats no finished run.
    Several runners may share a suite and its folder: each run is executed by one of them.

    Args:
        suite: A suite, or its name or file for suites.load_suite.
        folder: Output directory. Default: output/SUITE.
        gpus_per_run: GPUs of each run. 0 is the CPU, and so is 1 on a machine without a GPU.
        jobs: Maximum number of parallel runs. Default: as many as there are groups of GPUs, or one
            per core on a CPU.
        submit: Words KEY=VALUE for slurm.submit. None: run on this machine.
        tools: Folder of the tools that the cells name.

    Returns:
        Exit code: 0 if no run failed, 2 if all failures are user errors, otherwise 1.

    Raises:
        UserError: If nothing was started: there is no such suite, its configs, data or weights
            cannot be used, the folder holds other runs, another suite runs in it, or there are too
            few GPUs.
        SystemExit: With 128 + signal number, after SIGINT, SIGTERM or SIGHUP, when all runs have
            saved and stopped.
    """
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    folder = (Path("output") / suite.name if folder is None else folder).absolute()
    if not tools.is_dir():
        raise UserError(f"the folder {tools} does not exist; run suites from a checkout")
    if gpus_per_run < 0 or (jobs is not None and jobs < 1):
        raise UserError("--gpus-per-run must be at least 0, and --jobs at least 1")
    fingerprint = sha256_of_json([dataclasses.asdict(cell) for cell in suite.cells])
    with suite_in(folder, suite.name, fingerprint):
        processes = max(1, gpus_per_run)
        run_log.check_log(folder)
        check_conflicts(suite.cells, folder, processes)
        tasks = Tasks(suite, folder, processes)
        waiting = [task.cell for task in tasks.of("waiting")]
        check_configs(waiting, folder, suite.files, processes=processes)
        draw_parts(waiting, folder, begun=(folder / run_log.RUN_LOG).exists())
        declare(folder, suite.design)
        for path, content in suite.files.items():
            write_text(folder / path, content)
        check_inputs(waiting, folder, processes)
        check_parts(waiting, folder)
        if submit is not None:
            place = Place(processes, None if gpus_per_run else (), tools=tools)
            return _submit(tasks, place, gpus_per_run, submit)
        if not tasks.of("waiting"):
            return _report(tasks)
        places = make_places(gpus_per_run, jobs, runs=len(suite.cells), tools=tools)
        with _stop_signals() as stop, display(suite, folder) as shown:
            _Runner(tasks, places, shown, stop).run()
        return _report(tasks)


class _Runner:
    """Starts processes and waits for them."""

    def __init__(
        self, tasks: Tasks, places: list[Place], shown: Display, stop: "_StopRequest"
    ) -> None:
        self.tasks, self.shown, self.stop = tasks, shown, stop
        self.free = list(places)
        self.running: dict[Any, tuple[Task, Place]] = {}
        left = [task.cell for task in tasks.of("waiting")]
        self.context = warmed({tool for cell in left for tool, _ in cell.commands})

    def run(self) -> None:
        """Run all cells that are left.

        Raises:
            SystemExit: After a signal to stop.
        """
        try:
            while self.running or (self.tasks.of("waiting", "elsewhere") and not self.stop.number):
                self._start_ready()
                self._collect()
                self.shown.update(self.tasks.all.values())
                if self.stop.number:
                    self._stop_processes()
        finally:  # after an error in this process nobody would report on the runs
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
            if cell_lock.is_running(task.cell, self.tasks.folder):
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
            # The new process must not handle a signal before it has its own handlers.
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

    def _judge(self, task: Task, exit_code: int, pid: int) -> None:
        # A process that was killed could not write the end of its command into the log.
        if exit_code < 0 or not self._has_logged_end(task, pid):
            run_log.log_event(
                self.tasks.folder, "killed", task.cell.name, pid=pid, exit_code=exit_code
            )
        state = self.tasks.state(task.cell)
        if state.status == "done":
            self._done(task)
        elif exit_code in (0, BUSY_EXIT_CODE):  # it has more commands, or another process runs it
            task.status = "waiting"
        elif self.stop.number:
            task.status = "waiting"
            self.shown.event(task, "stopped")
        else:
            problem = (
                f"killed by {signal.Signals(-exit_code).name}"
                if exit_code < 0
                else run_log.last_line(self.tasks.log(task.cell))
            )
            code = USER_ERROR_EXIT_CODE if exit_code == USER_ERROR_EXIT_CODE else _FAILED_EXIT_CODE
            self.tasks.fail(task, code, problem)
            self.shown.event(task, f"failed: {problem}")

    def _has_logged_end(self, task: Task, pid: int) -> bool:
        """Return whether the log has as many ends as starts of a process."""
        events = [
            line["event"]
            for line in run_log.read_log(self.tasks.folder)
            if line["cell"] == task.cell.name and line.get("pid") == pid
        ]
        return events.count("started") <= events.count("ended")

    def _done(self, task: Task) -> None:
        task.status = "done"
        retention.tidy(task.cell, self.tasks.folder, self.tasks.suite.keep)
        self.shown.event(task, "done")

    def _stop_processes(self) -> None:
        """Ask the runs to save and stop after the first signal, and kill them after the second."""
        if self.stop.count > self.stop.served:
            self.stop.served = self.stop.count
            for process in self.running:
                if self.stop.served == 1:
                    process.terminate()
                else:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)


@dataclasses.dataclass
class _StopRequest:
    """Signals to this process: number and time of the last one, their count, and the count of those
    that were passed on to the runs.
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


def _report(tasks: Tasks) -> int:
    """Print the failed runs, and return the exit code."""
    failed = tasks.of("failed")
    done = len(tasks.of("done"))
    for task in tasks.of("done"):  # also what a runner that was killed has left
        retention.tidy(task.cell, tasks.folder, tasks.suite.keep)
    print(f"{done} of {len(tasks.all)} runs done, in {tasks.folder}")
    for task in failed:
        log = tasks.log(task.cell)
        where = f" (whole log: {log})" if log.exists() else ""
        print(f"failed: {task.cell.name}: {task.problem}{where}")
    codes = {task.exit_code for task in failed}
    return 0 if not failed else codes.pop() if len(codes) == 1 else _FAILED_EXIT_CODE


def _submit(tasks: Tasks, place: Place, gpus: int, words: list[str]) -> int:
    from moco_d2.benchmark.runs.cluster import submit_cells

    ready = [task.cell for task in tasks.ready()]
    for name, outcome in submit_cells(ready, tasks.folder, place, words, gpus=gpus).items():
        print(f"{name}: {outcome}")
    waiting = len(tasks.of("waiting")) - len(ready)
    if waiting:
        print(f"{waiting} more depend on these: repeat the command when these are done")
    return 0
