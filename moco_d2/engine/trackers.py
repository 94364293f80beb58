"""Trackers of experiments (W&B, MLflow, trackio) as a writer of Detectron2: MOCO.TRACKERS.

The main process sends the values of metrics.json, the config and the name of the run. Nothing is
loaded or sent unless the command line names a tracker. A tracker that fails ends, and the training
goes on.
"""

import abc
import contextlib
import importlib.util
import io
import logging
import math
import os
import random
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.utils.events import EventWriter, get_event_storage

from moco_d2.config.plain import flatten, to_plain
from moco_d2.engine.metrics_state import WINDOW
from moco_d2.errors import Stopped, UserError, printable
from moco_d2.files import read_plain_json, write_json

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

#: The file in OUTPUT_DIR with the identity of the run in each tracker, with which it is continued.
IDENTITIES = "trackers.json"
_PROJECT = "moco_d2"  # unless the tracker's own environment variable names another
_MOST_BYTES = 10_000  # of that file
_IDENTITY = re.compile(r"[\w.-]{1,100}")
_REASON = 200  # characters of another library's error
# What these libraries report about themselves to their makers, and how long they wait.
_QUIET = {
    "wandb": {"WANDB_ERROR_REPORTING": "false", "WANDB_INIT_TIMEOUT": "30"},  # seconds
    "mlflow": {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    },
    "trackio": {"HF_HUB_DISABLE_TELEMETRY": "1"},
}


_MLFLOW_STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]")  # of a metric of MLflow
_BATCH = 100  # parameters of one request, the most that MLflow accepts
_LONGEST = 500  # characters of a parameter


class Tracker(abc.ABC):
    """A run in one tracker."""

    @abc.abstractmethod
    def __init__(self, folder: Path, config: dict[str, Any], identity: str | None):
        """Begin a run, or continue one.

        Args:
            folder: OUTPUT_DIR, whose name is that of the run.
            config: The config of the run in JSON types.
            identity: The run to continue; None for a new one.
        """
        self.identity = ""

    @abc.abstractmethod
    def log(self, values: dict[str, float], iteration: int) -> None:
        """Send the values of an iteration."""

    @abc.abstractmethod
    def finish(self, state: str) -> None:
        """End the run. `state` is ``finished``, ``stopped`` or ``failed``."""


class _Wandb(Tracker):
    def __init__(self, folder: Path, config: dict[str, Any], identity: str | None):
        import wandb

        self.identity = identity or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.name,
            id=self.identity,
            resume="allow",
            dir=str(folder),
            config=config,
            # Neither the output of the program nor its code is sent.
            settings=wandb.Settings(console="off", save_code=False, silent=True),
        )
        # A resumed run repeats iterations, and W&B's own steps cannot go back.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def log(self, values: dict[str, float], iteration: int) -> None:
        self._run.log({**values, "iteration": iteration})

    def finish(self, state: str) -> None:
        self._run.finish(exit_code=0 if state == "finished" else 1)


class _Mlflow(Tracker):
    def __init__(self, folder: Path, config: dict[str, Any], identity: str | None):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient()  # MLFLOW_TRACKING_URI, or a file in this folder
        if identity is not None:
            self.identity = identity
            self._client.update_run(identity, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self.identity = self._client.create_run(experiment, run_name=folder.name).info.run_id
        settings = [Param(k, str(v)[:_LONGEST]) for k, v in flatten(config).items()]
        for first in range(0, len(settings), _BATCH):
            self._client.log_batch(self.identity, params=settings[first : first + _BATCH])

    def log(self, values: dict[str, float], iteration: int) -> None:
        now = int(time.time() * 1000)
        names = {name: _NOT_IN_A_NAME.sub("_", name) for name in values}
        metrics = [self._metric(names[k], v, now, iteration) for k, v in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def finish(self, state: str) -> None:
        self._client.set_terminated(self.identity, _MLFLOW_STATES[state])


class _Trackio(Tracker):
    def __init__(self, folder: Path, config: dict[str, Any], identity: str | None):
        import trackio

        self._library = trackio
        # A run is known by its name.
        self.identity = identity or f"{_plain(folder.name)}-{secrets.token_hex(4)}"
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=self.identity,
            config=config,
            resume="allow",
            embed=False,
        )

    def log(self, values: dict[str, float], iteration: int) -> None:
        self._run.log(values, step=iteration)

    def finish(self, state: str) -> None:
        self._library.finish()  # the run's own method leaves a message for the end of the process


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:60] or "run"


