"""Fine-tuning checkpoints: Detectron2's, written whole or not at all, read without running code,
and with what an exact resume needs beside the model and the optimizer.
"""

from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.targets import AUTHOR
from moco_d2.engine.last_checkpoint import (
    name_last,
    named_checkpoint,
    newest_intact,
    save_checkpoint,
)
from moco_d2.engine.process_state import gather_process_states
from moco_d2.errors import UserError
from moco_d2.transfer.divergence import DivergenceError
from moco_d2.transfer.resume_checks import check_content
from moco_d2.transfer.weights import check_weights_name

FINAL_CHECKPOINT = "model_final"
_CHECKPOINTS = "model_*.pth"


class WeightsCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which reads all that it reads, and our ``.safetensors``, without
    ever running code from a file.

    Any Detectron2 loads the ``.pth`` that we write by itself. A safetensors file has no place for
    the flag that makes Detectron2 look for res5 in a C4 head. Its own way to read a ``.pkl`` runs
    whatever code is in it, and that to read a ``.pth`` what the installed torch lets it.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Detectron2's, from no address; see weights.check_weights_name."""
        check_weights_name(path)
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        suffix, content = Path(filename).suffix, load_checkpoint(filename)
        if suffix == ".safetensors":
            tensors = {name: t for name, t in content.items() if isinstance(t, torch.Tensor)}
            return {"model": tensors, "__author__": AUTHOR, "matching_heuristics": True}
        if suffix == ".pyth" and "model_state" in content:
            tensors = {
                name: tensor
                for name, tensor in content["model_state"].items()
                if not name.endswith("num_batches_tracked")
            }
            return {"model": tensors, "__author__": "pycls", "matching_heuristics": True}
        if suffix == ".pkl" and not ("model" in content and "__author__" in content):
            # Caffe2's: a detector has its tensors under "blobs", a backbone has nothing else.
            tensors = {
                name: tensor
                for name, tensor in content.get("blobs", content).items()
                if not name.endswith("_momentum")
            }
            return {"model": tensors, "__author__": "Caffe2", "matching_heuristics": True}
        return content if "model" in content else {"model": content}


class TransferCheckpointer(WeightsCheckpointer):
    """Saves and resumes a fine-tuning run.

    A file has ``model``, ``trainer`` (optimizer, schedule, metrics) and ``iteration``, as today's
    Detectron2 writes them, and ``processes``: the state of the generators, and of BatchNorm, in
    every process.
    """

    _resuming = False

    def resume(self, path: str) -> dict[str, Any]:
        """`load` all of a checkpoint of this network, as `newest_intact` found it.

        Returns:
            the entries that nothing has taken up.

        Raises:
            UnusableError: an entry cannot be used.
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

    def get_checkpoint_file(self) -> str:
        """What last_checkpoint names; see last_checkpoint.named_checkpoint."""
        return str(named_checkpoint(Path(self.save_dir)))

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` and point last_checkpoint at it. All processes must call.

        Raises:
            DivergenceError: in all processes: a tensor is not finite. Nothing is written.
            UserError: it cannot be written; the checkpoint before stays as it was.
        """
        refuse_damaged(self.model)
        processes = gather_process_states(self.model)
        if not (self.save_dir and self.save_to_disk):
            return
        content = {
            "model": self.model.state_dict(),
            **{key: of.state_dict() for key, of in self.checkpointables.items()},
            "processes": processes,
            **kwargs,
        }
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        save_checkpoint(path, content)

    def newest_intact(self) -> str:
        """See last_checkpoint.newest_intact. The same in all processes.

        Raises:
            UserError: none can be read.
        """
        newest, problem = None, None
        if comm.is_main_process():
            try:
                newest, _ = newest_intact(Path(self.save_dir), _CHECKPOINTS)
            except UserError as error:
                problem = str(error)
        newest, problem = comm.all_gather((newest, problem))[0]
        if problem:
            raise UserError(problem)
        return str(newest)

    def name(self, path: str) -> None:
        """Let last_checkpoint name what newest_intact found. All processes must call, after all
        have found that it can be continued.
        """
        comm.synchronize()
        if comm.is_main_process():
            name_last(Path(self.save_dir), Path(path))


class SaveCheckpoint(HookBase):
    """Saves every `period` iterations and at the end; in all processes.

    It belongs behind evaluation and the writers: what is resumed from has been evaluated and
    written. Detectron2's files bear the index of the last finished iteration, and so do these.
    """

    def __init__(self, period: int):
        """
        Args:
            period: iterations; 0: only at the end.
        """
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.save_now()

    def save_now(self) -> None:
        """Save the finished iteration."""
        iteration = self.trainer.iter
        last = iteration + 1 == self.trainer.max_iter
        name = FINAL_CHECKPOINT if last else f"model_{iteration:07d}"
        self.trainer.checkpointer.save(name, iteration=iteration)


def refuse_damaged(model: nn.Module) -> None:
    """Stop where a finite loss had gradients that were not.

    Raises:
        DivergenceError: in all processes: a tensor of the model has a value that is not finite.
    """
    values = {
        name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in values.values()]).tolist()
    damaged = next((name for name, good in zip(values, finite, strict=True) if not good), None)
    for of_rank in comm.all_gather(damaged):
        if of_rank is not None:
            raise DivergenceError({of_rank: float("nan")})
