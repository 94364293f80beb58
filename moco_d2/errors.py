"""Errors that the user can fix: one sentence that names the fix, exit code 2, no traceback."""

import difflib
import re
from collections.abc import Iterable

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, what shells and schedulers expect


class Stopped(KeyboardInterrupt):
    """A signal ended the run, after the run was saved.

    Attributes:
        exit_code: 128 + the signal's number, as shells and schedulers expect.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong and what to do.

    Attributes:
        lines: The lines of the message. Each is printed as one line, even if a name in it contains
            a line break.
    """

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


def closest(name: str, candidates: Iterable[str]) -> str:
    """Return the closest candidates as a clause: ``did you mean 'voc_2007_test'?``."""
    matches = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    if not matches:
        return ""
    return "did you mean " + " or ".join(repr(m) for m in matches) + "?"


def as_raised(error: UserError) -> UserError:
    """Return an error without the traceback that a DataLoader adds to a worker's message."""
    text = str(error)
    if not text.startswith("Caught "):
        return error
    lines = list(re.finditer(r"^[\w.]*Error: ", text, re.MULTILINE))
    return type(error)(text[lines[-1].end() :].strip()) if lines else error


def printable(text: str) -> str:
    """Replace control characters by "?", since names of files and tensors are untrusted."""
    return "".join(c if c.isprintable() else "?" for c in text)
