"""Real commands in a session of their own, which a signal to the whole process group ends.

For tests of signals: see tests/test_group_signals.py.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from support.commands import Python
from support.paths import ROOT  # noqa: F401

LIMIT_S = 600  # of what takes seconds


class Command:
    """``python SCRIPT WORDS`` in a session, and a process group, of its own."""

    def __init__(self, script: Path, words: Sequence[object], **environment: str):
        # Not a pipe: when it is full, the command waits for a reader.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = Python(
            [script, *words],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, condition: Callable[[], bool], every: float = 0.005) -> None:
        """Wait for something that it does before its end, and look every so many seconds."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.end()[1])
            time.sleep(every)

    def signal_group(self, number: int) -> None:
        """Send a signal to it and to all that it has started."""
        assert self._process.poll() is None, "it was over before"
        os.killpg(self.pid, number)

    def end(self) -> tuple[int, str]:
        """Wait for its exit code, and what it has printed."""
        self._process.wait(LIMIT_S)
        self._output.seek(0)
        return self._process.returncode, self._output.read().decode()

    def members(self) -> list[str]:
        """The processes of its session that are there, zombies aside."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,stat=,args=", "-s", str(self.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
        return [" ".join(line) for line in lines if not line[1].startswith("Z")]

    def wait_until_nothing_is_left(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        while left := self.members():
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
