"""The pretraining loop, on Detectron2's TrainerBase, hooks and storage.

Effects of a run in OUTPUT_DIR: config.yaml, log.txt, metrics.json, TensorBoard events, checkpoints
(checkpointing.py).
"""

import contextlib
import logging
import time
from typing import Any

import torch
from detectron2.engine import HookBase, TrainerBase, default_writers, hooks
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from moco_d2.errors import UserError
from moco_d2.hooks import DeferredWriters, EvaluateAtStart, ProgressBar, StopOnSignal
from moco_d2.pretrain.augmentation import build_augmentation
from moco_d2.pretrain.checkpointing import PretrainCheckpointer, SaveCheckpoint
from moco_d2.pretrain.data import (
    EndlessBatches,
    ImageList,
    Views,
    build_loader,
    list_training_images,
    user_error_of_worker,
)
from moco_d2.pretrain.moco import MoCo
from moco_d2.pretrain.monitor import KNNMonitor
from moco_d2.pretrain.schedule import build_schedule, training_length
from moco_d2.pretrain.supervised import SupervisedClassifier

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations between two lines of metrics.json, as Detectron2's default


class Pretrainer(TrainerBase):
    """Trains MoCo, or its supervised baseline, as a Detectron2 job.

    Examples:
    ::
        trainer = Pretrainer(cfg)
        trainer.resume_or_start(resume=False)
        trainer.train()
    """

    def __init__(self, cfg: Any):
        """
        Args:
            cfg: a config with ``cfg.MOCO``; see configs/pretrain/.

        Raises:
            UserError: data or settings that cannot work; nothing has been written then.
        """
        super().__init__()
        self.cfg = cfg
        self.images = list_training_images(cfg)
        self.views = _build_views(cfg, self.images)
        self.knn = _build_knn_monitor(cfg)
        device = torch.device(cfg.MODEL.DEVICE)
        self.model = build_pretext_model(cfg, self.images).to(device)
        if cfg.MOCO.CHANNELS_LAST:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        )
        self.amp_dtype = _amp_dtype(cfg)
        # float16's smallest number is large enough to lose gradients: scale them. Does nothing
        # where it is not enabled.
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=cfg.SOLVER.AMP.ENABLED and self.amp_dtype == torch.float16
        )
        self.batches = EndlessBatches(
            len(self.images),
            cfg.SOLVER.IMS_PER_BATCH,
            seed=max(cfg.SEED, 0),
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )
        self.max_iter = training_length(cfg, self.batches.iterations_per_epoch)
        self.scheduler = LRMultiplier(
            self.optimizer,
            build_schedule(cfg, self.batches.iterations_per_epoch),
            max_iter=self.max_iter,
        )
        self.checkpointer = PretrainCheckpointer(cfg, self.model, self.optimizer, self.scaler)
        self.parallel_model = _distribute(self.model)
        self.register_hooks(self._build_hooks())

    def _build_hooks(self) -> list[HookBase]:
        built = [hooks.IterationTimer(), hooks.LRScheduler(self.optimizer, self.scheduler)]
        main = comm.is_main_process()
        if main:
            saver = SaveCheckpoint(self.cfg.SOLVER.CHECKPOINT_PERIOD)
            built.append(saver)
            if comm.get_world_size() == 1:
                built.append(StopOnSignal(saver.save_now))
        if self.knn is not None:
            # One process evaluates, and EvalHook makes all of them wait for it.
            evaluate = self._evaluate_knn if main else dict
            built.append(EvaluateAtStart(evaluate))
            built.append(hooks.EvalHook(self.cfg.MOCO.KNN.PERIOD, evaluate))
        if main:
            writers = DeferredWriters(lambda: default_writers(self.cfg.OUTPUT_DIR, self.max_iter))
            built.append(hooks.PeriodicWriter([writers], period=LOG_PERIOD))
            built.append(ProgressBar(f"pretraining ({self.cfg.MOCO.PRETEXT})"))
        return built

    def resume_or_start(self, *, resume: bool) -> None:
        """Continue from OUTPUT_DIR's last checkpoint, or begin."""
        finished = self.checkpointer.resume() if resume else 0
        self.start_iter = self.batches.start_iteration = finished
        # LRMultiplier is a function of the iteration alone; the hook steps it at the end of every
        # iteration.
        self.scheduler.last_epoch = finished
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr
        _log_effective_settings(self)

    def train(self) -> None:
        """Run from the start iteration to the end.

        Raises:
            UserError: an image does not decode, or the loss is no longer finite.
        """
        loader = build_loader(self.views, self.batches, num_workers=self.cfg.DATALOADER.NUM_WORKERS)
        self._batches_iterator = iter(loader)
        self.parallel_model.train()
        try:
            super().train(self.start_iter, self.max_iter)
        except UserError as error:
            raise user_error_of_worker(error) from error
        finally:
            # Now: workers left to the garbage collector take 5 seconds each to end.
            self._batches_iterator = None

    def run_step(self) -> None:
        """One iteration: data, loss, gradients, optimizer, key encoder and dictionary (paper
        Algorithm 1).
        """
        start = time.perf_counter()
        batch = self._to_device(next(self._batches_iterator))
        data_time = time.perf_counter() - start
        with self._autocast():
            outputs = self.parallel_model(batch)
        loss = sum(value for name, value in outputs.items() if name.startswith("loss"))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.finish_step()
        self._record(outputs, data_time)

    def _to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        layout = torch.channels_last if self.cfg.MOCO.CHANNELS_LAST else torch.contiguous_format
        device = self.cfg.MODEL.DEVICE
        return {
            name: value.to(device, non_blocking=True, memory_format=layout)
            if value.dim() == 4
            else value.to(device, non_blocking=True)
            for name, value in batch.items()
        }

    def _autocast(self) -> contextlib.AbstractContextManager:
        if not self.cfg.SOLVER.AMP.ENABLED:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.cfg.MODEL.DEVICE).type, dtype=self.amp_dtype)

    def _record(self, outputs: dict[str, torch.Tensor], data_time: float) -> None:
        """Put metrics into the storage; stop at a loss that is not finite."""
        metrics = {name: value.item() for name, value in outputs.items()}
        loss = sum(value for name, value in metrics.items() if name.startswith("loss"))
        if not torch.isfinite(torch.tensor(loss)):
            raise UserError(
                f"the loss is {loss} at iteration {self.iter}: lower SOLVER.BASE_LR (now "
                f"{self.cfg.SOLVER.BASE_LR}) and start again with --resume from the last checkpoint"
            )
        storage = get_event_storage()
        storage.put_scalars(total_loss=loss, data_time=data_time, **metrics)

    def _evaluate_knn(self) -> dict[str, float]:
        network = self.model.encoder_q if self.cfg.MOCO.PRETEXT == "moco" else self.model.encoder
        accuracy = self.knn(network)
        logger.info("kNN accuracy: %.4f", accuracy)
        return {"knn_accuracy": accuracy}

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return (self.iter + 1) // self.batches.iterations_per_epoch