#: Each tracker of MOCO.TRACKERS; the name is that of its package and of the extra.
TRACKERS: dict[str, type[Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


class Trackers(EventWriter):
    """Writes to the trackers of a config. They start at the first write."""

    def __init__(self, cfg: "CfgNode", resumed: Callable[[], bool]):
        """
        Args:
            cfg: The config of the run.
            resumed: Whether the run continues a checkpoint, which is asked at the first write.

        Raises:
            UserError: If a package is absent, or W&B would ask for a key.
        """
        self._folder = Path(os.path.realpath(cfg.OUTPUT_DIR))
        self._config = to_plain(cfg)
        self._resumed = resumed
        self._last_write = -1
        self._waiting = tuple(dict.fromkeys(cfg.MOCO.TRACKERS))
        self._running: dict[str, Tracker] = {}
        for name in self._waiting:
            _check(name)

    def write(self) -> None:
        if self._waiting:
            self._start()
        if not self._running:
            return
        values: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in (
            get_event_storage().latest_with_smoothing_hint(WINDOW).items()
        ):
            if iteration > self._last_write and math.isfinite(value):
                values.setdefault(iteration, {})[name] = float(value)
        for iteration, of_iteration in sorted(values.items()):
            self._last_write = max(self._last_write, iteration)
            for name, tracker in list(self._running.items()):
                with self._guarded(name):
                    tracker.log(of_iteration, iteration)

    def close(self) -> None:
        error = sys.exc_info()[1]
        state = "finished" if error is None else "failed"
        if isinstance(error, Stopped):
            state = "stopped"
        for name, tracker in list(self._running.items()):
            with self._guarded(name):
                tracker.finish(state)
        self._running.clear()

    def _start(self) -> None:
        names, self._waiting = self._waiting, ()
        file = self._folder / IDENTITIES
        identities = _read_identities(file) if self._resumed() else {}
        for name in names:
            with self._guarded(name):
                tracker = TRACKERS[name](self._folder, self._config, identities.get(name))
                self._running[name] = tracker
                identities[name] = tracker.identity
                logger.info("MOCO.TRACKERS %s: run %s", name, tracker.identity)
        with self._guarded(IDENTITIES):
            write_json(file, identities)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """End a tracker that fails, and hide what it prints and which random numbers it draws."""
        try:
            with _same_random_numbers(), contextlib.redirect_stdout(io.StringIO()):
                yield
        except Exception as error:  # the training is worth more, whatever has happened
            self._running.pop(name, None)
            reason = printable(" ".join(str(error).split()))[:_REASON] or type(error).__name__
            logger.warning(
                "MOCO.TRACKERS: %s fails (%s); training goes on without it", name, reason
            )


def _check(name: str) -> None:
    """Refuse a tracker that cannot start, before the training."""
    for variable, value in _QUIET[name].items():
        os.environ.setdefault(variable, value)
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"MOCO.TRACKERS names {name}, which is not installed: pip install 'moco_d2[{name}]', "
            "or leave it out"
        )
    if name == "wandb" and not _wandb_can_start():
        raise UserError(
            "MOCO.TRACKERS names wandb, which has no key on this machine: call `wandb login`, or "
            "set WANDB_MODE=offline and call `wandb sync` later"
        )


def _wandb_can_start() -> bool:
    """Return whether W&B starts without asking the terminal for a key."""
    import wandb

    try:
        if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
            return True
        with contextlib.redirect_stderr(io.StringIO()):
            return bool(wandb.login(prompt=False, verify=False))
    except (TypeError, AttributeError):  # another version
        return True


def _read_identities(file: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        content = read_plain_json(file, _MOST_BYTES)
        if isinstance(content, dict):
            return {
                name: value
                for name, value in content.items()
                if name in TRACKERS and isinstance(value, str) and _IDENTITY.fullmatch(value)
            }
    return {}


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leave the generators of this process as they are: a tracked run equals an untracked one."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
