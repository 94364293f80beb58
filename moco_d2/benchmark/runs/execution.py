"""Execution of one command of a cell, in a process of its own."""

import contextlib
import dataclasses
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import filelock

from moco_d2.benchmark.runs import cell_lock, cell_state, run_log
from moco_d2.benchmark.runs.suites import Cell, untrusted_words
from moco_d2.cli import tools_folder
from moco_d2.engine.signals import STOP_SIGNALS
from moco_d2.errors import USER_ERROR_EXIT_CODE, UserError, printable
from moco_d2.files import open_own

#: Exit code of a process whose cell another process runs already (sysexits.h: EX_TEMPFAIL).
BUSY_EXIT_CODE = 75
TOOLS = tools_folder()
# Tools that distribute over several GPUs by themselves.
_DISTRIBUTED = ("train_net.py", "pretrain.py", "linear_eval.py")
# The module that each tool imports first. A runner that forks imports it once for all runs.
MODULES = {
    "demo.py": "moco_d2.demo.scenes",
    "train_net.py": "moco_d2.transfer.main",
    "pretrain.py": "moco_d2.pretrain.main",
    "convert.py": "moco_d2.checkpoint.convert",
    "linear_eval.py": "moco_d2.pretrain.probe.main",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """The devices of a run.

    Attributes:
        processes: Number of processes: one per GPU, or 1 on a CPU.
        devices: GPUs as in CUDA_VISIBLE_DEVICES. () is the CPU, None all visible GPUs.
        threads: Number of torch threads; 0 is the default of torch.
        tools: Folder of the tools.
    """

    processes: int = 1
    devices: tuple[str, ...] | None = ()
    threads: int = 0
    tools: Path = TOOLS

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that select devices and threads."""
        devices = {} if self.devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)}
        return devices | ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})

    def enter(self) -> None:
        """Give this process the devices and threads."""
        os.environ.update(self.environment)
        if self.threads and "torch" in sys.modules:  # torch has read the variable already
            sys.modules["torch"].set_num_threads(self.threads)


def run_next(cell: Cell, folder: Path, place: Place) -> int:
    """Run the first command of `cell` that has not succeeded, as ``python tools/TOOL`` would.

    It runs in this process, which holds the lock of the cell meanwhile. With the lock, the process
    redirects its output to output.log in the folder of the cell.

    Returns:
        The exit code of the command; 0 if the cell is done and nothing was run; BUSY_EXIT_CODE if
        another process runs the cell.

    Raises:
        UserError: If the folder of the cell, its lock or its output.log cannot be written.
    """
    folder = folder.absolute()
    lock = cell_lock.lock_of(cell, folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return BUSY_EXIT_CODE
    except OSError as error:
        raise cell_lock.cannot_lock(cell, folder, error) from error
    try:
        return _run_locked(cell, folder, place)
    finally:
        lock.release()


def _run_locked(cell: Cell, folder: Path, place: Place) -> int:
    _print_to(folder / cell.name / cell_state.OUTPUT_LOG)
    state = cell_state.examine(cell, folder, processes=place.processes)
    if state.status == "conflict":
        print(f"error: {state.problem}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    if state.status == "done":
        return 0
    index = state.completed
    cell_state.note_started(cell, folder, processes=place.processes, completed=index)
    line = {"command": index, "pid": os.getpid()}
    run_log.log_event(folder, "started", cell.name, **line)
    start = time.monotonic()
    code = _run_tool(cell, index, folder, place)
    if code == 0:
        cell_state.note_started(cell, folder, processes=place.processes, completed=index + 1)
        if index + 1 == len(cell.commands):
            after = cell_state.examine(cell, folder, processes=place.processes)
            if after.status != "done":
                print(f"error: no valid record: {after.problem}", file=sys.stderr)
                code = 1
    seconds = round(time.monotonic() - start, 1)
    run_log.log_event(folder, "ended", cell.name, **line, exit_code=code, seconds=seconds)
    return code


def _run_tool(cell: Cell, index: int, folder: Path, place: Place) -> int:
    tool, arguments = cell.commands[index]
    words = untrusted_words(tool, (cell_state.placed(word, cell, folder) for word in arguments))
    if place.processes > 1 and tool in _DISTRIBUTED:
        words = ["--num-gpus", str(place.processes), *words]
    place.enter()
    script = place.tools / tool
    sys.argv = [str(script), *words]
    print(f"$ {tool} {' '.join(words)}", flush=True)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _print_to(path: Path) -> None:
    """Append the output of this process and of its child processes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    log = os.fdopen(
        handle, "a", encoding="utf-8", buffering=1
    )  # line by line, so a kill loses little
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log


def main(cell: Cell, folder: Path, place: Place) -> None:
    """Run one command in a process that does nothing else, and exit with its code.

    Ctrl-C does not reach this process, nor does a kill of the group of its parent. The caller has
    to block STOP_SIGNALS; this function restores their usual handlers and unblocks them.
    """
    with contextlib.suppress(PermissionError):  # the process leads a session already
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        code = run_next(cell, folder, place)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
        code = USER_ERROR_EXIT_CODE
    sys.exit(code)
