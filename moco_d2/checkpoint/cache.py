"""The folder of fetched checkpoints, which any number of processes may use at once."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
from iopath.common.file_io import get_cache_dir

from moco_d2.errors import UserError

CACHE_VARIABLE = "MOCO_D2_CACHE"


def cache_folder() -> Path:
    """Return $MOCO_D2_CACHE, or the folder moco_d2 in iopath's cache.

    iopath's cache is $FVCORE_CACHE, or else ~/.torch/iopath_cache.
    """
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder).expanduser() if folder else Path(get_cache_dir()) / "moco_d2"


@contextlib.contextmanager
def locked(folder: Path, file: str, name: str) -> Iterator[None]:
    """Hold a lock while a file is fetched and converted. It ends with its process.

    Args:
        folder: A folder of the cache, which is created.
        file: The name of the file in it.
        name: The user's name of the file, for messages.

    Raises:
        UserError: If the cache cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f".{file}.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            print(f"waiting for the process that fetches {name}", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {folder}: {error.strerror}; set {CACHE_VARIABLE} to a "
            "folder that you can write to"
        ) from error
    try:
        yield
    finally:
        lock.release()
