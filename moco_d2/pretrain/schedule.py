"""Adapt a recipe to the hardware and the dataset, and give its learning rate over time.

The official code sets the learning rate once per epoch, by steps (v1) or half a cosine (v2), or in
every iteration (v3).
"""

import logging
import math
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)

from moco_d2.errors import UserError

logger = logging.getLogger(__name__)

PAPER_DICTIONARY_SIZE = 65536
PAPER_BN_GROUP = 32  # images with common BatchNorm statistics: 256 images on 8 GPUs
# Keys per image: the authors' CIFAR demo has 4096 keys for 50,000 images.
_DICTIONARY_FRACTION = 4096 / 50_000
# For larger batches, users report a loss of accuracy with the linear rule alone.
_WARMUP_ADVISED_ABOVE = 512


class OncePerEpoch(ParamScheduler):
    """A schedule that is constant within each of `epochs` equal parts of training.

    Each part has the value of its start.
    """

    def __init__(self, schedule: ParamScheduler, epochs: int):
        self.schedule = schedule
        self.epochs = epochs

    def __call__(self, where: float) -> float:
        # The small term keeps 3 / 10 * 10 from being rounded down to the previous epoch.
        return self.schedule(math.floor(where * self.epochs + 1e-6) / self.epochs)


class StepEvery(ParamScheduler):
    """The factor 1, multiplied by `gamma` after every `every` of `length` iterations.

    It is exact to the iteration. fvcore's schedulers round progress to 1e-6, too coarse for the
    1.25 M iterations of IG-1B.
    """

    def __init__(self, gamma: float, every: int, length: int):
        self.gamma = gamma
        self.every = every
        self.length = length

    def __call__(self, where: float) -> float:
        return self.gamma ** (round(where * self.length) // self.every)


class CosineAfterWarmup(ParamScheduler):
    """A linear rise from `start` to 1, and then half a period of the cosine down to 0.

    This is adjust_learning_rate in the official main_moco.py of MoCo v3, where `start` is 0.
    """

    def __init__(self, start: float, warmup: float):
        """
        Args:
            start: The first factor.
            warmup: The fraction of the training that the rise takes, in [0, 1).
        """
        self.start = start
        self.warmup = warmup

    def __call__(self, where: float) -> float:
        if where < self.warmup:
            return self.start + (1 - self.start) * where / self.warmup
        progress = (where - self.warmup) / (1 - self.warmup)
        return (1 + math.cos(math.pi * progress)) / 2


def warn_of_unused_steps(cfg: CfgNode) -> None:
    """Log it if SOLVER.MAX_ITER is set beside MOCO.EPOCHS, which counts alone."""
    if cfg.MOCO.EPOCHS > 0 and cfg.SOLVER.MAX_ITER != get_cfg().SOLVER.MAX_ITER:
        logger.warning(
            "SOLVER.MAX_ITER %d is not used, because MOCO.EPOCHS is %d: set that to 0",
            *(cfg.SOLVER.MAX_ITER, cfg.MOCO.EPOCHS),
        )


def training_length(cfg: CfgNode, iterations_per_epoch: int) -> int:
    """Return the number of iterations: MOCO.EPOCHS epochs, or SOLVER.MAX_ITER if that is 0.

    Raises:
        UserError: If the number is 0.
    """
    if cfg.MOCO.EPOCHS > 0:
        return cfg.MOCO.EPOCHS * iterations_per_epoch
    if cfg.SOLVER.MAX_ITER < 1:
        raise UserError(
            f"the training has no step: MOCO.EPOCHS is {cfg.MOCO.EPOCHS} and SOLVER.MAX_ITER is "
            f"{cfg.SOLVER.MAX_ITER}; set one of them"
        )
    return cfg.SOLVER.MAX_ITER


def build_schedule(cfg: CfgNode, iterations_per_epoch: int) -> ParamScheduler:
    """Return the factor on SOLVER.BASE_LR as a function of progress in [0, 1].

    If the length is in epochs, "step" and "cosine" change once per epoch, as in the official code.
    If it is in iterations (MOCO.EPOCHS 0), they change in every iteration, and MOCO.LR_STEPS is
    still in epochs. "step_every", "cosine_after_warmup" and the warm-up always count iterations.

    Raises:
        UserError: If MOCO.LR_STEP_EVERY is missing, or the training ends before the warm-up or
            before the last of MOCO.LR_STEPS.
        KeyError: If MOCO.LR_SCHEDULE is not one of SCHEDULES.
    """
    length = training_length(cfg, iterations_per_epoch)
    schedule = SCHEDULES[cfg.MOCO.LR_SCHEDULE](cfg, iterations_per_epoch, length)
    if cfg.MOCO.EPOCHS > 0 and cfg.MOCO.LR_SCHEDULE in ("step", "cosine"):
        schedule = OncePerEpoch(schedule, cfg.MOCO.EPOCHS)
    if cfg.MOCO.WARMUP_EPOCHS <= 0:
        return schedule
    warmup = _warmup(cfg, iterations_per_epoch, length)
    if warmup >= 1:
        raise UserError(
            f"MOCO.WARMUP_EPOCHS {cfg.MOCO.WARMUP_EPOCHS:g} covers the whole training: set fewer, "
            "or 0"
        )
    if isinstance(schedule, CosineAfterWarmup):
        return schedule
    return WarmupParamScheduler(schedule, cfg.SOLVER.WARMUP_FACTOR, warmup)


def _step(cfg: CfgNode, iterations_per_epoch: int, length: int) -> ParamScheduler:
    # Milestones are in iterations, because the length need not be a whole number of epochs.
    milestones = [step * iterations_per_epoch for step in cfg.MOCO.LR_STEPS]
    if milestones and milestones[-1] >= length:
        epochs = length / iterations_per_epoch
        raise UserError(
            f"MOCO.LR_STEPS {tuple(cfg.MOCO.LR_STEPS)} is not over when the training ends after "
            f"{epochs:g} epochs, so it would not lower the learning rate as the recipe does: set "
            f"MOCO.LR_STEPS to epochs below {epochs:g}, or to () to keep the rate"
        )
    return MultiStepParamScheduler(
        [cfg.SOLVER.GAMMA**i for i in range(len(milestones) + 1)],
        num_updates=length,
        milestones=milestones,
    )


def _step_every(cfg: CfgNode, iterations_per_epoch: int, length: int) -> ParamScheduler:
    every = cfg.MOCO.LR_STEP_EVERY
    if every < 1:
        raise UserError(
            f"MOCO.LR_STEP_EVERY is {every}, but MOCO.LR_SCHEDULE step_every needs it: set it to "
            "the number of iterations between two decays"
        )
    return StepEvery(cfg.SOLVER.GAMMA, every, length)


def _cosine(cfg: CfgNode, iterations_per_epoch: int, length: int) -> ParamScheduler:
    return CosineParamScheduler(1.0, 0.0)


def _cosine_after_warmup(cfg: CfgNode, iterations_per_epoch: int, length: int) -> ParamScheduler:
    return CosineAfterWarmup(cfg.SOLVER.WARMUP_FACTOR, _warmup(cfg, iterations_per_epoch, length))


def _warmup(cfg: CfgNode, iterations_per_epoch: int, length: int) -> float:
    """Return the fraction of the training that the warm-up takes."""
    return cfg.MOCO.WARMUP_EPOCHS * iterations_per_epoch / length


#: Name in MOCO.LR_SCHEDULE -> the function that builds the schedule.
SCHEDULES = {
    "step": _step,
    "step_every": _step_every,
    "cosine": _cosine,
    "cosine_after_warmup": _cosine_after_warmup,
}


def scale_recipe(cfg: CfgNode, *, world_size: int, num_images: int) -> tuple[Any, dict[str, Any]]:
    """Scale a config to the batch, the number of processes and the dataset.

    With B = SOLVER.IMS_PER_BATCH and R = MOCO.REFERENCE_BATCH, SOLVER.BASE_LR is multiplied by
    B / R (linear rule of the official README). SOLVER.MAX_ITER (if MOCO.EPOCHS is 0),
    SOLVER.CHECKPOINT_PERIOD, MOCO.LR_STEP_EVERY and MOCO.KNN.PERIOD are multiplied by R / B, so
    they cover the same number of images. With R = 0, all of these stay. A MOCO.DICTIONARY.SIZE or
    MOCO.BN_SPLITS of 0 is replaced by a number, and MOCO.KNN.EPOCHS by a KNN.PERIOD. The result has
    R = 0 and KNN.EPOCHS 0, so scaling it again changes nothing.

    Args:
        cfg: A config with ``cfg.MOCO``.
        world_size: Number of processes.
        num_images: Number of images in the dataset.

    Returns:
        A new config, frozen if `cfg` is, and its description of JSON types: ``{"lines": sentences
        for the log, "reference_batch", "total_batch", "world_size", "num_images", "base_lr",
        "max_iter" (None if MOCO.EPOCHS gives the length), "checkpoint_period", "knn_period",
        "lr_step_every", "dictionary_size", "bn_splits"}``.
    """
    scaled = cfg.clone()
    scaled.defrost()
    solver, moco = scaled.SOLVER, scaled.MOCO
    lines = _scale_by_batch(scaled, world_size)
    if moco.KNN.EPOCHS > 0:
        moco.KNN.PERIOD = max(1, moco.KNN.EPOCHS * (num_images // solver.IMS_PER_BATCH))
        moco.KNN.EPOCHS = 0
    lines += _choose_dictionary_size(scaled, num_images)
    lines += _choose_bn_splits(scaled, world_size)
    if cfg.is_frozen():
        scaled.freeze()
    return scaled, {
        "lines": lines,
        "reference_batch": cfg.MOCO.REFERENCE_BATCH,
        "total_batch": solver.IMS_PER_BATCH,
        "world_size": world_size,
        "num_images": num_images,
        "base_lr": solver.BASE_LR,
        "max_iter": None if moco.EPOCHS > 0 else solver.MAX_ITER,
        "checkpoint_period": solver.CHECKPOINT_PERIOD,
        "knn_period": moco.KNN.PERIOD,
        "lr_step_every": moco.LR_STEP_EVERY,
        "dictionary_size": moco.DICTIONARY.SIZE,
        "bn_splits": moco.BN_SPLITS,
    }


def _scale_by_batch(cfg: CfgNode, world_size: int) -> list[str]:
    """Scale learning rate and iterations to the batch, in place, and return sentences."""
    solver, moco = cfg.SOLVER, cfg.MOCO
    batch, reference = solver.IMS_PER_BATCH, moco.REFERENCE_BATCH
    moco.REFERENCE_BATCH = 0
    images = f"{batch} images per step, {batch // world_size} on each of {world_size} process(es)"
    if reference == 0:
        return [f"{images}; lr {solver.BASE_LR:g} is not scaled, MOCO.REFERENCE_BATCH is 0"]
    if batch == reference:
        return [f"{images}; lr {solver.BASE_LR:g} is not scaled, the batch is the recipe's"]
    of_the_recipe = solver.BASE_LR
    # With the multiplication first, 0.03 * 128 / 256 is exactly 0.015.
    solver.BASE_LR = of_the_recipe * batch / reference
    lines = [
        f"{images}; lr {of_the_recipe:g} at the recipe's batch of {reference} -> "
        f"{solver.BASE_LR:g} (linear rule; MOCO.REFERENCE_BATCH 0 keeps lr and iterations)"
    ]
    changes = []
    nodes = [(solver, "CHECKPOINT_PERIOD"), (moco, "LR_STEP_EVERY"), (moco.KNN, "PERIOD")]
    if moco.EPOCHS <= 0:
        nodes.insert(0, (solver, "MAX_ITER"))
    for node, key in nodes:
        if node[key] > 0:
            before, node[key] = node[key], max(1, round(node[key] * reference / batch))
            changes.append(f"{_dotted(cfg, node, key)} {before} -> {node[key]}")
    if changes:
        lines.append(f"for the same number of images: {', '.join(changes)} iterations")
    if batch > max(reference, _WARMUP_ADVISED_ABOVE) and moco.WARMUP_EPOCHS <= 0:
        lines.append(
            f"the batch of {batch} is larger than the recipe's: a warm-up is advised "
            "(MOCO.WARMUP_EPOCHS is 0)"
        )
    return lines


def _dotted(cfg: CfgNode, node: Any, key: str) -> str:
    return {id(cfg.SOLVER): "SOLVER", id(cfg.MOCO): "MOCO"}.get(id(node), "MOCO.KNN") + f".{key}"


def _choose_dictionary_size(cfg: CfgNode, num_images: int) -> list[str]:
    """Replace a MOCO.DICTIONARY.SIZE of 0, in place, and return sentences."""
    moco = cfg.MOCO
    if moco.DICTIONARY.SIZE > 0 or moco.PRETEXT != "moco" or moco.DICTIONARY.NAME == "EndToEnd":
        return []
    batch = cfg.SOLVER.IMS_PER_BATCH
    size = int(num_images * _DICTIONARY_FRACTION)
    if size >= PAPER_DICTIONARY_SIZE:
        moco.DICTIONARY.SIZE = PAPER_DICTIONARY_SIZE
        return [f"MOCO.DICTIONARY.SIZE 0 -> {PAPER_DICTIONARY_SIZE} keys, as in the paper"]
    moco.DICTIONARY.SIZE = max(batch, size // batch * batch)
    lines = [
        f"MOCO.DICTIONARY.SIZE 0 -> {moco.DICTIONARY.SIZE} keys: {num_images} images are too few "
        f"for the paper's {PAPER_DICTIONARY_SIZE} keys. The fraction of the authors' CIFAR demo is "
        "used (4096 keys for 50000 images), rounded down to whole batches, at least one batch"
    ]
    if moco.MONITOR.EXPECTED_LOSS:
        moco.MONITOR.EXPECTED_LOSS = ()
        lines.append(
            "MOCO.MONITOR.EXPECTED_LOSS is not used: it holds for the paper's dictionary size"
        )
    return lines


def _choose_bn_splits(cfg: CfgNode, world_size: int) -> list[str]:
    """Replace a MOCO.BN_SPLITS of 0, in place, and return sentences."""
    moco = cfg.MOCO
    if moco.BN_SPLITS > 0:
        return []
    if world_size > 1 or moco.PRETEXT != "moco":
        moco.BN_SPLITS = 1
        return []
    batch = cfg.SOLVER.IMS_PER_BATCH // max(moco.ACCUMULATION, 1)  # of one micro-batch
    # One group cannot be shuffled, and one image has no statistics: take two or more of both.
    groups = [n for n in range(2, batch // 2 + 1) if batch % n == 0]
    if not groups:
        moco.BN_SPLITS = 1
        return [
            f"a batch of {batch} cannot be split into groups of two or more images for BatchNorm: "
            "set an even SOLVER.IMS_PER_BATCH"
        ]
    moco.BN_SPLITS = min(groups, key=lambda n: abs(math.log(batch / n / PAPER_BN_GROUP)))
    return [
        f"MOCO.BN_SPLITS 0 -> {moco.BN_SPLITS}: BatchNorm over groups of "
        f"{batch // moco.BN_SPLITS} images (paper: {PAPER_BN_GROUP})"
    ]
