"""Write checkpoints, and find the one that a run continues.

The file last_checkpoint names it, unless the run was killed before it could write the name.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.engine.resume_checks import MOST
from moco_d2.engine.signals import note_saved
from moco_d2.errors import UserError
from moco_d2.files import atomic_write, read_regular_file, write_text

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"
_MOST_BYTES = 4096  # of last_checkpoint; Linux allows no longer path
# The iteration of an official file, and of a file that is not a checkpoint of a run.
_UNKNOWN = float("inf")


def save_checkpoint(path: Path, content: dict[str, Any], *, name_it: bool = True) -> None:
    """Write a checkpoint atomically, and its name into last_checkpoint.

    Args:
        path: The file to write.
        content: What ``torch.save`` writes.
        name_it: Whether last_checkpoint is written.

    Raises:
        UserError: If a file cannot be written. The previous checkpoint stays as it was.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save(content, temporary)
        if name_it:
            write_text(path.with_name(LAST_CHECKPOINT), path.name)
        note_saved(path)
    # torch's zip writer raises RuntimeError on a full disk.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"cannot write {path} ({reason}): free some space and continue with --resume from the "
            "previous checkpoint"
        ) from error


def holds_run(folder: Path, pattern: str) -> bool:
    """Return whether a folder has a run to continue.

    It has a last_checkpoint, or, if that was lost (a copy of ``*.pth`` leaves it behind), a
    checkpoint of a run.

    Args:
        folder: The folder.
        pattern: Glob pattern of the checkpoints' names.

    Raises:
        UserError: If last_checkpoint is not a file, so no run could write it again.
    """
    file = folder / LAST_CHECKPOINT
    if file.is_file():
        return True
    if file.is_symlink() or file.exists():
        raise UserError(
            f"{file} is not a file: replace it by a file with the name of the checkpoint to "
            "continue, or choose another folder"
        )
    return any(_by_iteration({path}) for path in folder.glob(pattern))


def named_checkpoint(folder: Path) -> Path:
    """Return the file that last_checkpoint names.

    The result is the folder itself if last_checkpoint is empty, not readable or not a file name.
    """
    try:
        name = read_regular_file(folder / LAST_CHECKPOINT, _MOST_BYTES).decode().strip()
    except (OSError, ValueError):  # UnicodeDecodeError is a ValueError
        return folder
    return folder / name if name.isprintable() else folder


def newest_intact(folder: Path, pattern: str) -> tuple[Path, dict[str, Any]]:
    """Load the checkpoint that a run continues.

    Usually last_checkpoint names it. If the run was killed after it wrote a newer checkpoint and
    before it named it, the newer one is taken. If the named one is damaged, the newest intact one
    of the others is taken.

    Continuing from an older checkpoint than necessary would cut lines from metrics.json. If that
    run were killed and the older checkpoint damaged, the newer checkpoint would be continued
    without these lines.

    Args:
        folder: A folder that holds a run.
        pattern: Glob pattern of the checkpoints' names.

    Returns:
        Path and content of the checkpoint.

    Raises:
        UserError: If no checkpoint can be read.
    """
    named = named_checkpoint(folder)
    # Search `folder`, not the parent of `named`: an empty last_checkpoint names the folder itself.
    others = set(folder.glob(pattern)) - {named}
    try:
        if named == folder:
            problem = "does not hold the name of a file"
            if not (folder / LAST_CHECKPOINT).exists():
                problem = "is gone"
            raise UserError(
                f"{folder / LAST_CHECKPOINT} {problem}: write the name of a checkpoint into it, or "
                "choose another folder"
            )
        content = load_checkpoint(named)
    except UserError as damage:
        intact = _by_iteration(others)
        if not intact:
            raise
        newest = intact[max(intact)]
        logger.warning("%s; continuing from the newest intact one, %s", damage, newest)
        return newest, load_checkpoint(newest)
    unnamed = _by_iteration({path for path in others if _is_unnamed(folder, path)})
    if unnamed and max(unnamed) > _iteration(content):
        newest = unnamed[max(unnamed)]
        logger.info("%s was written but not yet named in %s", newest, LAST_CHECKPOINT)
        return newest, load_checkpoint(newest)
    return named, content


def name_last(folder: Path, path: Path) -> None:
    """Write the name of newest_intact's result into last_checkpoint, if it is not yet named.

    Only the main process must call this, after all processes have loaded the checkpoint.

    Raises:
        UserError: If last_checkpoint cannot be written.
    """
    if path.parent == folder and _is_unnamed(folder, path):
        write_text(folder / LAST_CHECKPOINT, path.name)


def _is_unnamed(folder: Path, path: Path) -> bool:
    """Return whether `path` is younger than last_checkpoint, or last_checkpoint is gone.

    Every save writes last_checkpoint at its end. A user who names an older checkpoint by hand also
    makes last_checkpoint the younger file.
    """
    pointer = folder / LAST_CHECKPOINT
    return not pointer.exists() or path.stat().st_mtime_ns > pointer.stat().st_mtime_ns


def _by_iteration(paths: set[Path]) -> dict[float, Path]:
    """Return the readable checkpoints of known iteration."""
    readable = {}
    for path in paths:
        try:
            readable[_iteration(load_checkpoint(path))] = path
        except UserError:
            continue
    readable.pop(_UNKNOWN, None)
    return readable


def _iteration(content: dict[str, Any]) -> float:
    """Return the iteration of a checkpoint of pretraining or fine-tuning."""
    state = content.get("moco_d2", content)
    iteration = state.get("iteration") if isinstance(state, dict) else None
    return iteration if type(iteration) is int and 0 <= iteration <= MOST else _UNKNOWN
