"""Write and resume pretraining checkpoints.

A checkpoint has the official layout (official_layout.py). Its further entry ``moco_d2`` has what an
exact resume needs: iteration, state of every process (engine/process_state.py), gradient scaler,
windows of the metrics, config and its scaling, and the fingerprint of the training data. All values
are of plain types, so the file loads with ``weights_only=True``.

``--resume`` takes the file that OUTPUT_DIR/last_checkpoint names. If it is damaged, ``--resume``
takes the newest intact one. If OUTPUT_DIR has no checkpoint, it takes the file in MODEL.WEIGHTS.
Each of them may be an official file, which has neither an iteration nor generator states. Such a
file continues at the beginning of its epoch, and the log says so. The official code updates the key
encoder at the beginning of a step and ours at the end, so the update of its last step is made up
for.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from torch.amp.grad_scaler import GradScaler

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.config.plain import to_plain
from moco_d2.engine.exchange import decided_by_main
from moco_d2.engine.last_checkpoint import (
    LAST_CHECKPOINT,
    holds_run,
    name_last,
    newest_intact,
    save_checkpoint,
)
from moco_d2.engine.periodic_saves import PeriodicSaves
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
    check_name,
    continuing,
    entry,
    require,
)
from moco_d2.engine.resumed_config import FREE_TO_CHANGE, Change, changes, read_changes
from moco_d2.engine.signals import note_saved
from moco_d2.errors import UserError, printable
from moco_d2.pretrain.data.stream import TrainingData
from moco_d2.pretrain.key_momentum import key_momentum
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.model.moco_v3 import MoCoV3
from moco_d2.pretrain.model.vit import VisionTransformer
from moco_d2.pretrain.official_layout import (
    load_official_optimizer,
    load_official_state_dict,
    official_optimizer,
    official_state_dict,
)
from moco_d2.pretrain.schedule import training_length
from moco_d2.records.environment import hardware, peak_memory_gib, versions
from moco_d2.version import __version__

logger = logging.getLogger(__name__)

FINAL_CHECKPOINT = "checkpoint_final.pth.tar"
_NUMBERED = "checkpoint_[0-9]*.pth.tar"
_ANY = "checkpoint_*.pth.tar"
# In addition to FREE_TO_CHANGE: these do not change what is trained.
_FREE_TO_CHANGE = (*FREE_TO_CHANGE, "MODEL.WEIGHTS", "MOCO.KNN.", "MOCO.MONITOR.")


class PretrainCheckpointer:
    """Saves the state of a pretraining in OUTPUT_DIR and resumes it."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: GradScaler,
        *,
        scaling: dict[str, Any] | None = None,
        data: TrainingData | None = None,
    ):
        """
        Args:
            cfg: The scaled config of the run.
            scaling: The description of the scaling (see schedule.scale_recipe), for the record.
            data: The training data, which a resume compares with those of the checkpoint.
        """
        self.folder = Path(cfg.OUTPUT_DIR)
        self.cfg = cfg
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.scaling = scaling or {}
        self.data = {} if data is None else _describe(data)
        self.changes: list[Change] = []
        self._rng: dict[str, Any] | None = None
        self.reinitialize = tuple(cfg.MOCO.CHECKPOINT.REINITIALISE)

    def save(
        self, name: str, *, iteration: int, epoch: int, metrics: dict[str, Any] | None = None
    ) -> Path:
        """Write a checkpoint called ``name`` and delete old ones (MOCO.CHECKPOINT).

        All processes must call this; the main process writes.

        Args:
            iteration: Number of finished iterations.
            epoch: Number of finished epochs, an official entry.
            metrics: The result of metrics_state.MetricsState.state.

        Raises:
            UserError: If a file cannot be written. The previous checkpoint stays as it was.
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
            "optimizer": official_optimizer(self.optimizer, self.model),
            **({"scaler": self.scaler.state_dict()} if isinstance(self.model, MoCoV3) else {}),
            "moco_d2": {
                **_vit(self.model),
                "version": __version__,
                "pretext": self.cfg.MOCO.PRETEXT,
                "iteration": iteration,
                "config": to_plain(self.cfg),
                "scaling": to_plain(self.scaling),
                "data": self.data,
                "changes": [dataclasses.asdict(change) for change in self.changes],
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
        save_checkpoint(path, content)
        self._prune(keep=path)
        return path

    def _prune(self, keep: Path) -> None:
        """Delete numbered checkpoints, except the last KEEP_LAST and every KEEP_EVERY-th.

        `keep` was just written, so at least one intact checkpoint always stays.
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
        """Refuse to start a new run where a checkpoint should be continued.

        Raises:
            UserError: If OUTPUT_DIR has a checkpoint, or MODEL.WEIGHTS names one.
        """
        if decided_by_main(lambda: holds_run(self.folder, _ANY)):
            raise UserError(
                f"OUTPUT_DIR {self.folder} holds a run: continue it with --resume, or choose "
                "another folder"
            )
        if self.cfg.MODEL.WEIGHTS:
            raise UserError(
                f"MODEL.WEIGHTS {self.cfg.MODEL.WEIGHTS} names a checkpoint to continue: add "
                "--resume, or set MODEL.WEIGHTS ''"
            )

    def resume(self, *, iterations_per_epoch: int) -> tuple[int, dict[str, Any]]:
        """Load the newest intact checkpoint.

        Returns:
            The number of finished iterations (0 without a checkpoint) and the saved metrics.

        Raises:
            UserError: If no checkpoint is intact, it was made with other settings, or one of its
                entries cannot be used. No file has been written then.
        """
        newest = self._newest_intact()
        if newest is None:
            return 0, {}
        path, checkpoint = newest
        if "state_dict" not in checkpoint or "optimizer" not in checkpoint:
            raise UserError(f"{path} is not a training checkpoint: it has no optimizer to resume")
        with continuing(path):
            progress = self._load(path, checkpoint, iterations_per_epoch)
        comm.synchronize()  # name_last may change what another process would select
        # An official file that MODEL.WEIGHTS names stays unnamed.
        named = (self.folder / LAST_CHECKPOINT).is_file() or "moco_d2" in checkpoint
        if comm.is_main_process() and named:
            name_last(self.folder, path)
        return progress

    def _load(
        self, path: Path, checkpoint: dict[str, Any], iterations_per_epoch: int
    ) -> tuple[int, dict[str, Any]]:
        """Resume from the content of a checkpoint; see `resume`."""
        state = checkpoint.get("moco_d2")
        if state is not None:
            self._check_state(path, state)
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
            logger.warning("the %s starts with new values (MOCO.CHECKPOINT.REINITIALISE)", part)
        if state is None:
            epoch = check_count(checkpoint.get("epoch", 0), "epoch")
            iteration = check_count(epoch * iterations_per_epoch, "epoch in iterations")
            if isinstance(self.model, MoCo | MoCoV3):
                if self.cfg.MOCO.MOMENTUM_SCHEDULE != "constant":
                    progress = iteration / training_length(self.cfg, iterations_per_epoch)
                    self.model.momentum = key_momentum(self.cfg, min(progress, 1.0))
                self.model.update_key_encoder()
            if checkpoint.get("scaler") and self.scaler.is_enabled():  # official v3
                check_grad_scaler(checkpoint["scaler"])
                self.scaler.load_state_dict(checkpoint["scaler"])
            logger.warning(
                "%s is an official file: it continues at the beginning of its epoch, iteration %d, "
                "with newly seeded generators",
                path,
                iteration,
            )
            return iteration, {}
        if state["grad_scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["grad_scaler"])
        if set_process_state(self.model, state["processes"]):
            self._rng = state["processes"][comm.get_rank()]["rng"]
        else:
            logger.warning(
                "%s was saved by %d process(es) and is continued by %d: the images stay the same, "
                "but BatchNorm groups and random numbers change, so the result is not bit-equal",
                path,
                len(state["processes"]),
                comm.get_world_size(),
            )
        logger.info("continuing %s from iteration %d", path, state["iteration"])
        return state["iteration"], state["metrics"]

    def restore_generators(self) -> None:
        """Set the generators as `resume` did, because they may have been seeded since."""
        if self._rng is not None:
            set_rng_state(self._rng)

    def _check_state(self, path: Path, state: Any) -> None:
        """Check the entry ``moco_d2``, which no official file has.

        Raises:
            UserError: If the run had another batch size.
            UnusableError: If a value cannot be used.
        """
        iteration = check_count(entry(state, "iteration", int, "moco_d2"), "iteration")
        self.changes = read_changes(state.get("changes", []), "moco_d2.changes")
        self._compare_configs(path, entry(state, "config", dict, "moco_d2"), iteration)
        self._compare_data(path, state.get("data", {}), iteration)
        check_grad_scaler(entry(state, "grad_scaler", dict, "moco_d2"))
        check_process_states(self.model, entry(state, "processes", list, "moco_d2"))
        require(bool(state["processes"]), "its moco_d2.processes is empty")
        check_metrics(entry(state, "metrics", dict, "moco_d2"), iteration)

    def _newest_intact(self) -> tuple[Path, dict[str, Any]] | None:
        """Load the file that the main process chooses: not all may see the same files."""
        if decided_by_main(lambda: holds_run(self.folder, _ANY)):
            path = decided_by_main(lambda: newest_intact(self.folder, _ANY)[0])
            note_saved(path)
            return path, load_checkpoint(path)
        weights = self.cfg.MODEL.WEIGHTS
        return (Path(weights), load_checkpoint(weights)) if weights else None

    def _compare_configs(self, path: Path, config: dict[str, Any], iteration: int) -> None:
        """Log and keep the settings that differ from the checkpoint's config.

        Raises:
            UserError: If the batch size differs, since the data position is counted in batches.
        """
        found = changes(config, to_plain(self.cfg), iteration=iteration, free=_FREE_TO_CHANGE)
        for change in found:
            if change.key == "SOLVER.IMS_PER_BATCH":
                raise UserError(
                    f"{change.key} is {change.after}, but {path} was trained with "
                    f"{change.before}: set it back, since the position in the data is counted in "
                    "batches"
                )
        self._keep(found)

    def _compare_data(self, path: Path, before: Any, iteration: int) -> None:
        """Log and keep that the training data are not those of the checkpoint.

        A checkpoint of an earlier version does not say what its data were.

        Raises:
            UserError: If the labels of a supervised run mean other classes.
            UnusableError: If the entry cannot be used.
        """
        if before == {} or not self.data:
            return
        where = "moco_d2.data"
        old = check_name(entry(before, "fingerprint", str, where), f"{where}.fingerprint")
        classes = entry(before, "classes", list, where)
        require(all(type(name) is str for name in classes), f"its {where}.classes are not text")
        if self.cfg.MOCO.PRETEXT == "supervised" and classes != self.data["classes"]:
            raise UserError(
                f"{path} was trained with {_classes(classes, self.data['classes'])} in "
                f"DATASETS.TRAIN, and now there are {_classes(self.data['classes'], classes)}, so "
                "its labels would mean other classes: set DATASETS.TRAIN back, or begin anew in "
                "another OUTPUT_DIR"
            )
        now = self.data["fingerprint"]
        if old != now:
            self._keep([Change(iteration, "the training data", old, now)])

    def _keep(self, found: list[Change]) -> None:
        for change in found:
            logger.warning("resuming with %s", change)
        self.changes += found


def _vit(model: nn.Module) -> dict[str, Any]:
    """Return the entry of a ViT: the number of its heads, which no tensor shows."""
    vits = [layer.vit for layer in model.modules() if isinstance(layer, VisionTransformer)]
    return {"vit": {"heads": vits[0].heads}} if vits else {}


def _describe(data: TrainingData) -> dict[str, Any]:
    return {"fingerprint": data.fingerprint(), "classes": list(data.classes)}


def _classes(names: list[str], others: list[str]) -> str:
    """Return the number of classes, and the first that the others have not at its place."""
    differ = (i for i, name in enumerate(names) if others[i : i + 1] != [name])
    first = next(differ, None)
    named = "" if first is None else f" (class {first} is {printable(names[first])[:60]})"
    return f"{len(names)} classes{named}"


class SaveCheckpoint(PeriodicSaves):
    """Saves as PeriodicSaves does; a file is named by the number of finished iterations."""

    def __init__(self, period: int, minutes: float, metrics: Callable[[], dict[str, Any]]):
        """
        Args:
            period: Number of iterations between two checkpoints; 0 sets no such period.
            minutes: The longest time without a checkpoint; 0 sets no limit.
            metrics: Returns the state of the metrics for the checkpoint.
        """
        super().__init__(period, minutes)
        self._metrics = metrics

    def write(self) -> Path:
        """Write the finished iteration."""
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        return self.trainer.checkpointer.save(
            FINAL_CHECKPOINT if last else f"checkpoint_{done:07d}.pth.tar",
            iteration=done,
            epoch=self.trainer.epochs_done,
            metrics=self._metrics(),
        )
