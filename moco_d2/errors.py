"""User mistakes: one clear sentence that names the fix, exit code 2, never a traceback."""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

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


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's main function; a UserError, and what a machine does to a command, become
    one line and exit code 2; a signal that ends it, one line and 128 + its number.
    """
    from moco_d2.engine.failures import explained
    from moco_d2.engine.signals import end_on_signals, end_silently

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # One of several may be waiting for another outside of Python, where a handler is not
        # called: those the system ends, and their launcher says so.
        end_on_signals()
    try:
        with explained():
            code = main() or 0
        sys.exit(code)
    except UserError as error:
        text = "\n".join(map(printable, as_raised(error).lines))
        print(f"error: {text}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command with --resume to continue", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", INTERRUPTED_EXIT_CODE))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        end_silently()


def printable(text: str) -> str:
    """Text in which "?" stands for what a terminal would obey: the names of files and tensors in it
    are anybody's.
    """
    return "".join(c if c.isprintable() else "?" for c in text)
