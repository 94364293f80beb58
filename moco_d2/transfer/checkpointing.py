"""Fine-tuning checkpoints in Detectron2's format, with the additional state of an exact resume.
They are written atomically and read without running code from a file.
"""

from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.targets import AUTHOR
from moco_d2.engine.exchange import decided_by_main
from moco_d2.engine.last_checkpoint import (
    holds_run,
    name_last,
    named_checkpoint,
    newest_intact,
    save_checkpoint,
)
from moco_d2.engine.periodic_saves import PeriodicSaves
from moco_d2.engine.process_state import gather_process_states
from moco_d2.engine.signals import note_saved
from moco_d2.transfer.divergence import DivergenceError
from moco_d2.transfer.resume_checks import check_content
from moco_d2.transfer.weights import check_weights_name

FINAL_CHECKPOINT = "model_final"
_CHECKPOINTS = "model_*.pth"


class WeightsCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with a safe reader for all its formats, and for the converter's
    ``.safetensors`` files.

    Detectron2's own reader runs any code in a ``.pkl`` file and, with some versions of torch, in a
    ``.pth`` file. A safetensors file cannot hold ``matching_heuristics``, with which Detectron2
    finds res5 in a C4 head, so it is set here.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file as Detectron2 does, but refuse addresses; see weights.check_weights_name."""
        check_weights_name(path)
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        suffix, content = Path(filename).suffix, load_checkpoint(filename)
        if suffix == ".safetensors":
            author = AUTHOR
            tensors = {name: t for name, t in content.items() if isinstance(t, torch.Tensor)}
        elif suffix == ".pyth" and "model_state" in content:
            author, tensors = "pycls", _without(content["model_state"], "num_batches_tracked")
        elif suffix == ".pkl" and not ("model" in content and "__author__" in content):
            # A file of Caffe2: a detector has its tensors under "blobs", a backbone at the top.
            author, tensors = "Caffe2", _without(content.get("blobs", content), "_momentum")
        else:
            return content if "model" in content else {"model": content}
        return {"model": tensors, "__author__": author, "matching_heuristics": True}


def _without(tensors: dict[str, Any], ending: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}


class TransferCheckpointer(WeightsCheckpointer):
    """Saves and resumes a fine-tuning run.

    A file has ``model``, ``trainer`` (optimizer, schedule, metrics) and ``iteration`` as in
    Detectron2's main, and ``processes``: the state of random generators and BatchNorm in each
    process.
    """

    _resuming = False

    def resume(self, path: str) -> dict[str, Any]:
        """Load the whole checkpoint that `newest_intact` returned.

        Returns:
            The entries that no object has restored.

        Raises:
            UnusableError: If an entry cannot be used.
        """
        self._resuming = True
        try:
            return self.load(path)
        finally:
            self._resuming = False

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = super()._load_file(filename)
        if self._resuming:
            check_content(content, self.model)
        return content

    def has_checkpoint(self) -> bool:
        """Return whether OUTPUT_DIR has a run, as the main process sees it, in all processes.

        Raises:
            UserError: If last_checkpoint is not a file.
        """
        return decided_by_main(lambda: holds_run(Path(self.save_dir), _CHECKPOINTS))

    def get_checkpoint_file(self) -> str:
        """Return the file that last_checkpoint names; see last_checkpoint.named_checkpoint."""
        return str(named_checkpoint(Path(self.save_dir)))

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` and name it in last_checkpoint. All processes must call this method.

        Raises:
            DivergenceError: If a tensor is not finite; in all processes. Nothing is written.
            UserError: If the file cannot be written. The previous checkpoint stays as it was.
        """
        refuse_damaged(self.model)
        processes = gather_process_states(self.model)
        if not (self.save_dir and self.save_to_disk):
            return
        content = {
            "model": self.model.state_dict(),
            **{key: part.state_dict() for key, part in self.checkpointables.items()},
            "processes": processes,
            **kwargs,
        }
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        save_checkpoint(path, content)

    def newest_intact(self) -> str:
        """Return last_checkpoint.newest_intact of the main process, in all processes.

        Raises:
            UserError: If no checkpoint can be read.
        """
        path = decided_by_main(lambda: newest_intact(Path(self.save_dir), _CHECKPOINTS)[0])
        note_saved(path)
        return str(path)

    def name(self, path: str) -> None:
        """Name the file of `newest_intact` in last_checkpoint. All processes must call this method
        after they have loaded the file.
        """
        comm.synchronize()
        if comm.is_main_process():
            name_last(Path(self.save_dir), Path(path))


def drop_optimizer_state(path: Path) -> None:
    """Write a checkpoint of a finished run again without the state of its optimizer, atomically.

    The rest stays, so a resume can evaluate it and write its record again.

    Raises:
        UserError: If the file cannot be read or written.
    """
    content = load_checkpoint(path)
    trainer = content.get("trainer")
    inner = trainer.get("_trainer") if isinstance(trainer, dict) else None
    optimizer = inner.get("optimizer") if isinstance(inner, dict) else None
    if isinstance(optimizer, dict) and optimizer.get("state"):
        optimizer["state"] = {}
        save_checkpoint(path, content, name_it=False)


class SaveCheckpoint(PeriodicSaves):
    """Saves as PeriodicSaves does.

    It must be placed after evaluation and writers, so a resumed run does not repeat them. Like
    Detectron2's files, its files are named by the index of the last finished iteration.
    """

    def write(self) -> Path:
        """Write the finished iteration."""
        iteration, checkpointer = self.trainer.iter, self.trainer.checkpointer
        last = iteration + 1 == self.trainer.max_iter
        name = FINAL_CHECKPOINT if last else f"model_{iteration:07d}"
        checkpointer.save(name, iteration=iteration)
        return Path(checkpointer.save_dir) / f"{name}.pth"


def refuse_damaged(model: nn.Module) -> None:
    """Refuse a model with values that are not finite: a finite loss can have infinite gradients.

    Raises:
        DivergenceError: If a tensor in any process has such a value; in all processes.
    """
    values = {
        name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in values.values()]).tolist()
    damaged = next((name for name, good in zip(values, finite, strict=True) if not good), None)
    for name in comm.all_gather(damaged):
        if name is not None:
            raise DivergenceError({name: float("nan")})
