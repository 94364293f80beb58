"""No test file leaves a process behind.

After the last test of a file, the processes that its tests started and left are ended, and the
last test's teardown fails with their command lines. Linux only.

A process is of this session if it descends from this process; or if its environment has our
marker, which an orphan has whose parents are gone; or if it is a fork of this process, which has
no marker, but the address of our stack: the kernel draws it when a program starts.
"""

import contextlib
import gc
import os
import signal
import sys
import time
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import NamedTuple

import pytest

MARKER = "MOCO_D2_TESTS"
_SECONDS_TO_END = 10.0  # for a process that is told to end as the file ends, on a busy machine
_PROC = Path("/proc")
_PARENT, _START, _STACK = 1, 19, 25  # fields of /proc/PID/stat after the name


class Process(NamedTuple):
    pid: int
    start: str  # a number is given again to another process, but not with the same start
    parent: int
    stack: str
    state: str


def _session() -> str:
    """Return the marker of this process: workers of pytest-xdist add theirs to the session's."""
    own = f"{os.getpid()}.{time.time_ns()}"
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return f"{os.environ[MARKER]}/{worker}.{own}" if worker and MARKER in os.environ else own


def _process(pid: int) -> Process | None:
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return Process(pid, fields[_START], int(fields[_PARENT]), fields[_STACK], fields[0])


def _all_processes() -> dict[int, Process]:
    numbers = [int(folder.name) for folder in _PROC.iterdir() if folder.name.isdigit()]
    return {pid: process for pid in numbers if (process := _process(pid)) is not None}


def _marker(pid: int) -> str:
    with contextlib.suppress(OSError):
        for variable in (_PROC / str(pid) / "environ").read_bytes().split(b"\0"):
            if variable.startswith(f"{MARKER}=".encode()):
                return variable.partition(b"=")[2].decode(errors="replace")
    return ""


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def _helpers() -> set[int]:
    """The helpers of this process that multiprocessing starts once and ends with it."""
    return {
        pid
        for pid in (resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid)
        if pid
    }


class LeftProcesses:
    """Finds and ends the processes that tests of this session have left.

    Args:
        marker: value of the environment variable MARKER in what the tests start.
    """

    def __init__(self, marker: str):
        self.marker = marker
        self.before = {(p.pid, p.start) for p in _all_processes().values()}

    def find(self) -> list[Process]:
        processes = _all_processes()
        own, helpers = os.getpid(), _helpers()
        stack = processes[own].stack
        found = []
        for process in processes.values():
            line, ancestor = [process.pid], process
            while (ancestor := processes.get(ancestor.parent)) and ancestor.pid not in line:
                line.append(ancestor.pid)
            if (
                process.pid == own
                or process.state in "ZX"
                or (process.pid, process.start) in self.before
                or process.pid in helpers
            ):
                continue
            marker = _marker(process.pid)
            if (
                own in line
                or (stack != "0" and process.stack == stack)
                or marker == self.marker
                or marker.startswith(f"{self.marker}/")
            ):
                found.append(process)
        return found

    def end(self) -> list[str]:
        """End what is left once it had its time; return the command lines."""
        if self.find():
            gc.collect()  # a loader of data ends its workers when it is collected
        until = time.monotonic() + _SECONDS_TO_END
        while (left := self.find()) and time.monotonic() < until:
            time.sleep(0.05)
        lines = [f"{process.pid}: {_command(process.pid)}" for process in left]
        while left:
            for process in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.05)
            left = [process for process in self.find() if process in left]
        return lines


_LEFT = pytest.StashKey[LeftProcesses]()


def pytest_configure(config):
    if sys.platform == "linux":
        os.environ[MARKER] = _session()
        config.stash[_LEFT] = LeftProcesses(os.environ[MARKER])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    result = yield
    if _LEFT in item.config.stash and (nextitem is None or nextitem.path != item.path):
        lines = item.config.stash[_LEFT].end()
        if lines:
            pytest.fail(
                "tests of this file left processes, which are ended now:\n" + "\n".join(lines),
                pytrace=False,
            )
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Find what is left by a session that was interrupted, or by a worker that died."""
    if _LEFT not in session.config.stash:
        return
    lines = session.config.stash[_LEFT].end()
    if lines:
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        message = "the tests left processes, which are ended now:\n" + "\n".join(lines)
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter:
            reporter.write_line(message, red=True)
        else:
            sys.__stderr__.write(message + "\n")
