"""Files that are either whole or absent, and their fingerprints."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError

#: The folder of this package.
PACKAGE = Path(__file__).resolve().parent
# A temporary file of atomic_write: .NAME.RANDOM.tmpSUFFIX.
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp(\..*)?")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on failure
    remove it.

    A reader never sees a half-written file under the final name, whatever interrupts the writer.
    One that was killed leaves its temporary file; the next to write `path` removes it.

    Raises:
        UserError: the folder cannot be made or written, or is removed meanwhile, or `path` is
            itself a folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}"
        )
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        with contextlib.suppress(OSError):  # a file system without locks keeps leftovers
            _lock(handle)  # tells a writer that lives from one that was killed
        remove_leftovers(path.parent, of=path)
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        # The block may meet others, of files that it reads.
        if str(error.filename) != str(temporary):
            raise
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Let a new name outlive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: str | Path, of: Path | None = None) -> None:
    """Remove the temporary files of writers in `folder` that were killed.

    Args:
        folder: may be absent.
        of: only those of writers of this file.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None or (of and (found[1], found[2] or "") != (of.stem, of.suffix)):
                continue
            with contextlib.suppress(OSError), Path(entry.path).open("r+b") as f:
                _lock(f.fileno())
                Path(entry.path).unlink(missing_ok=True)


def _lock(handle: int) -> None:
    """Held until `handle` is closed, or its process has ended.

    Raises:
        OSError: another has it, or the file system has no locks.
    """
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _cannot_write(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "free some space there" if full else "choose a folder you can write to"
    return UserError(f"cannot write {path}: {error.strerror}; {advice}")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. NaN is refused: it is not JSON."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _cannot_write(Path(path), error) from error


def read_regular_file(path: str | Path, most_bytes: int) -> bytes:
    """The content of a regular file. Nothing else is read: a pipe would wait, a device never end.

    Raises:
        ValueError: it is a pipe, a device or a folder, or larger than `most_bytes`.
        OSError: it cannot be read.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is no regular file")
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is no regular file")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path} has more than {most_bytes} bytes")
    return content


def read_plain_json(path: str | Path, most_bytes: int) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: as read_regular_file; it is no JSON, or nests too deep.
        OSError: it cannot be read.
    """
    text = read_regular_file(path, most_bytes).decode("utf-8")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def read_tail(path: str | Path, most_bytes: int) -> bytes:
    """The last `most_bytes` bytes of a regular file.

    Raises:
        ValueError: it is a pipe, a device or a folder.
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is no regular file")
        file.seek(max(0, found.st_size - most_bytes))
        return file.read(most_bytes)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


# What open() says of a link, a folder, and a pipe or socket that nobody reads.
_NO_PLAIN_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)


def open_own(path: str | Path, flags: int) -> int:
    """Open a file that this package writes again and again, such as a lock or a log.

    A link in its place, in a folder of a stranger, would lead the writing to another file.

    Args:
        path: the file; only its last part may not be a link.
        flags: of os.open.

    Returns:
        the descriptor, which the caller closes. No other process inherits it.

    Raises:
        UserError: `path` is a symbolic link, a file with a second name (a hard link), a folder, a
            pipe or a device.
        OSError: it cannot be opened.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in _NO_PLAIN_FILE:
            raise _not_own(path) from error
        raise
    found = os.fstat(handle)
    # It has no name at all if its holder has removed it since it was opened.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise _not_own(path)
    return handle


def check_own(path: str | Path) -> None:
    """Check, without opening it, that a file is one for `open_own`, or is not there.

    Raises:
        UserError: as open_own.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise _not_own(path)


def _not_own(path: str | Path) -> UserError:
    return UserError(
        f"{path} must be a plain file, and is a link, a folder, a pipe or a device; remove it"
    )


def digest(path: str | Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's content, read in one streaming pass.

    Args:
        path: the file.
        algorithm: a name that hashlib knows, ``sha256`` or ``md5``.
    """
    # Published md5 sums tell damage from content; where md5 is barred as security, it may do that.
    content = hashlib.new(algorithm, usedforsecurity=False)
    with Path(path).open("rb") as f:
        while chunk := f.read(1 << 20):
            content.update(chunk)
    return content.hexdigest()


def sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    return digest(path, "sha256")


def sha256_of_json(content: Any) -> str:
    """Hexadecimal sha256 of the canonical JSON form of `content`."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":"), default=str).encode()
    ).hexdigest()
