"""Allows one run at a time in a folder, and one conversion at a time to a file.

A lock belongs to a process and ends with it, however the process ends. Child processes do not
inherit it. The hidden lock file is removed at the end. If a killed process leaves it behind, it
blocks no other process.
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
_ATTEMPTS = 100  # tries while another process removes the lock file or the folder
# Errors of file systems without locks, such as some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO)
_CONTENT_BYTES = 4096
# The locks of this process. The system would grant a second lock on a file to the same process, and
# release it together with the first.
_HELD: set[tuple[int, Path]] = set()
_WARNED: set[str] = set()


class _BusyError(Exception):
    """Another process has the lock. The message is the text that it wrote into the lock file."""


@contextlib.contextmanager
def run_in(folder: str | Path, *, setting: str = "OUTPUT_DIR") -> Iterator[None]:
    """Lock a folder for one run, and create it. An empty folder is removed at the end.

    Args:
        folder: The folder.
        setting: The setting that names the folder, for errors.

    Raises:
        UserError: If another run uses the folder, the folder cannot be written, or its lock file is
            a link.
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
    """Lock a file for its writer, and create its folder.

    Raises:
        UserError: If another process is writing the file, the folder cannot be written, or the lock
            file is a link.
    """
    path = Path(path)
    with _exclusive(
        path.parent / f".{path.name}.lock",
        busy=f"another process is writing {path}{{}}: wait for its end, or choose another file",
        unwritable=f"cannot write {path}: {{}}; choose a folder you can write to",
    ):
        yield


@contextlib.contextmanager
def suite_in(folder: Path, name: str, fingerprint: str) -> Iterator[None]:
    """Lock a folder for all runners of one suite, and create it.

    Args:
        folder: The folder.
        name: The suite's name, for errors.
        fingerprint: The fingerprint of the suite's runs. Runners with the same fingerprint share
            the folder.

    Raises:
        UserError: If a runner of another suite uses the folder, the folder cannot be written, or
            its lock file is a link.
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
            with contextlib.suppress(OSError):  # other runners may still share it
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
    """Return the locked descriptor of a file; None if the file system has no locks.

    Raises:
        _BusyError: If another process has the lock.
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
        if _is_current(handle, file):
            _write(handle, _this_process())
            return handle
        os.close(handle)  # the last holder removed the file after it was opened here
    raise _BusyError("")


def _open_shared(file: Path, fingerprint: str, holder: str) -> int | None:
    """Return a descriptor as _open_locked does, but share the lock among equal fingerprints."""
    for _ in range(_ATTEMPTS):
        handle = _open(file)
        try:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _write(handle, f"{fingerprint}\n{holder}")
            except (BlockingIOError, PermissionError):
                pass  # other processes have it
            fcntl.lockf(handle, fcntl.LOCK_SH)  # a process that is writing takes only a moment
        except OSError as error:
            os.close(handle)
            if error.errno not in _NO_LOCKS:
                raise
            _warn(file.parent)
            return None
        if _is_current(handle, file):
            content = os.pread(handle, _CONTENT_BYTES, 0).decode(errors="replace")
            written, _, other = content.partition("\n")
            if written == fingerprint:
                return handle
            os.close(handle)
            raise _BusyError(other)
        os.close(handle)
    raise _BusyError("")


def _open(file: Path) -> int:
    for _ in range(_ATTEMPTS):
        try:
            return open_own(file, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # another process has just removed the folder
            file.parent.mkdir(parents=True, exist_ok=True)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))


def _is_current(handle: int, file: Path) -> bool:
    """Return whether the path `file` still names the open file, and not through a link."""
    try:
        return os.path.samestat(os.fstat(handle), file.lstat())
    except FileNotFoundError:
        return False


def _write(handle: int, content: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk the file stays empty
        os.ftruncate(handle, 0)
        os.pwrite(handle, content.encode(), 0)


def _remove(handle: int, file: Path) -> None:
    """Remove the file while it is locked, so that a process opening it notices the removal."""
    with contextlib.suppress(OSError):
        if _is_current(handle, file):
            file.unlink()


def _make(folder: Path, unwritable: str) -> list[Path]:
    """Create a folder, and return the new folders with the outermost first."""
    try:
        missing = [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # "File exists" alone reads as if the result were there
        raise UserError(unwritable.format(f"{folder} is not a folder")) from error
    except OSError as error:
        raise UserError(unwritable.format(error.strerror)) from error
    return missing[::-1]


def _unmake(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # the folder is not empty
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
