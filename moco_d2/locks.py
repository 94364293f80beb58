"""One run at a time in a folder, and one conversion at a time to a file.

A lock belongs to a process and ends with it, however it ends; no process that it starts inherits
it. The hidden file that is locked is removed at the end; one that a killed process has left locks
nobody out.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from moco_d2.errors import UserError
from moco_d2.files import open_own

logger = logging.getLogger(__name__)

RUN_LOCK = ".run.lock"
SUITE_LOCK = ".suite.lock"
_ATTEMPTS = 100  # of who meets another that removes the file, or the folder, at its end
# Network file systems may have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO)
_CONTENT_BYTES = 4096
# What this process holds: its own second lock would be granted, and lost with the first.
_HELD: set[tuple[int, Path]] = set()
_WARNED: set[str] = set()


class _BusyError(Exception):
    """Another process has the lock; the message is what it has written into the file."""


@contextlib.contextmanager
def run_in(folder: str | Path, *, setting: str = "OUTPUT_DIR") -> Iterator[None]:
    """Hold a folder for one run; it is made. If the run leaves nothing in it, it is removed again.

    Args:
        setting: what names the folder to the user.

    Raises:
        UserError: another run is at work there, or the folder cannot be written,
            or its lock file is a link.
    """
    advice = f"wait for its end, or choose another {setting}"
    with _exclusive(
        Path(folder) / RUN_LOCK,
        busy=f"another run is at work in {setting} {folder}{{}}: {advice}",
        unwritable=f"cannot write {setting} {folder}: {{}}; choose another",
    ):
        yield


@contextlib.contextmanager
def write_to(path: str | Path) -> Iterator[None]:
    """Hold a file for who is about to make it; its folder is made.

    Raises:
        UserError: another process is at work on it, or the folder cannot be written,
            or its lock file is a link.
    """
    path = Path(path)
    with _exclusive(
        path.parent / f".{path.name}.lock",
        busy=f"another process is writing {path}{{}}: wait for its end, or name another file",
        unwritable=f"cannot write {path}: {{}}; choose a folder you can write to",
    ):
        yield


@contextlib.contextmanager
def suite_in(folder: Path, name: str, fingerprint: str) -> Iterator[None]:
    """Hold a folder for the runners of one suite; it is made.

    Args:
        name: of the suite, for messages.
        fingerprint: of its runs; runners with the same one share the folder.

    Raises:
        UserError: a runner of another suite is at work there, or the folder cannot be written,
            or its lock file is a link.
    """
    file = folder / SUITE_LOCK
    unwritable = f"cannot write --folder {folder}: {{}}; choose another"
    made = _make(folder, unwritable)
    handle = None
    try:
        try:
            handle = _open_shared(file, fingerprint, f"suite {name}, {_this_process()}")
        except OSError as error:
            raise UserError(unwritable.format(error.strerror)) from error
        except _BusyError as holder:
            raise UserError(
                f"a runner of another suite is at work in {folder}{_named(str(holder))}: wait for "
                "its end, or choose another --folder"
            ) from None
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):  # others share it still
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(handle, file)
            os.close(handle)
        _unmake(made)


@contextlib.contextmanager
def _exclusive(file: Path, *, busy: str, unwritable: str) -> Iterator[None]:
    key = os.getpid(), file.absolute()
    if key in _HELD:
        yield
        return
    made = _make(file.parent, unwritable)
    handle = None
    try:
        try:
            handle = _open_locked(file)
        except _BusyError as holder:
            raise UserError(busy.format(_named(str(holder)))) from None
        except OSError as error:
            raise UserError(unwritable.format(error.strerror)) from error
        _HELD.add(key)
        yield
    finally:
        _HELD.discard(key)
        if os.getpid() == key[0]:
            if handle is not None:
                _remove(handle, file)
                os.close(handle)
            _unmake(made)


def _open_locked(file: Path) -> int | None:
    """The descriptor of the file, locked; None where the file system has no locks.

    Raises:
        _BusyError: another process has it.
    """
    for _ in range(_ATTEMPTS):
        handle = _open(file)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            content = os.pread(handle, _CONTENT_BYTES, 0).decode(errors="replace")
            os.close(handle)
            if error.errno in _NO_LOCKS:
                _warn(file.parent)
                return None
            raise _BusyError(content) from error
        if _is(handle, file):
            _write(handle, _this_process())
            return handle
        os.close(handle)  # who had it has removed it meanwhile
    raise _BusyError("")


def _open_shared(file: Path, fingerprint: str, holder: str) -> int | None:
    """As _open_locked, but shared with all that have the same fingerprint."""
    for _ in range(_ATTEMPTS):
        handle = _open(file)
        try:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _write(handle, f"{fingerprint}\n{holder}")
            except (BlockingIOError, PermissionError):
                pass  # others have it
            fcntl.lockf(handle, fcntl.LOCK_SH)  # who is just writing does not take long
        except OSError as error:
            os.close(handle)
            if error.errno not in _NO_LOCKS:
                raise
            _warn(file.parent)
            return None
        if _is(handle, file):
            content = os.pread(handle, _CONTENT_BYTES, 0).decode(errors="replace")
            found, _, by = content.partition("\n")
            if found == fingerprint:
                return handle
            os.close(handle)
            raise _BusyError(by)
        os.close(handle)
    raise _BusyError("")


def _open(file: Path) -> int:
    for _ in range(_ATTEMPTS):
        try:
            return open_own(file, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # the folder has just been removed by who had made it
            file.parent.mkdir(parents=True, exist_ok=True)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))


def _is(handle: int, file: Path) -> bool:
    """Whether `file` is what is open, and no link to it."""
    try:
        return os.path.samestat(os.fstat(handle), file.lstat())
    except FileNotFoundError:
        return False


def _write(handle: int, content: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk the holder has no name
        os.ftruncate(handle, 0)
        os.pwrite(handle, content.encode(), 0)


def _remove(handle: int, file: Path) -> None:
    """While it is locked: who opens it at this moment sees that it has gone."""
    with contextlib.suppress(OSError):
        if _is(handle, file):
            file.unlink()


def _make(folder: Path, unwritable: str) -> list[Path]:
    """Make a folder; the folders that were not there before, the outermost first."""
    try:
        missing = [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(unwritable.format(error.strerror)) from error
    return missing[::-1]


def _unmake(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # it has something in it
            folder.rmdir()


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _named(holder: str) -> str:
    return f" ({holder})" if holder else ""


def _warn(folder: Path) -> None:
    if str(folder) not in _WARNED:
        _WARNED.add(str(folder))
        logger.warning(
            "the file system of %s has no locks: a second run in it would not be noticed", folder
        )
