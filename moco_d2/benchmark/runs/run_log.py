"""The log of what ran in a suite's folder: that no run ran twice can be read from it."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: JSON lines: one when a command of a cell starts ("started"), and one when it ends ("ended", with
#: its exit code; "killed", where a runner saw that); one when a job is queued ("submitted").
RUN_LOG = "runs.jsonl"


def log_event(folder: Path, event: str, cell: str, **more: Any) -> None:
    """Append a line about the cell of this name; in one write, so that the lines of several
    processes stay whole.
    """
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    line = {"time": now, "event": event, "cell": cell, "host": socket.gethostname(), **more}
    handle = os.open(folder / RUN_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of runs.jsonl, oldest first; a damaged one is passed over."""
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / RUN_LOG).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def last_line(path: Path) -> str:
    """The last line with text in it, of a log."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no output"
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
