"""Pretraining checkpoints: the official layout (official_layout.py), and beside it, in the entry
``moco_d2``, what an exact resume needs.

That entry has: iteration, state of every process (engine/process_state.py), gradient scaler,
windows of the metrics, configuration and how it was scaled. Plain types only, so the file loads
with ``weights_only=True``.

``--resume`` takes the file that OUTPUT_DIR/last_checkpoint names; where that is damaged, the newest
of the others that is whole; and where OUTPUT_DIR has none, the file MODEL.WEIGHTS names. Each may
be an official file: it has no place within an epoch and no generator states, so it continues at
the beginning of its epoch, and the log says so.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.amp.grad_scaler import GradScaler

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.config.plain import flatten, to_plain
from moco_d2.engine.last_checkpoint import LAST_CHECKPOINT, name_last, newest_intact
from moco_d2.engine.process_state import (
    check_process_states,
    gather_process_states,
    set_process_state,
    set_rng_state,
)
from moco_d2.engine.resume_checks import (
    check_count,
    check_grad_scaler,
    check_metrics,
    continuing,
    entry,
    require,
    shown,
)
from moco_d2.errors import UserError
from moco_d2.files import atomic_write, write_text
from moco_d2.pretrain.official_layout import (
    load_official_optimizer,
    load_official_state_dict,
    official_state_dict,
)
from moco_d2.records.environment import hardware, peak_memory_gib, versions
from moco_d2.version import __version__

logger = logging.getLogger(__name__)

FINAL_CHECKPOINT = "checkpoint_final.pth.tar"
_NUMBERED = "checkpoint_[0-9]*.pth.tar"
_ANY = "checkpoint_*.pth.tar"
# Settings that may change at a resume without a word: where to write, how long, how to run.
_FREE_TO_CHANGE = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "MOCO.CHECKPOINT.",
    "MOCO.KNN.",
    "MOCO.MONITOR.",
)


class PretrainCheckpointer:
    """Saves to and resumes from OUTPUT_DIR."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: GradScaler,
        *,
        scaling: dict[str, Any] | None = None,
    ):
        """
        Args:
            cfg: as it runs.
            scaling: how it came to be so (schedule.scale_recipe), for the record.
        """
        self.folder = Path(cfg.OUTPUT_DIR)
        self.cfg = cfg
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.scaling = scaling or {}
        self._rng: dict[str, Any] | None = None
        self.reinitialize = tuple(cfg.MOCO.CHECKPOINT.REINITIALISE)

    def save(
        self, name: str, *, iteration: int, epoch: int, metrics: dict[str, Any] | None = None
    ) -> Path:
        """Write ``name`` atomically, point ``last_checkpoint`` at it, delete what is not kept.

        All processes must call; the main one writes.

        Args:
            iteration: number of finished iterations.
            epoch: number of finished epochs, the official entry.
            metrics: see metrics_state.MetricsState.

        Raises:
            UserError: it cannot be written; the checkpoint before stays as it was.
        """
        path = self.folder / name
        processes = gather_process_states(self.model)
        if not comm.is_main_process():
            return path
        device = str(next(self.model.parameters()).device)
        content = {
            "epoch": epoch,
            "arch": self.cfg.MOCO.ENCODER.ARCH,
            "state_dict": official_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "moco_d2": {
                "version": __version__,
                "pretext": self.cfg.MOCO.PRETEXT,
                "iteration": iteration,
                "config": to_plain(self.cfg),
                "scaling": to_plain(self.scaling),
                "processes": processes,
                "made_with": {
                    "environment": versions(),
                    "hardware": hardware(device),
                    "peak_memory_gib": peak_memory_gib(device),
                },
                "grad_scaler": self.scaler.state_dict(),  # empty unless float16
                "metrics": metrics or {},
            },
        }
        try:
            with atomic_write(path) as temporary:
                torch.save(content, temporary)
            write_text(self.folder / LAST_CHECKPOINT, name)
        # torch's zip writer raises RuntimeError on a full disk
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(
                f"cannot write {path} ({reason}): free some space and continue with --resume from "
                "the checkpoint before"
            ) from error
        self._prune(keep=path)
        return path

    def _prune(self, keep: Path) -> None:
        """Delete numbered checkpoints but the last KEEP_LAST and every KEEP_EVERY-th.

        `keep` has just been written whole, so one that is intact always stays.
        """
        settings = self.cfg.MOCO.CHECKPOINT
        if settings.KEEP_LAST == 0:
            return
        forever = settings.KEEP_EVERY * self.cfg.SOLVER.CHECKPOINT_PERIOD
        for path in sorted(self.folder.glob(_NUMBERED))[: -settings.KEEP_LAST]:
            iteration = int(path.name.removeprefix("checkpoint_").partition(".")[0])
            if path != keep and not (forever > 0 and iteration % forever == 0):
                path.unlink(missing_ok=True)

    def check_fresh(self) -> None:
        """Refuse to begin a run where there is one.

        Raises:
            UserError: OUTPUT_DIR has a checkpoint, or MODEL.WEIGHTS names one.
        """
        if (self.folder / LAST_CHECKPOINT).is_file():
            raise UserError(
                f"OUTPUT_DIR {self.folder} holds a run: continue it with --resume, or choose "
                "another folder"
            )
        if self.cfg.MODEL.WEIGHTS:
            raise UserError(
                f"MODEL.WEIGHTS {self.cfg.MODEL.WEIGHTS} is the checkpoint to continue: add "
                "--resume, or set MODEL.WEIGHTS ''"
            )

    def resume(self, *, iterations_per_epoch: int) -> tuple[int, dict[str, Any]]:
        """Load the newest intact checkpoint.

        Returns:
            number of finished iterations, 0 if there is no checkpoint, and the metrics saved.

        Raises:
            UserError: none is intact, or it was made with other settings, or holds what cannot be
                used. Nothing has been written then.
        """
        found = self._newest_intact()
        if found is None:
            return 0, {}
        path, checkpoint = found
        if "state_dict" not in checkpoint or "optimizer" not in checkpoint:
            raise UserError(f"{path} is not a training checkpoint: it has no optimizer to resume")
        with continuing(path):
            place = self._load(path, checkpoint, iterations_per_epoch)
        comm.synchronize()  # before it is named, all have found the same
        if comm.is_main_process() and (self.folder / LAST_CHECKPOINT).is_file():
            name_last(self.folder, path)
        return place

    def _load(
        self, path: Path, checkpoint: dict[str, Any], iterations_per_epoch: int
    ) -> tuple[int, dict[str, Any]]:
        """`resume` from the content of a checkpoint."""
        ours = checkpoint.get("moco_d2")
        if ours is not None:
            self._check_ours(path, ours)
        tensors = checkpoint["state_dict"]
        load_official_state_dict(self.model, tensors, reinitialize=self.reinitialize)
        load_official_optimizer(
            self.optimizer,
            self.model,
            checkpoint["optimizer"],
            tensors,
            reinitialize=self.reinitialize,
        )
        for part in self.reinitialize:
            logger.warning("the %s begins anew (MOCO.CHECKPOINT.REINITIALISE)", part)
        if ours is None:
            epoch = check_count(checkpoint.get("epoch", 0), "epoch")
            iteration = check_count(epoch * iterations_per_epoch, "epoch in iterations")
            logger.warning(
                "%s is an official file: it continues at the beginning of its epoch, iteration %d, "
                "with generators seeded anew",
                path,
                iteration,
            )
            return iteration, {}
        if ours["grad_scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(ours["grad_scaler"])
        if set_process_state(self.model, ours["processes"]):
            self._rng = ours["processes"][comm.get_rank()]["rng"]
        else:
            logger.warning(
                "%s was saved by %d process(es) and is continued by %d: the same images, but "
                "another division into BatchNorm groups and other random numbers, so not bit for "
                "bit",
                path,
                len(ours["processes"]),
                comm.get_world_size(),
            )
        logger.info("continuing %s, from iteration %d", path, ours["iteration"])
        return ours["iteration"], ours["metrics"]

    def restore_generators(self) -> None:
        """Set the generators as `resume` did: they may have been seeded in between."""
        if self._rng is not None:
            set_rng_state(self._rng)

    def _check_ours(self, path: Path, ours: Any) -> None:
        """Check the entry that no official file has.

        Raises:
            UserError: it is of a run with another batch.
            UnusableError: it has something that cannot be used.
        """
        iteration = check_count(entry(ours, "iteration", int, "moco_d2"), "iteration")
        self._compare(path, entry(ours, "config", dict, "moco_d2"))
        check_grad_scaler(entry(ours, "grad_scaler", dict, "moco_d2"))
        check_process_states(self.model, entry(ours, "processes", list, "moco_d2"))
        require(bool(ours["processes"]), "its moco_d2.processes is empty")
        check_metrics(entry(ours, "metrics", dict, "moco_d2"), iteration)

    def _newest_intact(self) -> tuple[Path, dict[str, Any]] | None:
        if (self.folder / LAST_CHECKPOINT).is_file():
            return newest_intact(self.folder, _ANY)
        given = self.cfg.MODEL.WEIGHTS
        return (Path(given), load_checkpoint(given)) if given else None

    def _compare(self, path: Path, config: dict[str, Any]) -> None:
        """Say which settings differ from the checkpoint's; refuse what would move its place."""
        before, now = flatten(config), flatten(to_plain(self.cfg))
        changed = [key for key, value in before.items() if key in now and now[key] != value]
        if "SOLVER.IMS_PER_BATCH" in changed:
            raise UserError(
                f"{path} was trained with SOLVER.IMS_PER_BATCH {before['SOLVER.IMS_PER_BATCH']}, "
                "by which its place in the data is counted: set it back"
            )
        for key in changed:
            if not key.startswith(_FREE_TO_CHANGE):
                was = before[key] if str(before[key]).isprintable() else shown(before[key])
                logger.warning("resuming with %s %s, which was %s", key, now[key], was)


class SaveCheckpoint(HookBase):
    """Saves every `period` iterations and at the end; in all processes."""

    def __init__(self, period: int, metrics: Callable[[], dict[str, Any]]):
        """
        Args:
            period: iterations; 0: only at the end.
            metrics: gives what the checkpoint is to hold of them.
        """
        self.period = period
        self._metrics = metrics

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self._save(FINAL_CHECKPOINT)
        elif self.period > 0 and done % self.period == 0:
            self.save_now()

    def save_now(self) -> None:
        """Save the finished iteration under its number; the last one has its own name already."""
        done = self.trainer.iter + 1
        if done < self.trainer.max_iter:
            self._save(f"checkpoint_{done:07d}.pth.tar")

    def _save(self, name: str) -> None:
        self.trainer.checkpointer.save(
            name,
            iteration=self.trainer.iter + 1,
            epoch=self.trainer.epochs_done,
            metrics=self._metrics(),
        )
