"""Hooks of Detectron2's training loop for pretraining and fine-tuning."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from moco_d2.engine.signals import SAME_SIGNAL_S, answer, is_default
from moco_d2.errors import Stopped

logger = logging.getLogger(__name__)

#: If a larger fraction of a step is spent waiting for images, more workers help.
WAITING_ABOVE = 0.2


class DeferredWriters(EventWriter):
    """Detectron2's writers, which are built at the first write.

    So a refused run leaves no file. If their folder is removed during training, they are built
    again, because days of training are worth more than the lost metrics.

    Attributes:
        last_write: The last written iteration, -1 at first.
    """

    def __init__(self, build: Callable[[], list[EventWriter]], folder: str | Path):
        """
        Args:
            build: Builds the writers, and creates the folder.
            folder: The folder of metrics.json.
        """
        self._build = build
        self._file = Path(folder) / "metrics.json"
        self._writers: list[EventWriter] | None = None
        self.last_write = -1

    def write(self) -> None:
        iteration = get_event_storage().iter
        if (
            iteration == self.last_write
        ):  # Detectron2's printer divides by the iterations since the last write
            return
        if self._writers is not None and not self._file.exists():
            logger.warning("%s was removed; a new file begins here", self._file)
            with contextlib.suppress(OSError):
                self.close()
            self._writers = None
        if self._writers is None:
            self._writers = self._build()
        try:
            for writer in self._writers:
                writer.write()
        except FileNotFoundError:  # TensorBoard opens its file again for every write
            if self._file.exists():
                raise
            self.write()
            return
        self.last_write = iteration

    def close(self) -> None:
        for writer in self._writers or []:
            writer.close()


class StopOnSignal(HookBase):
    """Finishes the step, saves and stops after SIGINT, SIGTERM or SIGHUP.

    Between two steps the state is complete, so --resume continues exactly. A second Ctrl-C, at
    least two seconds later, stops at once. After the last step nothing is left to save, and signals
    have their former handlers again.

    SIGTERM and SIGHUP keep the handler of another library, and SIGHUP stays ignored under nohup. If
    SIGUSR2 has a handler (submitit's puts a preempted job back into SLURM's queue), the checkpoint
    is saved before the handler runs.

    Attributes:
        received: The first signal that this process has received, or 0.
        agreed: With several processes, the signal that any of them has received. The trainer sets
            it in all processes at the same step, so they stop together. With one process it is
            None, and `received` counts.
    """

    def __init__(self, save: Callable[[], None]):
        """
        Args:
            save: Writes a checkpoint of the finished iteration.
        """
        self._save = save
        self.received = 0
        self.agreed: int | None = None
        self._previous: dict[int, Any] = {}
        self._interrupted: float | None = None  # time of the last SIGINT

    def before_train(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.received, self._interrupted = 0, None
        numbers = [signal.SIGINT]
        numbers += [n for n in (signal.SIGTERM, signal.SIGHUP) if is_default(n)]
        if callable(signal.getsignal(signal.SIGUSR2)):
            numbers.append(signal.SIGUSR2)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        if not self.received and os.isatty(2) and comm.is_main_process():
            answer(f"{signal.Signals(number).name}: finishing this step, then saving and stopping")
        self.received = self.received or number
        if number == signal.SIGINT:
            before, self._interrupted = self._interrupted, time.monotonic()
            if before is not None and self._interrupted - before > SAME_SIGNAL_S:
                signal.signal(number, self._previous[number])
                signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after_step(self) -> None:
        is_last = self.trainer.iter + 1 >= self.trainer.max_iter
        if is_last:
            self._restore()
        number = self.received if self.agreed is None else self.agreed
        if not number:
            if is_last and self.received:  # it arrived after the last exchange
                signal.raise_signal(self.received)
            return
        self._save()
        comm.synchronize()  # a launcher ends all processes as soon as one ends
        logger.info(
            "%s: stopped and saved after iteration %d",
            signal.Signals(number).name,
            self.trainer.iter,
        )
        if number == signal.SIGUSR2 and number in self._previous:
            self._previous[number](number, None)
        raise Stopped(number)

    def after_train(self) -> None:
        self._restore()


class EvalHook(hooks.EvalHook):
    """Detectron2's hook, but without an evaluation after a signal has ended the run."""

    def after_train(self) -> None:
        if not isinstance(sys.exc_info()[1], Stopped):
            super().after_train()


class DataTime(HookBase):
    """Logs at the end of a run the fraction of time that its steps waited for images."""

    def after_train(self) -> None:
        histories = self.trainer.storage.histories()
        if not {"data_time", "time"} <= histories.keys():  # no step was taken
            return
        fraction = histories["data_time"].global_avg() / histories["time"].global_avg()
        logger.info("waiting for images took %.1f %% of the time of a step", 100 * fraction)
        if fraction > WAITING_ABOVE:
            logger.warning(
                "loading images is too slow: raise DATALOADER.NUM_WORKERS, or for pretraining on a "
                "GPU set MOCO.AUGMENTATION.WHERE device"
            )
