"""The log of what ran in a suite's folder: that no run ran twice can be read from it."""

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

#: JSON lines: one when a command of a cell starts ("started"), and one when it ends ("ended", with
#: its exit code; "killed", where a runner saw that); one when a job is queued ("submitted").
RUN_LOG = "runs.jsonl"
_MOST_BYTES = 64 << 20  # 2000 runs of three commands, each started 10 times, take 30 MB
_TAIL = 1 << 16  # bytes at the end of an output.log that hold its last line
_LONGEST_LINE = 1000  # characters of it that are shown


def check_log(folder: Path) -> None:
    """
    Raises:
        UserError: the log is a link, or no file.
    """
    check_own(folder / RUN_LOG)


def log_event(folder: Path, event: str, cell: str, **more: Any) -> None:
    """Append a line about the cell of this name; in one write, so that the lines of several
    processes stay whole.

    Raises:
        UserError: the log is a link, or no file.
    """
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    line = {"time": now, "event": event, "cell": cell, "host": socket.gethostname(), **more}
    handle = open_own(folder / RUN_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of runs.jsonl, oldest first; a damaged one is passed over.

    Raises:
        UserError: the log is a link, no file, or too large for one.
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
    """The last line with text in it, of a log, as a terminal can show it."""
    try:
        lines = read_tail(path, _TAIL).decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return "no output"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return printable(last[:_LONGEST_LINE])
