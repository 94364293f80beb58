"""Writes files completely or not at all, reads files safely, and computes their fingerprints."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError, closest

#: The folder of this package.
PACKAGE = Path(__file__).resolve().parent
#: Suffixes of the files of each kind, for no_file.
ANNOTATIONS = (".json",)
CHECKPOINTS = (".pth", ".pt", ".tar", ".pkl", ".npz", ".safetensors", ".ckpt", ".bin", ".torch")
_MOST_NAMES = 10_000  # of a folder, which are compared with a misspelt one


def shipped_folder(name: str, file: str) -> Path:
    """Return a folder that an installation has inside the package, and a checkout beside it.

    Args:
        name: The name of the folder.
        file: A file in it.
    """
    # Beside an installed package are folders of other projects: Detectron2 installs tools/.
    installed = PACKAGE / name
    return installed if (installed / file).is_file() else PACKAGE.parent / name


def is_regular_file(path: str | Path) -> bool:
    """Return whether `path` is a regular file. The result is False for an impossible name."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Return whether `path` is a folder. The result is False for an impossible name."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def no_file(path: str | Path, suffixes: tuple[str, ...], what: str = "file") -> str:
    """Return why no file is at a path, as a clause with the file that may be meant: "is a folder;
    name the file inside it, perhaps a.pth" or "does not exist; did you mean 'a.pth'?".

    Args:
        path: The path, at which is no regular file.
        suffixes: Suffixes of the files that may be meant.
        what: Noun for such a file.
    """
    path = Path(path)
    if is_folder(path):
        names = files_in(path, suffixes)
        hint = f", perhaps {names[0]}" if len(names) == 1 else ""
        return f"is a folder; name the {what} inside it{hint}"
    hint = closest(path.name, files_in(path.parent, suffixes))
    return f"does not exist; {hint}" if hint else "does not exist"


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the sorted names of the files in a folder with one of some suffixes; none if it is
    absent. Of a large folder, only some files are looked at.
    """
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in itertools.islice(entries, _MOST_NAMES):
            if entry.name.lower().endswith(suffixes) and entry.is_file():
                names.append(entry.name)
    return sorted(names)


def expand_home(name: str | Path) -> Path:
    """Return `name` with ``~`` replaced if the user exists."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's raises for unknown users


# The name of a temporary file of atomic_write: .NAME.RANDOM.tmpSUFFIX.
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp(\..*)?")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` on success.

    On failure the temporary file is removed. A reader never sees a half-written file under the
    final name, whatever interrupts the writer. A killed writer leaves its temporary file, which the
    next writer of `path` removes.

    Raises:
        UserError: If the folder cannot be created or written, or is removed meanwhile, or if `path`
            is a folder.
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
        # The lock shows that the writer is alive. A file system without locks keeps leftovers.
        with contextlib.suppress(OSError):
            _lock(handle)
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
        # The error may come from another file that the caller's block uses.
        if str(error.filename) != str(temporary):
            raise
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Flush a folder, so that a new name survives a power cut if the file system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: str | Path, of: Path | None = None) -> None:
    """Remove the temporary files that killed writers left in `folder`.

    Args:
        folder: The folder, which may be absent.
        of: If it is not None, only temporary files of this file are removed.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or (of and (match[1], match[2] or "") != (of.stem, of.suffix)):
                continue
            with contextlib.suppress(OSError), Path(entry.path).open("r+b") as f:
                _lock(f.fileno())
                Path(entry.path).unlink(missing_ok=True)


def _lock(handle: int) -> None:
    """Lock an open file until `handle` is closed or the process ends.

    Raises:
        OSError: If another process has the lock, or the file system has no locks.
    """
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _cannot_write(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "free some space there" if full else "choose a folder you can write to"
    return UserError(f"cannot write {path}: {error.strerror}; {advice}")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` atomically as indented JSON. NaN is refused, since JSON does not have it."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _cannot_write(Path(path), error) from error


def read_regular_file(path: str | Path, most_bytes: int) -> bytes:
    """Return the content of a regular file. A pipe would block, and a device might never end.

    Raises:
        ValueError: If it is a pipe, a device or a folder, or larger than `most_bytes`.
        OSError: If it cannot be read.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is not a regular file")
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a regular file")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path} has more than {most_bytes} bytes")
    return content


def read_plain_json(path: str | Path, most_bytes: int) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: If read_regular_file raises it, or the file is no JSON or nests too deep.
        OSError: If it cannot be read.
    """
    text = read_regular_file(path, most_bytes).decode("utf-8")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def read_tail(path: str | Path, most_bytes: int) -> bytes:
    """Return the last `most_bytes` bytes of a regular file.

    Raises:
        ValueError: If it is a pipe, a device or a folder.
        OSError: If it cannot be read.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        file.seek(max(0, status.st_size - most_bytes))
        return file.read(most_bytes)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


# Errors of open() for a link, a folder, and a pipe or socket without a reader.
_NO_PLAIN_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)


def open_own(path: str | Path, flags: int) -> int:
    """Open a file that this package writes repeatedly, such as a lock or a log.

    It refuses links: in an untrusted folder, a link could make us overwrite another file.

    Args:
        path: The file. Only its last part must not be a link.
        flags: The flags of os.open.

    Returns:
        The descriptor, which the caller closes. No other process inherits it.

    Raises:
        UserError: If `path` is a symbolic link, a file with a second name (a hard link), a folder,
            a pipe or a device.
        OSError: If it cannot be opened.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in _NO_PLAIN_FILE:
            raise _not_own(path) from error
        raise
    if not _is_own(os.fstat(handle)):
        os.close(handle)
        raise _not_own(path)
    return handle


def check_own(path: str | Path) -> None:
    """Check without opening it that a file is absent or fits `open_own`.

    Raises:
        UserError: If open_own would raise it.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return
    if not _is_own(status):
        raise _not_own(path)


def _is_own(status: os.stat_result) -> bool:
    # The number of names is 0 if another process has removed the file since it was opened.
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1


def _not_own(path: str | Path) -> UserError:
    return UserError(
        f"{path} must be a plain file, but is a link, a folder, a pipe or a device; remove it"
    )


def digest(path: str | Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file's content, read in one streaming pass.

    Args:
        path: The file.
        algorithm: A name that hashlib knows, e.g. ``sha256`` or ``md5``.
    """
    # Published md5 sums only reveal damage. Systems that forbid md5 for security allow this use.
    content = hashlib.new(algorithm, usedforsecurity=False)
    with Path(path).open("rb") as f:
        while chunk := f.read(1 << 20):
            content.update(chunk)
    return content.hexdigest()


def sha256(path: str | Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    return digest(path, "sha256")


def sha256_of_json(content: Any) -> str:
    """Return the hexadecimal sha256 of the canonical JSON form of `content`."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":"), default=str).encode()
    ).hexdigest()
