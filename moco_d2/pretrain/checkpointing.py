"""Pretraining checkpoints in the official layout, with what an exact resume needs beside it.

``{"epoch", "arch", "state_dict", "optimizer"}`` are the official entries: state_dict has
``module.encoder_q.*``, ``module.encoder_k.*``, ``module.queue``, ``module.queue_ptr``. Tools
written for the official files read ours. The entry ``moco_d2`` is ours: iteration, generator state,
configuration; ``--resume`` needs it. Plain types only, so the file loads with
``weights_only=True``.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from torch import nn

import moco_d2
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.config import to_plain
from moco_d2.errors import UserError
from moco_d2.files import atomic_write, write_text

LAST_CHECKPOINT = "last_checkpoint"
FINAL_CHECKPOINT = "checkpoint_final.pth.tar"
# Where our module names differ from the official ones.
_OFFICIAL_PREFIX = {"dictionary.": "", "encoder.": ""}


def official_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors under the official names, ``module.`` included."""
    return {f"module.{_official_name(name)}": tensor for name, tensor in model.state_dict().items()}


def _official_name(name: str) -> str:
    for ours, official in _OFFICIAL_PREFIX.items():
        if name.startswith(ours):
            return official + name.removeprefix(ours)
    return name


def load_official_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """Load what official_state_dict wrote, or an official file's state_dict: all of it.

    Raises:
        UserError: names or shapes differ; names the first and the config key behind it.
    """
    ours = {_official_name(name): name for name in model.state_dict()}
    theirs = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    for official, name in ours.items():
        if official not in theirs:
            raise UserError(
                f"the checkpoint has no {official}; it was made with other settings: check "
                "MOCO.ENCODER and MOCO.DICTIONARY against the config.yaml beside it"
            )
        wanted, found = tuple(model.state_dict()[name].shape), tuple(theirs[official].shape)
        if wanted != found:
            key = "MOCO.DICTIONARY.SIZE" if official == "queue" else "MOCO.ENCODER"
            raise UserError(
                f"the checkpoint's {official} is {found} and this config makes it {wanted}: "
                f"change {key} back"
            )
    if surplus := [name for name in theirs if name not in ours]:
        raise UserError(
            f"the checkpoint has {surplus[0]}, which this config's network has not; it was made "
            "with other settings: check MOCO.ENCODER against the config.yaml beside it"
        )
    model.load_state_dict({name: theirs[official] for official, name in ours.items()})


class PretrainCheckpointer:
    """Saves to and resumes from OUTPUT_DIR."""

    def __init__(
        self,
        cfg: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ):
        self.folder = Path(cfg.OUTPUT_DIR)
        self.cfg = cfg
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler

    def save(self, name: str, *, iteration: int, epoch: int) -> Path:
        """Write ``name`` atomically and point ``last_checkpoint`` at it.

        Args:
            iteration: number of finished iterations.
            epoch: number of finished epochs, the official entry.
        """
        path = self.folder / name
        content = {
            "epoch": epoch,
            "arch": self.cfg.MOCO.ENCODER.ARCH,
            "state_dict": official_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "moco_d2": {
                "version": moco_d2.__version__,
                "pretext": self.cfg.MOCO.PRETEXT,
                "iteration": iteration,
                "config": to_plain(self.cfg),
                "rng": _rng_state(),
                "grad_scaler": self.scaler.state_dict(),  # empty unless float16
            },
        }
        with atomic_write(path) as temporary:
            torch.save(content, temporary)
        write_text(self.folder / LAST_CHECKPOINT, name)
        return path

    def resume(self) -> int:
        """Load the newest checkpoint; returns the number of finished iterations, 0 if there is
        none.

        Raises:
            UserError: the checkpoint is damaged, lacks what an exact resume needs, or was made
                with other settings.
        """
        pointer = self.folder / LAST_CHECKPOINT
        if not pointer.is_file():
            return 0
        path = self.folder / pointer.read_text().strip()
        checkpoint = load_checkpoint(path)
        if "state_dict" not in checkpoint or "optimizer" not in checkpoint:
            raise UserError(f"{path} is not a training checkpoint: it has no optimizer to resume")
        ours = checkpoint.get("moco_d2")
        if ours is None:
            raise UserError(
                f"{path} is an official file without our entry 'moco_d2': its place in the data "
                "is unknown, so it cannot be resumed exactly"
            )
        load_official_state_dict(self.model, checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if ours.get("grad_scaler"):
            self.scaler.load_state_dict(ours["grad_scaler"])
        _set_rng_state(ours["rng"])
        return ours["iteration"]


class SaveCheckpoint(HookBase):
    """Saves every `period` iterations and at the end."""

    def __init__(self, period: int):
        self.period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self._save(FINAL_CHECKPOINT)
        elif self.period > 0 and done % self.period == 0:
            self.save_now()

    def save_now(self) -> None:
        """Save the finished iteration under its number."""
        self._save(f"checkpoint_{self.trainer.iter + 1:07d}.pth.tar")

    def _save(self, name: str) -> None:
        self.trainer.checkpointer.save(
            name, iteration=self.trainer.iter + 1, epoch=self.trainer.epochs_done
        )


def _rng_state() -> dict[str, Any]:
    python = random.getstate()
    numpy = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *map(int, numpy[2:4])],
        "numpy_cached_gaussian": float(numpy[4]),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, cached = state["python"]
    random.setstate((version, tuple(internal), cached))
    name, keys, position, has_gauss = state["numpy"]
    np.random.set_state(
        (name, keys.numpy().astype(np.uint32), position, has_gauss, state["numpy_cached_gaussian"])
    )
    if torch.cuda.is_available() and "cuda" in state:
        # As many as there are here: the run may have been saved on a machine with more GPUs.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
