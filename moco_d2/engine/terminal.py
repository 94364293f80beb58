"""What a run shows on a terminal: what it will do, then a progress bar, warnings and results.

log.txt has every line. Without a terminal, the output has every line, too.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from detectron2.engine import HookBase, defaults
from detectron2.utils import comm
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from moco_d2.errors import printable

#: The loggers of a run.
LOGGERS = ("detectron2", "fvcore", "moco_d2")
_RESULTS = "Evaluation results for "  # how Detectron2's evaluators begin their tables


def on_terminal() -> bool:
    """Return whether this is the main process, and a user watches it on a terminal."""
    return comm.is_main_process() and sys.stdout.isatty() and sys.stderr.isatty()


class _Essential:
    """Filters the lines for a terminal.

    Attributes:
        begun: Whether the set-up is over. Before, the first screen stands for the package's lines.
    """

    begun = False

    def __call__(self, record: logging.LogRecord) -> bool:
        library = record.name.partition(".")[0]
        if library == "moco_d2":
            return self.begun or record.levelno >= logging.WARNING
        if library == "detectron2":
            is_result = record.name.startswith("detectron2.evaluation.") and (
                record.getMessage().startswith(_RESULTS)
            )
            return is_result or record.levelno >= logging.WARNING
        return record.levelno >= logging.ERROR  # fvcore lists all new parameters as a warning


_essential = _Essential()


def begin_setup(what: str) -> None:
    """Tell on a terminal that the set-up has begun, which may take minutes for large datasets."""
    _essential.begun = False
    if on_terminal():
        print(f"{printable(what)}: reading settings, weights and data ...", flush=True)


@contextlib.contextmanager
def quiet_setup() -> Iterator[None]:
    """Let Detectron2's loggers, which a block sets up, write only what is essential to a terminal.

    The block may call default_setup, which logs hundreds of lines as soon as the loggers exist.
    """
    # Detectron2's anchors call it in the first step.
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    if not on_terminal():
        yield
        return
    original = defaults.setup_logger

    def setup_logger(*args: Any, **kwargs: Any) -> logging.Logger:
        logger = original(*args, **kwargs)
        quiet(logger)
        return logger

    defaults.setup_logger = setup_logger
    found_no_cuda = logging.getLogger("torch.utils.cpp_extension")  # Detectron2 asks for its home
    level = found_no_cuda.level
    found_no_cuda.setLevel(logging.ERROR)
    try:
        yield
    finally:
        defaults.setup_logger = original
        found_no_cuda.setLevel(level)


def quiet(logger: logging.Logger) -> None:
    """Let a logger write only what is essential to a terminal."""
    if not on_terminal():
        return
    for handler in logger.handlers:
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.addFilter(_essential)


def first_screen(rows: Mapping[str, str], logger: logging.Logger) -> None:
    """Show what a run will do, one line for each row, and write it to the log.

    Args:
        rows: The texts by their labels, such as ``{"device": "cpu, 1 process"}``.
        logger: The logger of the command.
    """
    width = max(map(len, rows))
    lines = [f"{label:{width}}  {printable(text)}" for label, text in rows.items()]
    for line in lines:
        logger.info("%s", line)
    if on_terminal():
        print("\n".join(lines), flush=True)
    _essential.begun = True


def count(number: int, noun: str) -> str:
    """Return ``1 image``, ``2 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def output(folder: str, period: int) -> str:
    """Return the text about OUTPUT_DIR and its checkpoints every `period` steps (0: at the end)."""
    when = f"every {period:,} steps" if period else "at the end"
    return f"{folder}, a checkpoint {when}; log.txt has all settings"


class ProgressBar(HookBase):
    """A progress bar, if stderr is a terminal. Log lines appear above it."""

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
            unit=" steps",
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


class WithBar:
    """A data loader whose iteration shows a progress bar on a terminal, which then disappears."""

    def __init__(self, loader: Any, description: str):
        """
        Args:
            loader: The loader, of which this object has all attributes.
            description: What the iteration does.
        """
        self._loader, self._description = loader, description

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches: Iterable[Any] = self._loader
        if on_terminal():
            batches = tqdm(batches, self._description, leave=False, dynamic_ncols=True)
        return iter(batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
