"""The lock of a cell, which the process that runs the cell holds as long as it lives."""

import os
from pathlib import Path

import filelock

from moco_d2.benchmark.runs.suites import Cell
from moco_d2.errors import UserError
from moco_d2.files import check_own

LOCK = ".lock"


def lock_of(cell: Cell, folder: Path) -> filelock.BaseFileLock:
    """Return the lock that a process holds while it runs `cell`.

    The system frees it when the process ends, even after a kill.

    Raises:
        UserError: If the folder of the cell cannot be made, or a link has the name of the lock.
    """
    cell_folder = folder / cell.name
    try:
        cell_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_lock(cell, folder, error) from error
    check_own(cell_folder / LOCK)  # filelock would empty the target of a link
    return filelock.FileLock(cell_folder / LOCK)


def is_running(cell: Cell, folder: Path) -> bool:
    """Return whether some process runs `cell` now.

    Raises:
        UserError: As in lock_of, or if the lock cannot be opened.
    """
    if not os.path.lexists(folder / cell.name / LOCK):
        return False
    lock = lock_of(cell, folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    except OSError as error:
        raise cannot_lock(cell, folder, error) from error
    lock.release()
    return False


def cannot_lock(cell: Cell, folder: Path, error: OSError) -> UserError:
    """Return the error for a lock that cannot be made or opened."""
    return UserError(
        f"cannot write {folder / cell.name}: {error.strerror}; choose another --folder"
    )
