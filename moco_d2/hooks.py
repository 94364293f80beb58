"""What pretraining and fine-tuning both hang on Detectron2's training loop."""

import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from moco_d2.launch import LOGGERS


class DeferredWriters(EventWriter):
    """Detectron2's writers, made at the first write: a trainer that is refused leaves no file."""

    def __init__(self, build: Callable[[], list[EventWriter]]):
        self._build = build
        self._writers: list[EventWriter] | None = None

    def write(self) -> None:
        if self._writers is None:
            self._writers = self._build()
        for writer in self._writers:
            writer.write()

    def close(self) -> None:
        for writer in self._writers or []:
            writer.close()


class EvaluateAtStart(HookBase):
    """Evaluates the random network too, at iteration 0: the value to compare with."""

    def __init__(self, evaluate: Callable[[], dict[str, float]]):
        self._evaluate = evaluate

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            self.trainer.storage.put_scalars(**self._evaluate(), smoothing_hint=False)


class StopOnSignal(HookBase):
    """Finishes the step at hand, saves and stops when the process is interrupted or terminated.

    Between two steps the state is whole, so that --resume continues exactly. A second signal stops
    at once. One process only: several would stop at different steps.
    """

    def __init__(self, save: Callable[[], None]):
        """
        Args:
            save: writes a checkpoint of the finished iteration.
        """
        self._save = save
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        self._received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after_step(self) -> None:
        if self._received is not None:
            self._save()
            raise KeyboardInterrupt

    def after_train(self) -> None:
        self._restore()


class ProgressBar(HookBase):
    """A bar with rate and time left where stderr is a terminal; log lines pass above it."""

    def __init__(self, description: str):
        self.description = description
        self._bar: tqdm | None = None

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
