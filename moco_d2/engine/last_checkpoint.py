"""Which checkpoint of a folder a run continues: last_checkpoint names it, unless a crash came
between.
"""

import logging
from pathlib import Path
from typing import Any

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.engine.resume_checks import MOST
from moco_d2.errors import UserError
from moco_d2.files import read_regular_file, write_text

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"
_MOST_BYTES = 4096  # of last_checkpoint; Linux allows no longer path
# An official file tells no iteration; nor does what is no checkpoint of a run.
_UNKNOWN = float("inf")


def named_checkpoint(folder: Path) -> Path:
    """The file that last_checkpoint names; the folder itself where it names none: it is empty, or
    not readable, or not the name of a file.
    """
    try:
        name = read_regular_file(folder / LAST_CHECKPOINT, _MOST_BYTES).decode().strip()
    except (OSError, ValueError):  # UnicodeDecodeError is a ValueError
        return folder
    return folder / name if name.isprintable() else folder


def newest_intact(folder: Path, pattern: str) -> tuple[Path, dict[str, Any]]:
    """The file that last_checkpoint names; the one after it, where the run was killed when that was
    written and not yet named; where the named is damaged, the newest of the others that is whole.

    A run that went back behind an intact checkpoint would cut metrics.json back with it; were it
    killed then, and the older one damaged, the newer would be continued with lines missing.

    Args:
        folder: has a last_checkpoint.
        pattern: of the names of checkpoints.

    Returns:
        path and content.

    Raises:
        UserError: none can be read.
    """
    named = named_checkpoint(folder)
    # Not beside `named`: an empty last_checkpoint names the folder itself.
    others = set(folder.glob(pattern)) - {named}
    try:
        content = load_checkpoint(named)
    except UserError as damage:
        intact = _by_iteration(others)
        if not intact:
            raise
        newest = intact[max(intact)]
        logger.warning("%s; taking the newest that is whole, %s", damage, newest)
        return newest, load_checkpoint(newest)
    unnamed = _by_iteration({path for path in others if _is_unnamed(folder, path)})
    if unnamed and max(unnamed) > _iteration(content):
        newest = unnamed[max(unnamed)]
        logger.info("%s was written but not yet named in %s", newest, LAST_CHECKPOINT)
        return newest, load_checkpoint(newest)
    return named, content


def name_last(folder: Path, path: Path) -> None:
    """Let last_checkpoint name what newest_intact found, if it was not yet named.

    In the main process only, when all have found it.

    Raises:
        UserError: it cannot be written.
    """
    if path.parent == folder and _is_unnamed(folder, path):
        write_text(folder / LAST_CHECKPOINT, path.name)


def _is_unnamed(folder: Path, path: Path) -> bool:
    """Whether `path` is younger than last_checkpoint: every save ends with naming its file, and who
    names an older one by hand does so later.
    """
    return path.stat().st_mtime_ns > (folder / LAST_CHECKPOINT).stat().st_mtime_ns


def _by_iteration(paths: set[Path]) -> dict[float, Path]:
    """Those that can be read and say how far they are."""
    found = {}
    for path in paths:
        try:
            found[_iteration(load_checkpoint(path))] = path
        except UserError:
            continue
    found.pop(_UNKNOWN, None)
    return found


def _iteration(content: dict[str, Any]) -> float:
    """Of a checkpoint of pretraining or fine-tuning."""
    ours = content.get("moco_d2", content)
    iteration = ours.get("iteration") if isinstance(ours, dict) else None
    return iteration if type(iteration) is int and 0 <= iteration <= MOST else _UNKNOWN
