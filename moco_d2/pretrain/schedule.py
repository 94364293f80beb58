"""The recipe on the hardware and the dataset at hand, and its learning rate over time: set once an
epoch in the official code, by steps (v1) or half a cosine (v2).
"""

import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)

from moco_d2.errors import UserError

PAPER_DICTIONARY_SIZE = 65536
PAPER_BN_GROUP = 32  # images whose BatchNorm statistics are their own: 256 over 8 GPUs
# The authors' CIFAR demo holds 4096 keys of 50,000 images.
_DICTIONARY_SHARE = 4096 / 50_000
# Beyond this batch, users found the linear rule alone to lose accuracy.
_WARMUP_ADVISED_ABOVE = 512


class OncePerEpoch(ParamScheduler):
    """A schedule held constant within each of `epochs` equal parts of training, at the value of the
    part's start.
    """

    def __init__(self, schedule: ParamScheduler, epochs: int):
        self.schedule = schedule
        self.epochs = epochs

    def __call__(self, where: float) -> float:
        # The small term keeps 3 / 10 * 10 from falling into the epoch before.
        return self.schedule(math.floor(where * self.epochs + 1e-6) / self.epochs)


class StepEvery(ParamScheduler):
    """1, times `gamma` after every `every` of `length` iterations; to the iteration, where fvcore's
    schedulers round progress to 1e-6 (IG-1B has 1.25 M iterations).
    """

    def __init__(self, gamma: float, every: int, length: int):
        self.gamma = gamma
        self.every = every
        self.length = length

    def __call__(self, where: float) -> float:
        return self.gamma ** (round(where * self.length) // self.every)


def training_length(cfg: CfgNode, iterations_per_epoch: int) -> int:
    """Number of iterations: MOCO.EPOCHS epochs, or SOLVER.MAX_ITER where that is 0.

    Raises:
        UserError: that is none.
    """
    if cfg.MOCO.EPOCHS > 0:
        return cfg.MOCO.EPOCHS * iterations_per_epoch
    if cfg.SOLVER.MAX_ITER < 1:
        raise UserError(
            f"nothing to train: MOCO.EPOCHS is {cfg.MOCO.EPOCHS} and SOLVER.MAX_ITER "
            f"{cfg.SOLVER.MAX_ITER}; set one of them"
        )
    return cfg.SOLVER.MAX_ITER


def build_schedule(cfg: CfgNode, iterations_per_epoch: int) -> ParamScheduler:
    """Factor on SOLVER.BASE_LR as a function of progress in [0, 1].

    The steps and the cosine of a length in epochs change once an epoch, as in the official code;
    those of a length in iterations (MOCO.EPOCHS 0) at every iteration, with MOCO.LR_STEPS still in
    epochs. "step_every" and the warm-up count iterations in both.

    Raises:
        UserError: MOCO.LR_STEP_EVERY is missing, or the warm-up is as long as training.
        KeyError: MOCO.LR_SCHEDULE is not one of SCHEDULES.
    """
    length = training_length(cfg, iterations_per_epoch)
    schedule = SCHEDULES[cfg.MOCO.LR_SCHEDULE](cfg, iterations_per_epoch, length)
    if cfg.MOCO.EPOCHS > 0 and cfg.MOCO.LR_SCHEDULE != "step_every":
        schedule = OncePerEpoch(schedule, cfg.MOCO.EPOCHS)
    if cfg.MOCO.WARMUP_EPOCHS <= 0:
        return schedule
    warmup = cfg.MOCO.WARMUP_EPOCHS * iterations_per_epoch / length
    if warmup >= 1:
        raise UserError(
            f"MOCO.WARMUP_EPOCHS {cfg.MOCO.WARMUP_EPOCHS:g} is all of the training: set fewer, or 0"
        )
    return WarmupParamScheduler(schedule, cfg.SOLVER.WARMUP_FACTOR, warmup)


def _step(cfg: CfgNode, iterations_per_epoch: int, length: int) -> ParamScheduler:
    steps = cfg.MOCO.LR_STEPS
    # In iterations, because the length need not be a whole number of epochs.
    milestones = [s * iterations_per_epoch for s in steps if s * iterations_per_epoch < length]
    return MultiStepParamScheduler(
        [cfg.SOLVER.GAMMA**i for i in range(len(milestones) + 1)],
        num_updates=length,
        milestones=milestones,
    )


def _step_every(cfg: CfgNode, iterations_per_epoch: int, length: int) -> ParamScheduler:
    every = cfg.MOCO.LR_STEP_EVERY
    if every < 1:
        raise UserError(
            "MOCO.LR_SCHEDULE step_every needs MOCO.LR_STEP_EVERY, the iterations between two "
            f"decays; it is {every}"
        )
    return StepEvery(cfg.SOLVER.GAMMA, every, length)


def _cosine(cfg: CfgNode, iterations_per_epoch: int, length: int) -> ParamScheduler:
    return CosineParamScheduler(1.0, 0.0)


#: The schedules by their names in MOCO.LR_SCHEDULE.
SCHEDULES = {"step": _step, "step_every": _step_every, "cosine": _cosine}


def scale_recipe(cfg: CfgNode, *, world_size: int, num_images: int) -> tuple[Any, dict[str, Any]]:
    """The config as it will run on `world_size` processes and `num_images`, and its description.

    With B = SOLVER.IMS_PER_BATCH and R = MOCO.REFERENCE_BATCH, SOLVER.BASE_LR becomes B / R of
    itself (linear rule of the official README), and SOLVER.MAX_ITER (where MOCO.EPOCHS is 0),
    SOLVER.CHECKPOINT_PERIOD, MOCO.LR_STEP_EVERY and MOCO.KNN.PERIOD become R / B of themselves, so
    that they stand for the same number of images. With R = 0 these are left alone. A
    MOCO.DICTIONARY.SIZE and a MOCO.BN_SPLITS of 0 are replaced by numbers; MOCO.KNN.EPOCHS becomes
    a KNN.PERIOD. The result has R = 0 and KNN.EPOCHS 0: scaled again, it stays as it is.

    Args:
        cfg: with ``cfg.MOCO``.
        world_size: processes, among which a step's images are divided.
        num_images: of the dataset.

    Returns:
        a new config, frozen as the given one is, and ``{"lines": sentences for the log,
        "reference_batch", "total_batch", "world_size", "num_images", "base_lr", "max_iter" (None
        where MOCO.EPOCHS counts), "checkpoint_period", "knn_period", "lr_step_every",
        "dictionary_size", "bn_splits"}``, of JSON types.
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
    """Rate and iterations from the reference batch to the batch, in place; returns sentences."""
    solver, moco = cfg.SOLVER, cfg.MOCO
    batch, reference = solver.IMS_PER_BATCH, moco.REFERENCE_BATCH
    moco.REFERENCE_BATCH = 0
    share = f"{batch} images a step, {batch // world_size} on each of {world_size} process(es)"
    if reference == 0:
        return [f"{share}; lr {solver.BASE_LR:g} as given, MOCO.REFERENCE_BATCH is 0"]
    if batch == reference:
        return [f"{share}; lr {solver.BASE_LR:g}, the recipe's own batch"]
    of_the_recipe = solver.BASE_LR
    # Multiplied first: 0.03 * 128 / 256 is 0.015 to the last bit.
    solver.BASE_LR = of_the_recipe * batch / reference
    lines = [
        f"{share}; lr {of_the_recipe:g} at the recipe's batch of {reference} -> "
        f"{solver.BASE_LR:g} (linear rule; MOCO.REFERENCE_BATCH 0 takes SOLVER.BASE_LR and all "
        "iterations as given)"
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
            f"a batch of {batch} is beyond what the paper trained this recipe with: a warm-up is "
            "advised (MOCO.WARMUP_EPOCHS, 0 now)"
        )
    return lines


def _dotted(cfg: CfgNode, node: Any, key: str) -> str:
    return {id(cfg.SOLVER): "SOLVER", id(cfg.MOCO): "MOCO"}.get(id(node), "MOCO.KNN") + f".{key}"


def _choose_dictionary_size(cfg: CfgNode, num_images: int) -> list[str]:
    """Replace a MOCO.DICTIONARY.SIZE of 0, in place; returns sentences."""
    moco = cfg.MOCO
    if moco.DICTIONARY.SIZE > 0 or moco.PRETEXT != "moco" or moco.DICTIONARY.NAME == "EndToEnd":
        return []
    batch = cfg.SOLVER.IMS_PER_BATCH
    wanted = int(num_images * _DICTIONARY_SHARE)
    if wanted >= PAPER_DICTIONARY_SIZE:
        moco.DICTIONARY.SIZE = PAPER_DICTIONARY_SIZE
        return [f"MOCO.DICTIONARY.SIZE 0 -> {PAPER_DICTIONARY_SIZE} keys, the paper's"]
    moco.DICTIONARY.SIZE = max(batch, wanted // batch * batch)
    lines = [
        f"MOCO.DICTIONARY.SIZE 0 -> {moco.DICTIONARY.SIZE} keys: {num_images} images are too few "
        f"for the paper's {PAPER_DICTIONARY_SIZE}, so at most the share of them that the authors' "
        f"CIFAR demo holds (4096 of 50000), in whole batches but not less than one"
    ]
    if moco.MONITOR.EXPECTED_LOSS:
        moco.MONITOR.EXPECTED_LOSS = ()
        lines.append(
            "MOCO.MONITOR.EXPECTED_LOSS is not used: it is that of the paper's dictionary size"
        )
    return lines


def _choose_bn_splits(cfg: CfgNode, world_size: int) -> list[str]:
    """Replace a MOCO.BN_SPLITS of 0, in place; returns sentences."""
    moco = cfg.MOCO
    if moco.BN_SPLITS > 0:
        return []
    if world_size > 1 or moco.PRETEXT != "moco":
        moco.BN_SPLITS = 1
        return []
    batch = cfg.SOLVER.IMS_PER_BATCH // max(moco.ACCUMULATION, 1)  # what is encoded at a time
    # Two groups or more, or nothing is shuffled; two images or more in each, or there are no
    # statistics. Of those that divide the batch, the one nearest to the paper's group.
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
        f"{batch // moco.BN_SPLITS} images (the paper: {PAPER_BN_GROUP})"
    ]
