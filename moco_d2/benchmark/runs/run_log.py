"""The log of the commands that ran in the folder of a suite. It shows that no run ran twice."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError, printable
from moco_d2.files import check_own, open_own, read_regular_file, read_tail

#: JSON lines. A command of a cell writes "started" and "ended" with its exit code. A runner writes
#: "killed" if the command could not, and "submitted" if it queued a job.
RUN_LOG = "runs.jsonl"
_MOST_BYTES = 64 << 20  # 2000 runs of three commands, each started 10 times, take 30 MB
_TAIL = 1 << 16  # bytes at the end of an output.log; its last line is shorter
_LONGEST_LINE = 1000  # characters of the last line in a message


def check_log(folder: Path) -> None:
    """Check that the log can be written.

    Raises:
        UserError: If the log is a link or not a file.
    """
    check_own(folder / RUN_LOG)


def log_event(folder: Path, event: str, cell: str, **more: Any) -> None:
    """Append a line about the cell with this name.

    The line is written at once, so lines of several processes do not mix.

    Raises:
        UserError: If the log is a link or not a file.
    """
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    line = {"time": now, "event": event, "cell": cell, "host": socket.gethostname(), **more}
    handle = open_own(folder / RUN_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of runs.jsonl, oldest first, without damaged ones.

    Raises:
        UserError: If the log is a link, not a file, or too large.
    """
    check_log(folder)
    try:
        text = read_regular_file(folder / RUN_LOG, _MOST_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / RUN_LOG} ({error}); remove it") from error
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(line)
            if isinstance(content, dict) and all(
                isinstance(content.get(key), str) for key in ("event", "cell")
            ):
                yield content


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty, without control characters."""
    try:
        lines = read_tail(path, _TAIL).decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return "no output"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return printable(last[:_LONGEST_LINE])
