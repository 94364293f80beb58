"""Detectron2's DefaultTrainer, with the checks and the record of a matched comparison."""

from typing import Any

import torch
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from moco_d2 import compat
from moco_d2.errors import UserError
from moco_d2.hooks import DeferredWriters, ProgressBar, StopOnSignal
from moco_d2.transfer.evaluation import build_evaluator
from moco_d2.transfer.weights import Coverage, loading, measure_coverage


class Trainer(DefaultTrainer):
    """Fine-tunes a detector.

    Examples:
    ::
        trainer = Trainer(cfg)
        coverage = trainer.resume_or_load(resume=False)
        trainer.train()
    """

    def __init__(self, cfg: Any):
        """
        Args:
            cfg: a config as it will run; see schedule.scale_to_hardware.
        """
        self._cpu_autocast = cfg.SOLVER.AMP.ENABLED and torch.device(cfg.MODEL.DEVICE).type == "cpu"
        if self._cpu_autocast:  # Detectron2's AMPTrainer needs CUDA
            detectron2_cfg = cfg.clone()
            detectron2_cfg.defrost()
            detectron2_cfg.SOLVER.AMP.ENABLED = False
            cfg = detectron2_cfg
        super().__init__(cfg)

    def run_step(self) -> None:
        """One iteration; with SOLVER.AMP.ENABLED on a CPU, in bfloat16 where autocast allows."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._cpu_autocast):
            super().run_step()

    @classmethod
    def build_evaluator(
        cls, cfg: Any, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """See evaluation.build_evaluator."""
        return build_evaluator(cfg, dataset_name)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, a stop that saves, and a progress bar."""
        ours: list[HookBase] = [ProgressBar(self.cfg.MOCO.TASK or "training")]
        if comm.get_world_size() == 1:
            ours.append(StopOnSignal(self._save_now))
        return [*super().build_hooks(), *ours]

    def _save_now(self) -> None:
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's writers, not before the first iteration."""
        return [DeferredWriters(super().build_writers)]

    def resume_or_load(self, resume: bool = True) -> Coverage:
        """Load the last checkpoint, or MODEL.WEIGHTS.

        Returns:
            which of the pretrained tensors arrived.

        Raises:
            UserError: Detectron2 cannot read the file, as happens with one that is not converted.
        """
        resuming = resume and self.checkpointer.has_checkpoint()
        source, advice = (
            (f"the last checkpoint in {self.cfg.OUTPUT_DIR}", "start again without --resume")
            if resuming
            else (f"MODEL.WEIGHTS {self.cfg.MODEL.WEIGHTS}", "convert it: tools/convert.py")
        )
        with loading(source, advice), measure_coverage(self._trainer.model) as measured:
            super().resume_or_load(resume=resume)
        return measured.result

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks and optimizer, under the names that today's main uses."""
        state = super().state_dict()
        if not compat.checkpoints_hold_the_optimizer(DefaultTrainer):
            state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what state_dict gave.

        Raises:
            UserError: the checkpoint has no optimizer: it was written by stock Detectron2 v0.6.
        """
        if "_trainer" not in state_dict:
            raise UserError(
                "the checkpoint has no optimizer state (stock Detectron2 v0.6 leaves it out), so "
                "it cannot be resumed; "
                "start again without --resume"
            )
        super().load_state_dict(state_dict)
        if not compat.checkpoints_hold_the_optimizer(DefaultTrainer):
            self._trainer.load_state_dict(state_dict["_trainer"])

    def train(self) -> dict[str, Any]:
        """Train, evaluate, and return the evaluation results ``{"bbox": {"AP": ...}}`` (main
        process; else empty).

        Raises:
            UserError: the loss is no longer finite.
        """
        try:
            super().train()
        except FloatingPointError as error:
            raise UserError(
                f"the loss is no longer finite at iteration {self.iter}: lower SOLVER.BASE_LR "
                f"(now {self.cfg.SOLVER.BASE_LR:g}) or lengthen SOLVER.WARMUP_ITERS"
            ) from error
        return getattr(self, "_last_eval_results", None) or {}
