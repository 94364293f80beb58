"""User mistakes: one clear sentence that names the fix, exit code 2, never a traceback."""

import difflib
import re
from collections.abc import Iterable

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, what shells and schedulers expect


class Stopped(KeyboardInterrupt):
    """A signal has ended the run, which is saved.

    Attributes:
        exit_code: 128 + the signal's number, what shells and schedulers expect.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and what to do.

    Attributes:
        lines: of the message; each becomes one on the terminal, whatever a name in it holds.
    """

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


def closest(name: str, candidates: Iterable[str]) -> str:
    """The nearest candidates as part of a sentence: ``did you mean 'voc_2007_test'?``"""
    matches = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    if not matches:
        return ""
    return "did you mean " + " or ".join(repr(m) for m in matches) + "?"


def as_raised(error: UserError) -> UserError:
    """The error without the traceback that a DataLoader puts around what a worker has raised."""
    text = str(error)
    if not text.startswith("Caught "):
        return error
    lines = list(re.finditer(r"^[\w.]*Error: ", text, re.MULTILINE))
    return type(error)(text[lines[-1].end() :].strip()) if lines else error


def printable(text: str) -> str:
    """Text in which "?" stands for what a terminal would obey: the names of files and tensors in it
    are anybody's.
    """
    return "".join(c if c.isprintable() else "?" for c in text)
