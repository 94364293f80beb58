"""What pretraining and fine-tuning both hang on Detectron2's training loop."""

import contextlib
import logging
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
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from moco_d2.engine.launch import LOGGERS
from moco_d2.engine.signals import SAME_SIGNAL_S, is_default
from moco_d2.errors import Stopped

logger = logging.getLogger(__name__)

#: Fraction of a step's time that is spent waiting for images, from which on more workers pay.
WAITING_ABOVE = 0.2


class DeferredWriters(EventWriter):
    """Detectron2's writers, made at the first write: a trainer that is refused leaves no file. And
    made again where their folder was removed meanwhile: days of training are worth more than that.

    Attributes:
        last_write: the last iteration that was written, -1 if none was.
    """

    def __init__(self, build: Callable[[], list[EventWriter]], folder: str | Path):
        """
        Args:
            build: makes them, and the folder.
            folder: where they write metrics.json.
        """
        self._build = build
        self._file = Path(folder) / "metrics.json"
        self._writers: list[EventWriter] | None = None
        self.last_write = -1

    def write(self) -> None:
        iteration = get_event_storage().iter
        if iteration == self.last_write:  # Detectron2's printer divides by the iterations between
            return
        if self._writers is not None and not self._file.exists():
            logger.warning("%s is gone, and with it what it had; it begins anew", self._file)
            with contextlib.suppress(OSError):
                self.close()
            self._writers = None
        if self._writers is None:
            self._writers = self._build()
        try:
            for writer in self._writers:
                writer.write()
        except FileNotFoundError:  # TensorBoard's, which opens its file again and again
            if self._file.exists():
                raise
            self.write()
            return
        self.last_write = iteration

    def close(self) -> None:
        for writer in self._writers or []:
            writer.close()


class StopOnSignal(HookBase):
    """Finishes the step at hand, saves and stops when the process is interrupted or terminated, or
    its terminal is closed.

    Between two steps the state is whole, so that --resume continues exactly. A second Ctrl-C, two
    seconds later or more, stops at once. After the last step there is nothing left to save, and
    signals have the effect that they had before training.

    SIGTERM and SIGHUP that somebody else handles are left to them, and so is SIGHUP that is ignored
    (nohup). Where somebody handles SIGUSR2 (submitit does, to put a preempted job back into SLURM's
    queue), the checkpoint comes first.

    Attributes:
        received: the first signal this process was sent, or 0.
        agreed: in several processes, the signal that any of them was sent, as the trainer has told
            all at the same step; they stop together. In one process, None: `received` counts.
    """

    def __init__(self, save: Callable[[], None]):
        """
        Args:
            save: writes a checkpoint of the finished iteration.
        """
        self._save = save
        self.received = 0
        self.agreed: int | None = None
        self._previous: dict[int, Any] = {}
        self._interrupted: float | None = None  # when the last SIGINT came

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
            if is_last and self.received:  # after the processes have agreed
                signal.raise_signal(self.received)
            return
        self._save()
        comm.synchronize()  # a launcher ends all processes once one has ended
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
    """Detectron2's, which does not evaluate any more where a signal has ended the run."""

    def after_train(self) -> None:
        if not isinstance(sys.exc_info()[1], Stopped):
            super().after_train()


class DataTime(HookBase):
    """Says at the end of a run which share of its steps was spent waiting for images."""

    def after_train(self) -> None:
        histories = self.trainer.storage.histories()
        if not {"data_time", "time"} <= histories.keys():  # no step was taken
            return
        waited, whole = (histories[name].global_avg() for name in ("data_time", "time"))
        share = waited / whole
        logger.info("waiting for images took %.1f %% of the time of a step", 100 * share)
        if share > WAITING_ABOVE:
            logger.warning(
                "the images come too slowly: raise DATALOADER.NUM_WORKERS, or for pretraining on a "
                "GPU set MOCO.AUGMENTATION.WHERE device"
            )


class ProgressBar(HookBase):
    """A bar with rate and time left where stderr is a terminal; log lines pass above it."""

    def __init__(self, description: str):
        self.description = description
        self._bar: tqdm[Any] | None = None

    def before_train(self) -> None:
        if not sys.stderr.isatty():
            return
        self._redirect = logging_redirect_tqdm([logging.getLogger(name) for name in LOGGERS])
        self._redirect.__enter__()
        self._bar = tqdm(
            desc=self.description,
            initial=self.trainer.start_iter,
            total=self.trainer.max_iter,
            unit="step",
            dynamic_ncols=True,
        )

    def after_step(self) -> None:
        if self._bar is None:
            return
        loss = self.trainer.storage.histories().get("total_loss")
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss.median(20):.3f}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._redirect.__exit__(None, None, None)
