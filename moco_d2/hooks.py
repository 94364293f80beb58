"""What pretraining and fine-tuning both hang on Detectron2's training loop."""

import logging
import sys
from collections.abc import Callable

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
