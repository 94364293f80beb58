"""The part of the trainer that saves, loads and resumes its state."""

import logging
from pathlib import Path
from typing import Any

from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer
from detectron2.utils import comm

from moco_d2.engine.consistency import check_agreement, fingerprint, of_images
from moco_d2.engine.metrics_state import MetricsState
from moco_d2.engine.process_state import set_process_state
from moco_d2.engine.resume_checks import continuing
from moco_d2.errors import UserError
from moco_d2.plugin import compat
from moco_d2.records.run_schema import RECORD_FILE
from moco_d2.transfer.checkpointing import TransferCheckpointer
from moco_d2.transfer.data.training_data import TrainingBatches
from moco_d2.transfer.resume_checks import check_own_entry, check_trainer
from moco_d2.transfer.weights import CONVERT, Coverage, loading, measure_coverage, unwrapped

logger = logging.getLogger(__name__)


class ResumableTrainer(DefaultTrainer):
    """Detectron2's DefaultTrainer with an exact resume. Its subclass sets the attributes below."""

    iter: int  # set by DefaultTrainer: the iteration that runs or has run last
    data_loader: TrainingBatches
    checkpointer: TransferCheckpointer
    _trainer: SimpleTrainer
    _metrics: MetricsState
    _processes: list[dict[str, Any]]

    def resume_or_load(self, resume: bool = True) -> Coverage:
        """Load the newest intact checkpoint in OUTPUT_DIR, or MODEL.WEIGHTS if there is none.

        Returns:
            The coverage: which of the pretrained tensors arrived.

        Raises:
            UserError: If Detectron2 cannot read the file (it may not be converted), if the
                checkpoint has another batch size or an entry that cannot be used, if OUTPUT_DIR
                holds a run and `resume` is False, or if weights or data differ between processes.
        """
        has_run = self.checkpointer.has_checkpoint()
        if not resume and (has_run or (Path(self.cfg.OUTPUT_DIR) / RECORD_FILE).is_file()):
            raise UserError(
                f"OUTPUT_DIR {self.cfg.OUTPUT_DIR} holds a run: continue it with --resume, or "
                "choose another folder"
            )
        if has_run:
            file = self.checkpointer.newest_intact()
            with continuing(file), measure_coverage(unwrapped(self.model)) as measured:
                rest = self.checkpointer.resume(file)
            self.checkpointer.name(file)
            self.start_iter = self.iter + 1
            self.data_loader.start = self.start_iter * self.cfg.MOCO.ACCUMULATION  # passes
            self._processes = rest.get("processes", [])
        else:
            file = self.cfg.MODEL.WEIGHTS
            with (
                loading(f"MODEL.WEIGHTS {file}", CONVERT),
                measure_coverage(
                    unwrapped(self.model), backbone_only=self.cfg.MOCO.BACKBONE_ONLY
                ) as measured,
            ):
                self.checkpointer.load(file, checkpointables=[])
        if comm.get_world_size() > 1:
            check_agreement(
                {
                    "the first iteration": self.start_iter,
                    "the training data": of_images(self.data_loader.dicts),
                    "the values of the weights": fingerprint(self.model.parameters()),
                }
            )
        return measured.result

    def restore_generators(self) -> None:
        """Restore the random generators of this process from the checkpoint of a resumed run."""
        if not self._processes:
            return
        if not set_process_state(unwrapped(self.model), self._processes):
            logger.warning(
                "the checkpoint was saved by %d process(es) and is continued by %d: the run sees "
                "the same images, but its numbers will not be equal bit for bit",
                len(self._processes),
                comm.get_world_size(),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return iteration, hooks and optimizer under the names of Detectron2's main, and the
        package's own entry ``moco_d2``.
        """
        state = super().state_dict()
        if not compat.checkpoints_hold_the_optimizer(DefaultTrainer):
            state["_trainer"] = self._trainer.state_dict()
        state["moco_d2"] = {
            "metrics": self._metrics.state(),
            "data_seed": self.data_loader.seed,
            "ims_per_batch": self.cfg.SOLVER.IMS_PER_BATCH,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that state_dict returned.

        Raises:
            UserError: If the checkpoint has no optimizer (stock Detectron2 v0.6 wrote it), or if it
                was trained with another batch size, on which its position in the data depends.
            UnusableError: If an entry cannot be used.
        """
        if "_trainer" not in state_dict:
            raise UserError(
                "the checkpoint has no optimizer state (stock Detectron2 v0.6 leaves it out), so "
                "it cannot be resumed; start again without --resume"
            )
        check_trainer(state_dict, self.optimizer)
        own = state_dict.get("moco_d2")  # absent from a checkpoint of stock Detectron2
        if own is not None:
            check_own_entry(own, state_dict["iteration"])
            batch = self.cfg.SOLVER.IMS_PER_BATCH
            if own["ims_per_batch"] != batch:
                raise UserError(
                    f"the checkpoint was trained with {own['ims_per_batch']} images a step, and "
                    f"this run has {batch}, but the schedule depends on this number: resume on the "
                    "same number of processes, or set SOLVER.REFERENCE_WORLD_SIZE 0 and "
                    f"SOLVER.IMS_PER_BATCH {own['ims_per_batch']}"
                )
            if state_dict["iteration"] >= self.max_iter:
                raise UserError(
                    f"the checkpoint has {state_dict['iteration'] + 1} iterations, and "
                    f"SOLVER.MAX_ITER is {self.max_iter} for this run: raise it, or begin a "
                    "shorter run in another OUTPUT_DIR"
                )
            saved = state_dict["_trainer"]["optimizer"]
            left = state_dict["iteration"] + 1 < self.max_iter
            keeps = any(g.get("momentum", 1) for g in saved["param_groups"])  # AdamW always does
            if left and not saved["state"] and keeps:
                raise UserError(
                    "the checkpoint has no momentum, because its run was finished and kept only "
                    "its weights, so it cannot be lengthened: begin anew in another OUTPUT_DIR, "
                    "and set keep: all in the suite"
                )
            self._metrics.restored = own["metrics"]
            self.data_loader.reseed(own["data_seed"])
        rates = list(self.scheduler.base_lrs)
        settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        super().load_state_dict(state_dict)
        if not compat.checkpoints_hold_the_optimizer(DefaultTrainer):
            self._trainer.load_state_dict(state_dict["_trainer"])
        self._configure_optimizer(settings, rates)

    def _configure_optimizer(self, settings: list[dict[str, Any]], rates: list[float]) -> None:
        """Take rate, momentum and weight decay from the config, not from the checkpoint: a user who
        resumes a diverged run may have lowered the rate, and the record names the config's values.
        """
        for group, configured in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(configured)
        self.scheduler.base_lrs = rates
        # The schedule depends only on the iteration, which is restored.
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate


class RestoreGenerators(HookBase):
    """Restores the generators after everything that draws random numbers before the first step."""

    def before_train(self) -> None:
        self.trainer.restore_generators()
