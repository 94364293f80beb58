"""Runs the tools' command lines in forked processes, and ends them in several ways.

Importing torch and Detectron2 takes seconds. The campaign does it once, and each of its hundreds of
runs is a fork that behaves like ``python tools/TOOL ARGUMENTS``.
"""

import contextlib
import importlib
import multiprocessing
import multiprocessing.util
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fault_kinds.case import BrokenPromiseError, check

TOOLS = Path(__file__).resolve().parents[2] / "tools"
LIMIT_S = 120  # a run takes seconds unless it hangs
LEFT_S = 10.0  # time for a busy kernel to end processes without a parent
_POLL_S = 0.005
_FORK = multiprocessing.get_context("fork")
# Python's audit events for changes of a folder. "open" counts only for writing.
_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate")


class Operations:
    """Counts a run's changes of a folder, or kills the run at one of them.

    Attributes:
        crash_at: The change at which the process kills itself, counted from 1; 0 means never.
    """

    def __init__(self, folder: Path, *, crash_at: int = 0, fraction: float = 0.5):
        """
        Args:
            folder: The folder whose changes count, at any depth.
            crash_at: See the attribute.
            fraction: The written fraction of the file, if the run is killed while it saves tensors.
        """
        self.crash_at = crash_at
        self._folder = str(folder)
        self._fraction = fraction
        self._counter = _FORK.Value("i", 0)

    @property
    def count(self) -> int:
        """Return the number of changes so far, including those in other processes."""
        return self._counter.value

    def watch(self) -> None:
        """Start counting in this process, but not in its child processes."""
        self._process = os.getpid()
        sys.addaudithook(self._audit)
        save, fsync = torch.save, os.fsync

        def torn_save(content: Any, file: Any, **more: Any) -> None:
            last = self._count()
            save(content, file, **more)
            if last:
                descriptor = file.fileno() if hasattr(file, "fileno") else None
                target = file if descriptor is None else descriptor
                size = os.stat(target).st_size  # noqa: PTH116 - may be a descriptor
                os.truncate(target, int(size * self._fraction))
                _kill_this()

        def counted_fsync(descriptor: int) -> None:
            if self._count():
                _kill_this()
            fsync(descriptor)

        torch.save, os.fsync = torn_save, counted_fsync

    def _audit(self, event: str, args: tuple) -> None:
        if event not in _CHANGES or os.getpid() != self._process:
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if (
            any(isinstance(a, str | os.PathLike) and str(a).startswith(self._folder) for a in args)
            and self._count()
        ):
            _kill_this()

    def _count(self) -> bool:
        """Count a change, and return whether the process must crash at it."""
        self._counter.value += 1
        return self._counter.value == self.crash_at


def _kill_this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Job:
    """A command line that runs in a new process and a new process group."""

    def __init__(
        self,
        tool: str,
        words: list[str],
        log: Path,
        *,
        before: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ):
        """Start it.

        Args:
            tool: A file in tools/, such as pretrain.py.
            words: The arguments of the tool.
            log: The file to which its output is appended.
            before: A function that the process calls before the tool.
            environment: Additional environment variables.
        """
        self.log = log
        self.command = f"tools/{tool} {' '.join(words)}"
        self.started = time.monotonic()
        self.process = _FORK.Process(
            target=_execute, args=(tool, words, log, before, environment or {})
        )
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill_after(self, seconds: float) -> None:
        """Kill it with SIGKILL after some seconds, unless it has ended."""
        self.process.join(seconds)
        self.kill()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless it has ended."""
        if self.process.is_alive():
            os.kill(self.pid, number)

    def kill_group(self, number: int) -> None:
        """Send a signal to it and its child processes, unless it has ended."""
        if self.process.is_alive():
            os.killpg(self.pid, number)

    def members(self) -> list[int]:
        """Return the live processes of its session, including itself."""
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state != "Z":
                    pids.append(int(stat.parent.name))
        return pids

    def left_behind(self, seconds: float = LEFT_S) -> list[int]:
        """Return its child processes that are still alive `seconds` after its end."""
        self.process.join(LIMIT_S)
        deadline = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return left

    def wait(self, seconds: float = LIMIT_S) -> int:
        """Return its exit code, negative for a signal, and end all its child processes.

        Raises:
            BrokenPromiseError: If it has not ended within `seconds`.
        """
        self.process.join(seconds)
        hangs = self.process.is_alive()
        try:
            os.killpg(self.pid, signal.SIGKILL)  # includes workers that were left behind
        except (ProcessLookupError, PermissionError):
            self.kill()
        self.process.join()
        self.seconds = time.monotonic() - self.started
        if hangs:
            raise BrokenPromiseError(f"still running after {seconds:.0f} s")
        return self.process.exitcode

    def output(self) -> str:
        """Return its output, after that of earlier jobs with the same log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _execute(
    tool: str,
    words: list[str],
    log: Path,
    before: Callable[[], None] | None,
    environment: dict[str, str],
) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.stderr.reconfigure(line_buffering=True)
    os.environ.update(environment)
    # As if started from a terminal, even if nohup started the campaign.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As in a new process, which has no random state of a parent.
    torch.default_generator.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)
    if before is not None:
        before()
    script = TOOLS / tool
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")


def run(tool: str, words: list[str], log: Path, **more: Any) -> Job:
    """Start a command line and wait for its end.

    Raises:
        BrokenPromiseError: If it does not end, or ends with an error.
    """
    job = Job(tool, words, log, **more)
    code = job.wait()
    check(not code, f"exit code {code}, not 0: {last_line(job.output())}")
    return job


def import_as_well(file: Path) -> None:
    """Import the modules of an earlier run in this process, so that its forks have them already.

    Args:
        file: The file that `note_imports` wrote.
    """
    for name in file.read_text().split():
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # only other modules can import some of them
                importlib.import_module(name)


def note_imports(file: Path) -> None:
    """Make this process write the names of its modules to a file at its end."""

    def write() -> None:
        main = ("__main__", "__mp_main__")
        file.write_text("\n".join(name for name in list(sys.modules) if name not in main))

    multiprocessing.util.Finalize(None, write, exitpriority=0)


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def no_traceback(output: str) -> None:
    """Check that the output has no traceback.

    Raises:
        BrokenPromiseError: If there is one. The message has its last lines.
    """
    _, traceback, rest = output.partition("Traceback (most recent call last):")
    # A traceback ends with the first line that is not indented.
    lines = rest.lstrip("\n").splitlines()
    ends = next((i for i, line in enumerate(lines) if not line.startswith(" ")), len(lines))
    check(not traceback, f"a traceback: {' '.join(lines[max(0, ends - 4) : ends + 1])}")


def wait_until(condition: Callable[[], bool], job: Job, seconds: float = LIMIT_S) -> None:
    """Wait until a running job fulfills a condition.

    Raises:
        BrokenPromiseError: If it ends before, or does not fulfill it within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if not job.process.is_alive():
            raise BrokenPromiseError(f"ended too early: {last_line(job.output())}")
        check(time.monotonic() <= deadline, f"has not come so far within {seconds:.0f} s")
        time.sleep(_POLL_S)
