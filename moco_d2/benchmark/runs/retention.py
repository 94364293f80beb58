"""What a finished run of a suite keeps on disk: the key ``keep`` of a suite.

A run trains with checkpoints that hold the state of its optimizer, because a killed run continues
exactly. When it is done, most of them are of no use:

* ``all``: every file stays, so a finished run can be lengthened by a larger SOLVER.MAX_ITER.
* ``weights`` (default): of a fine-tuning, model_final.pth stays without the state of its optimizer;
  of a pretraining, the final checkpoint stays as it is, because what was made from it names its
  hash. The checkpoints on the way are removed.
* ``results``: all checkpoints are removed. Converted weights are no checkpoints, and stay.

Records with their per_image.npz, metrics, configs, logs and predictions always stay. Only a run
that a suite has started and that is done loses files.
"""

import logging
from pathlib import Path

import filelock

from moco_d2.benchmark.runs import cell_lock, cell_state
from moco_d2.benchmark.runs.suites import Cell
from moco_d2.errors import UserError, printable
from moco_d2.files import read_plain_json, write_json

logger = logging.getLogger(__name__)

_FINE_TUNING = ("model_final.pth", "model_[0-9]*.pth")
_PRETRAINING = ("checkpoint_final.pth.tar", "checkpoint_[0-9]*.pth.tar")
_KEPT = "kept"  # entry of cell.json: what a finished run has kept
_FOLDERS = ("", "pretrain")  # where the tools of a cell write checkpoints


def tidy(cell: Cell, folder: Path, keep: str) -> None:
    """Remove what a finished cell does not keep.

    It may be called at any time and repeatedly: a cell that some process runs is left alone.

    Args:
        cell: A cell that is done.
        folder: Folder of the suite.
        keep: A value of suites.KEEP.
    """
    own = folder / cell.name
    if keep == "all" or not (own / cell_state.CELL_FILE).is_file():
        return
    lock = cell_lock.lock_of(cell, folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return
    try:
        note = read_plain_json(own / cell_state.CELL_FILE, cell_state.MOST_BYTES)
        if note.get(_KEPT) != keep:
            for place in _FOLDERS:
                _tidy(own / place, keep)
            write_json(own / cell_state.CELL_FILE, {**note, _KEPT: keep})
    except (OSError, ValueError, UserError) as error:  # it costs space, and no result
        logger.warning("%s keeps all its files: %s", cell.name, printable(str(error)))
    finally:
        lock.release()


def _tidy(folder: Path, keep: str) -> None:
    for final, numbered in (_FINE_TUNING, _PRETRAINING):
        last = folder / final
        if last.is_symlink() or not last.is_file():
            continue
        for path in folder.glob(numbered):
            path.unlink(missing_ok=True)
        if keep == "results":
            from moco_d2.engine.last_checkpoint import LAST_CHECKPOINT

            (folder / LAST_CHECKPOINT).unlink(missing_ok=True)
            last.unlink()
        elif final == _FINE_TUNING[0]:
            from moco_d2.transfer.checkpointing import drop_optimizer_state

            drop_optimizer_state(last)