def _build_views(cfg: Any, images: ImageList) -> Views:
    augmentation = cfg.MOCO.AUGMENTATION
    transform = build_augmentation(
        augmentation.NAME,
        size=augmentation.SIZE,
        crop_scale=augmentation.CROP_SCALE,
        blur_sigma=augmentation.BLUR_SIGMA,
    )
    names = ("query", "key") if cfg.MOCO.PRETEXT == "moco" else ("query",)
    return Views(images, transform, names=names, seed=max(cfg.SEED, 0))


def _amp_dtype(cfg: Any) -> torch.dtype:
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if cfg.MOCO.AMP_DTYPE not in dtypes:
        raise UserError(f"MOCO.AMP_DTYPE {cfg.MOCO.AMP_DTYPE!r} is neither bfloat16 nor float16")
    return dtypes[cfg.MOCO.AMP_DTYPE]


def build_pretext_model(cfg: Any, images: ImageList) -> nn.Module:
    """MoCo or its supervised baseline, as MOCO.PRETEXT says.

    Raises:
        UserError: MOCO.PRETEXT is neither.
    """
    if cfg.MOCO.PRETEXT == "moco":
        share = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        if cfg.MOCO.BN_SPLITS < 1 or share % cfg.MOCO.BN_SPLITS:
            raise UserError(
                f"MOCO.BN_SPLITS {cfg.MOCO.BN_SPLITS} does not divide the {share} images a "
                "process has in a step"
            )
        model = MoCo.from_config(cfg, num_images=len(images))
        if model.may_leak:
            logger.warning(
                "BatchNorm has one group, so it can give the positive key away (paper section "
                "3.3): set MOCO.BN_SPLITS 8 on one device"
            )
        if len(images) < cfg.MOCO.DICTIONARY.SIZE:
            logger.warning(
                "the dictionary (%d keys) is larger than the dataset (%d images), so a query's "
                "own image is among its negatives: set MOCO.DICTIONARY.SIZE below %d",
                cfg.MOCO.DICTIONARY.SIZE,
                len(images),
                len(images),
            )
        return model
    if cfg.MOCO.PRETEXT == "supervised":
        return SupervisedClassifier.from_config(cfg, num_classes=len(images.classes))
    raise UserError(f"MOCO.PRETEXT {cfg.MOCO.PRETEXT!r} is neither moco nor supervised")


def _build_knn_monitor(cfg: Any) -> KNNMonitor | None:
    knn = cfg.MOCO.KNN
    if not knn.TRAIN and not knn.TEST:
        return None
    return KNNMonitor(
        knn.TRAIN,
        knn.TEST,
        size=cfg.MOCO.AUGMENTATION.SIZE,
        neighbours=knn.NEIGHBOURS,
        temperature=knn.TEMPERATURE,
    )


def _distribute(model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # All begin with rank 0's queue: every process has a seed of its own, and without
    # broadcast_buffers the wrapper copies parameters only.
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)
    # From then on buffers stay where they are: every process updates its queue with the same
    # gathered keys, and BatchNorm statistics are meant to differ (the official code broadcasts the
    # queue, 33.6 MB, in every step).
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
    )


def _log_effective_settings(trainer: Pretrainer) -> None:
    cfg = trainer.cfg
    per_epoch = trainer.batches.iterations_per_epoch
    logger.info(
        "%d images, %d a step on %d process(es), %d steps an epoch, %d steps in all from step "
        "%d; lr %g, %s schedule",
        len(trainer.images),
        cfg.SOLVER.IMS_PER_BATCH,
        comm.get_world_size(),
        per_epoch,
        trainer.max_iter,
        trainer.start_iter,
        cfg.SOLVER.BASE_LR,
        cfg.MOCO.LR_SCHEDULE,
    )
