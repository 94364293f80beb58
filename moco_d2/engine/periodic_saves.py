"""When a run saves: every so many iterations, after so many minutes, and at the end."""

import time
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm


class PeriodicSaves(HookBase):
    """Saves every `period` iterations, after `minutes` without a checkpoint, and at the end.

    A schedule that is scaled to one slow process can have hours between two periods. A checkpoint
    that only the clock asked for is removed when the next one is written. All processes need this
    hook.

    Attributes:
        agreed: With several processes, whether `overdue` is true in any of them. The trainer sets
            it in all processes at the same step, so they save together. With one process it is
            None, and `overdue` counts.
    """

    def __init__(self, period: int, minutes: float):
        """
        Args:
            period: Number of iterations between two checkpoints; 0 sets no such period.
            minutes: The longest time without a checkpoint; 0 sets no limit.
        """
        self.agreed: bool | None = None
        self._period = period
        self._seconds = 60 * minutes
        self._saved_at = time.monotonic()
        self._saved = -1  # the last iteration that was saved
        self._removable: Path | None = None

    def write(self) -> Path:
        """Write a checkpoint of the finished iteration, and return its path."""
        raise NotImplementedError

    def save_now(self) -> None:
        """Save the finished iteration, unless it is saved."""
        if self._saved != self.trainer.iter:
            self._save(removable=False)

    @property
    def overdue(self) -> bool:
        """Return whether the time without a checkpoint is over."""
        return 0 < self._seconds < time.monotonic() - self._saved_at

    def before_train(self) -> None:
        self._saved_at = time.monotonic()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        planned = done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0)
        if planned or (self.overdue if self.agreed is None else self.agreed):
            self._save(removable=not planned)

    def _save(self, *, removable: bool) -> None:
        path = self.write()
        self._saved, self._saved_at = self.trainer.iter, time.monotonic()
        if self.agreed:  # pretraining may exchange it again only in a later step
            self.agreed = False
        if self._removable and comm.is_main_process():
            self._removable.unlink(missing_ok=True)
        self._removable = path if removable else None
