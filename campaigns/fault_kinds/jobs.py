"""The tools' command lines in forked processes, and ways to end them.

Importing torch and Detectron2 takes seconds; the campaign does it once, and each of its hundreds of
runs is a fork that does what ``python tools/TOOL ARGUMENTS`` would.
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
LIMIT_S = 120  # of one run, which takes seconds where it does not hang
LEFT_S = 10.0  # for the kernel to end what has lost its parent, on a machine that is busy
_POLL_S = 0.005
_FORK = multiprocessing.get_context("fork")
# Python's audit events of what changes a folder; "open" counts where it is for writing.
_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate")


class Operations:
    """Counts a run's changes of a folder, or kills the run at one of them.

    Attributes:
        crash_at: the change at which the process kills itself, counted from 1; 0: none.
    """

    def __init__(self, folder: Path, *, crash_at: int = 0, share: float = 0.5):
        """
        Args:
            folder: whose changes count, at any depth.
            share: if the run is killed while it saves tensors: of the file that is written by then.
        """
        self.crash_at = crash_at
        self._folder = str(folder)
        self._share = share
        self._counter = _FORK.Value("i", 0)

    @property
    def count(self) -> int:
        """Changes so far, also of a run in another process."""
        return self._counter.value

    def watch(self) -> None:
        """Begin to count, in this process but not in those that it starts."""
        self._process = os.getpid()
        sys.addaudithook(self._audit)
        save, fsync = torch.save, os.fsync

        def torn_save(content: Any, file: Any, **more: Any) -> None:
            last = self._count()
            save(content, file, **more)
            if last:
                descriptor = file.fileno() if hasattr(file, "fileno") else None
                target = file if descriptor is None else descriptor
                size = os.stat(target).st_size  # noqa: PTH116 - or a descriptor
                os.truncate(target, int(size * self._share))
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
        """Whether this is the one to crash at."""
        self._counter.value += 1
        return self._counter.value == self.crash_at


def _kill_this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Job:
    """A command line in a process, and a process group, of its own."""

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
            tool: file in tools/, such as pretrain.py.
            words: its arguments.
            log: where its output goes; appended.
            before: called in the process before the tool is run.
            environment: added to this process's.
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
        """kill -9, if it has not ended by then."""
        self.process.join(seconds)
        self.kill()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it has not ended."""
        if self.process.is_alive():
            os.kill(self.pid, number)

    def kill_group(self, number: int) -> None:
        """Send a signal to it and to all that it has started, if it has not ended."""
        if self.process.is_alive():
            os.killpg(self.pid, number)

    def members(self) -> list[int]:
        """The processes of its session that live, itself too."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def left_behind(self, seconds: float = LEFT_S) -> list[int]:
        """What it has started and still lives `seconds` after its end."""
        self.process.join(LIMIT_S)
        deadline = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return left

    def wait(self, seconds: float = LIMIT_S) -> int:
        """Its exit code, negative for a signal; whatever it started is ended with it.

        Raises:
            BrokenPromiseError: it has not ended within `seconds`.
        """
        self.process.join(seconds)
        hangs = self.process.is_alive()
        try:
            os.killpg(self.pid, signal.SIGKILL)  # also workers that were left behind
        except (ProcessLookupError, PermissionError):
            self.kill()
        self.process.join()
        self.seconds = time.monotonic() - self.started
        if hangs:
            raise BrokenPromiseError(f"still running after {seconds:.0f} s")
        return self.process.exitcode

    def output(self) -> str:
        """What it, and those before it with the same log, have printed."""
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
    # As from a terminal, whatever nohup has done to the campaign.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As a new process, which has no state of its parent's.
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
        BrokenPromiseError: it does not end, or ends with an error.
    """
    job = Job(tool, words, log, **more)
    code = job.wait()
    if code:
        raise BrokenPromiseError(f"exit code {code} where 0 was due: {last_line(job.output())}")
    return job


def import_as_well(file: Path) -> None:
    """Import, in this process, the modules that a run has imported: the next finds them there.

    Args:
        file: what `note_imports` wrote.
    """
    for name in file.read_text().split():
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # some can only be imported by others
                importlib.import_module(name)


def note_imports(file: Path) -> None:
    """Let this process write the names of its modules to a file when it ends."""

    def write() -> None:
        ours = ("__main__", "__mp_main__")
        file.write_text("\n".join(name for name in list(sys.modules) if name not in ours))

    multiprocessing.util.Finalize(None, write, exitpriority=0)


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def no_traceback(output: str) -> None:
    """
    Raises:
        BrokenPromiseError: with the last lines of the first one in `output`.
    """
    _, found, rest = output.partition("Traceback (most recent call last):")
    # It ends with the first line that is not indented.
    lines = rest.lstrip("\n").splitlines()
    ends = next((i for i, line in enumerate(lines) if not line.startswith(" ")), len(lines))
    check(not found, f"a traceback: {' '.join(lines[max(0, ends - 4) : ends + 1])}")


def wait_until(condition: Callable[[], bool], job: Job, seconds: float = LIMIT_S) -> None:
    """Wait for something that a running job does.

    Raises:
        BrokenPromiseError: it ended, or has not done it within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if not job.process.is_alive():
            raise BrokenPromiseError(f"ended before its time: {last_line(job.output())}")
        if time.monotonic() > deadline:
            raise BrokenPromiseError(f"has not come so far within {seconds:.0f} s")
        time.sleep(_POLL_S)
