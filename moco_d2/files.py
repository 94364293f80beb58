"""Files that are either whole or absent, and their fingerprints."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on failure
    remove it.

    A reader never sees a half-written file under the final name, whatever interrupts the writer.

    Raises:
        UserError: the folder cannot be made or written, or `path` is itself a folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}"
        )
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        try:
            temporary.replace(path)
        except OSError as error:
            raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror}; choose a folder you can write to")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. NaN is refused: it is not JSON."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
