"""The pretraining loop, on Detectron2's TrainerBase, hooks and storage.

A run writes into OUTPUT_DIR: config.yaml, log.txt, metrics.json, TensorBoard events, checkpoints
(checkpointing.py) and sheets of nearest neighbors (monitor.py).
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, default_writers, hooks
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm
from torch.amp.grad_scaler import GradScaler

from moco_d2.engine.compilation import fastest_convolutions, should_compile
from moco_d2.engine.consistency import check_agreement, fingerprint, of_run
from moco_d2.engine.exchange import decided_by_main, exchange_step
from moco_d2.engine.hooks import DataTime, DeferredWriters, StopOnSignal
from moco_d2.engine.metrics_state import MetricsState
from moco_d2.engine.precision import amp_dtype
from moco_d2.engine.terminal import ProgressBar
from moco_d2.engine.trackers import Trackers
from moco_d2.errors import UserError
from moco_d2.pretrain.accumulation import backward_in_parts
from moco_d2.pretrain.checkpointing import FINAL_CHECKPOINT, PretrainCheckpointer, SaveCheckpoint
from moco_d2.pretrain.data.build import build_training_data
from moco_d2.pretrain.data.images import UnreadableImages
from moco_d2.pretrain.data.stream import Batch
from moco_d2.pretrain.key_momentum import KeyMomentum
from moco_d2.pretrain.model.build import build_pretext_model
from moco_d2.pretrain.model.moco_v3 import MoCoV3
from moco_d2.pretrain.monitor import build_monitors
from moco_d2.pretrain.optimizer import build_optimizer
from moco_d2.pretrain.parallel import distribute, micro_batches
from moco_d2.pretrain.schedule import (
    build_schedule,
    scale_recipe,
    training_length,
    warn_of_unused_steps,
)
from moco_d2.pretrain.step_metrics import StepMetrics, total_loss
from moco_d2.pretrain.warm_up import compile_parts, warming_up

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations between two lines of metrics.json, Detectron2's default


class Pretrainer(TrainerBase):
    """Trains MoCo, or its supervised baseline, as a Detectron2 job.

    Examples:
    ::
        trainer = Pretrainer(cfg)
        trainer.resume_or_start(resume=False)
        trainer.train()

    Attributes:
        cfg: The config of the run, after schedule.scale_recipe.
    """

    iter: int  # attribute of TrainerBase: the current iteration

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: A config with ``cfg.MOCO``; see configs/pretrain/.

        Raises:
            UserError: If data or settings cannot be used, or differ between the processes. No file
                has been written then.
        """
        super().__init__()
        rank, world_size = comm.get_rank(), comm.get_world_size()
        if world_size > 1:
            check_agreement(of_run(cfg))
        self.data = build_training_data(cfg, rank=rank, world_size=world_size)
        if world_size > 1:
            check_agreement({"the training data": self.data.fingerprint()})
        cfg, self.scaling = scale_recipe(
            cfg, world_size=world_size, num_images=self.data.num_images
        )
        self.cfg = cfg
        monitors = build_monitors(cfg, is_main=comm.is_main_process(), trained_on=self.data.images)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.layout = torch.channels_last if cfg.MOCO.CHANNELS_LAST else torch.contiguous_format
        self.model = build_pretext_model(cfg, self.data)
        self.model.to(
            self.device,
            memory_format=self.layout,  # type: ignore[call-overload] # missing in torch's types
        )
        self.optimizer = build_optimizer(cfg, self.model)
        self.amp_dtype = amp_dtype(cfg)
        # In float16, small gradients would underflow to 0 without scaling.
        self.scaler = GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        warn_of_unused_steps(cfg)
        self.max_iter = training_length(cfg, self.data.iterations_per_epoch)
        self.scheduler = LRMultiplier(
            self.optimizer,
            build_schedule(cfg, self.data.iterations_per_epoch),
            max_iter=self.max_iter,
        )
        self.checkpointer = PretrainCheckpointer(
            cfg, self.model, self.optimizer, self.scaler, scaling=self.scaling, data=self.data
        )
        self.unreadable = UnreadableImages(
            cfg.MOCO.DATA.MAX_UNREADABLE, num_images=self.data.num_images
        )
        self.is_compiled = should_compile(cfg.MOCO.COMPILE, self.device)
        if self.is_compiled:
            compile_parts(self.model, self.data)
        self.parallel_model = distribute(self.model)
        self.register_hooks(self._build_hooks(monitors))

    def _build_hooks(self, monitors: list[HookBase]) -> list[HookBase]:
        folder = self.cfg.OUTPUT_DIR
        writers = DeferredWriters(lambda: default_writers(folder, self.max_iter), folder)
        trackers = Trackers(self.cfg, lambda: self.start_iter > 0)
        self.metrics = MetricsState(self.cfg.OUTPUT_DIR, writers)
        # A network whose loss is not finite is neither written about nor evaluated.
        self.periods = {LOG_PERIOD, self.cfg.MOCO.KNN.PERIOD} - {0}
        self.step_metrics = StepMetrics(
            late=self.device.type == "cuda", base_lr=self.cfg.SOLVER.BASE_LR
        )
        self.saver = saver = SaveCheckpoint(
            self.cfg.SOLVER.CHECKPOINT_PERIOD,
            self.cfg.MOCO.CHECKPOINT.MINUTES,
            self._metrics_state,
        )
        self.stop = StopOnSignal(saver.save_now)
        built = [
            self.metrics,
            hooks.IterationTimer(),
            KeyMomentum(self.cfg),
            hooks.LRScheduler(self.optimizer, self.scheduler),
            *monitors,
        ]
        if comm.is_main_process():
            built.append(hooks.PeriodicWriter([writers, trackers], period=LOG_PERIOD))
            built.append(DataTime())
            built.append(ProgressBar(f"pretraining ({self.cfg.MOCO.PRETEXT})"))
        # Evaluation and writers run before the checkpoint, so a resumed run need not repeat them.
        return [*built, saver, self.stop]

    def _metrics_state(self) -> dict[str, Any]:
        """Return the metrics for a checkpoint, none of whose losses is infinite or NaN."""
        self.step_metrics.flush()
        return self.metrics.state()

    def resume_or_start(self, *, resume: bool) -> None:
        """Continue from the newest checkpoint (see checkpointing.py), or start a new run.

        Raises:
            UserError: If the checkpoint cannot be continued, a checkpoint exists but `resume` is
                False, or weights or keys differ between the processes.
        """
        finished = 0
        if resume:
            finished, self.metrics.restored = self.checkpointer.resume(
                iterations_per_epoch=self.data.iterations_per_epoch
            )
        else:
            self.checkpointer.check_fresh()
        self._check_length(finished)
        self.start_iter = finished
        # The learning rate depends only on the iteration. The hook sets that of the next iteration.
        self.scheduler.last_epoch = finished
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr
        if comm.get_world_size() > 1:
            names = dict(self.model.named_buffers())
            keys = [names[name] for name in names if name.startswith("dictionary.")]
            check_agreement(
                {
                    "the first iteration": finished,
                    "the values of the weights": fingerprint(self.model.parameters()),
                    "the content of the dictionary": fingerprint(keys),
                }
            )
        self._log_effective_settings()

    def _check_length(self, finished: int) -> None:
        """Refuse settings for a training that is over: they would change nothing but config.yaml.

        A run that is shortened to what it has trained gets its final checkpoint.
        """
        if finished > self.max_iter:
            raise UserError(
                f"the checkpoint has {finished} iterations, and this training has "
                f"{self.max_iter}: raise MOCO.EPOCHS (or SOLVER.MAX_ITER), or begin a shorter "
                "training in another OUTPUT_DIR"
            )
        new = [c for c in self.checkpointer.changes if c.iteration == finished]
        idle = [c for c in new if c.key not in ("MOCO.EPOCHS", "SOLVER.MAX_ITER")]
        if finished == self.max_iter and idle:
            raise UserError(
                f"nothing is left to train, so {idle[0]}, has no effect: set it back, lengthen the "
                "training, or choose another OUTPUT_DIR"
            )

    def train(self) -> None:
        """Train from the start iteration to the end.

        Raises:
            UserError: If too many images cannot be decoded, or the loss is not finite.
            Stopped: If a signal has ended the run. The state is saved then.
        """
        self.parallel_model.train()
        self.checkpointer.restore_generators()
        with contextlib.closing(self.data.batches(self.start_iter)) as batches:
            self._batches: Iterator[Batch] = batches
            if self.is_compiled and self.start_iter < self.max_iter:
                self._warm_up()
            super().train(self.start_iter, self.max_iter)

    def _warm_up(self) -> None:
        """Compile with the first batch, which the first step gets again."""
        self.iter = self.start_iter
        first = next(self._batches)
        self._batches = itertools.chain([first], self._batches)
        images = {name: value for name, value in first.items() if name != "unreadable"}
        with warming_up(self.model, self.optimizer), fastest_convolutions():
            self._backward(self._on_device(images))

    def run_step(self) -> None:
        """Take one training step (paper Algorithm 1)."""
        start = time.perf_counter()
        batch = self._next_batch()
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad(set_to_none=True)
        with fastest_convolutions():
            outputs = self._backward(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.finish_step()
        self._record(outputs, data_time)

    def _backward(self, batch: Batch) -> list[dict[str, torch.Tensor]]:
        """Compute the gradients in MOCO.ACCUMULATION passes, and return the outputs of each."""
        passes = self.cfg.MOCO.ACCUMULATION
        if passes > 1 and isinstance(self.model, MoCoV3):
            output = backward_in_parts(
                self.model,
                self.parallel_model,
                batch,
                passes,
                autocast=self._autocast,
                scale=self.scaler.scale,
            )
            return [output]
        outputs = []
        for micro_batch, synchronization in micro_batches(self.parallel_model, batch, passes):
            with synchronization:
                with self._autocast():
                    outputs.append(self.parallel_model(micro_batch))
                self.scaler.scale(total_loss(outputs[-1]) / passes).backward()
        return outputs

    def _next_batch(self) -> Batch:
        """Return the next batch, on the device."""
        batch = next(self._batches)
        self.unreadable.add(batch.pop("unreadable"), seen=self.data.local_batch_size)
        return self._on_device(batch)

    def _on_device(self, batch: Batch) -> Batch:
        """Return a batch with complete views, on the device."""
        moved = {
            name: value.to(self.device, non_blocking=True, memory_format=self.layout)
            if value.dim() == 4
            else value.to(self.device, non_blocking=True)
            for name, value in batch.items()
        }
        return self.data.views(moved, self.iter)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        enabled = self.amp_dtype is not None
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled)

    def _record(self, outputs: list[dict[str, torch.Tensor]], data_time: float) -> None:
        """Put the mean metrics of all processes into the storage.

        Raises:
            UserError: If the loss is not finite.
        """
        metrics = {
            name: sum(o[name].detach() for o in outputs) / len(outputs) for name in outputs[0]
        }
        done = self.iter + 1
        self.step_metrics.add(
            exchange_step(metrics, data_time, self.stop, self.saver, self.device),
            needed=done == self.max_iter or any(done % p == 0 for p in self.periods),
        )

    def after_train(self) -> None:
        if self.start_iter == self.max_iter:
            logger.info("nothing is left to train")
            final = self.checkpointer.folder / FINAL_CHECKPOINT
            if not decided_by_main(final.is_file):
                self.iter = self.max_iter - 1
                self.saver.save_now()
                self.iter = self.max_iter
        # TrainerBase counts one iteration too many if no step was left to train.
        self.iter = min(self.iter, self.max_iter)
        not_finite = self._last_metrics()
        super().after_train()
        if not_finite:
            raise not_finite

    def _last_metrics(self) -> UserError | None:
        """Read the last step of a run that an error has ended, and return the likely reason."""
        if comm.get_world_size() > 1:
            return None  # the processes would wait for one another
        try:
            self.step_metrics.flush()
        except UserError as error:
            return error
        except RuntimeError:  # the device has failed, which the first error says
            return None
        return None

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return (self.iter + 1) // self.data.iterations_per_epoch

    def _log_effective_settings(self) -> None:
        logger.info(
            "%d images; %d images per step on %d process(es), %d steps per epoch, %d steps in "
            "total, starting at step %d; %s schedule",
            self.data.num_images,
            self.cfg.SOLVER.IMS_PER_BATCH,
            comm.get_world_size(),
            self.data.iterations_per_epoch,
            self.max_iter,
            self.start_iter,
            self.cfg.MOCO.LR_SCHEDULE,
        )
        for line in self.scaling["lines"]:
            logger.info("%s", line)
