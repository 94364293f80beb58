"""Checks of the config for settings that would silently make a result wrong; dataset_checks.py
checks the data, and weight_checks.py the weights.

Each finding names the key, its value and the fix. ``--force`` turns findings into warnings. The run
record lists them, and tables mark the run.
"""

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moco_d2.config.load import config_root, reference_config
from moco_d2.config.plain import flatten, to_plain
from moco_d2.resnet import BASIC_BUILDERS, STEM_WIDTH, own_builder
from moco_d2.transfer.norms import SYNCED_NORMS, VIT_NORM, backbone_norm, has_vit, normed_keys
from moco_d2.transfer.preflight.findings import Finding, Refusal
from moco_d2.transfer.preflight.memory import HOW, training_bytes
from moco_d2.transfer.preflight.weight_checks import check_provenance
from moco_d2.transfer.weights import RANDOM

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

_ROUNDING = 0.002  # relative tolerance: steps and rates are rounded when they are scaled
# Keys that depend on the machine (hardware_scaling.py) or on the weights (weight_checks.py), or
# that other findings check.
_OF_HARDWARE_OR_WEIGHTS = (
    "DATALOADER.NUM_WORKERS",
    "INPUT.FORMAT",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.DEVICE",
    "MODEL.PIXEL_",
    "MODEL.RESNETS.",
    "MODEL.WEIGHTS",
    "MOCO.VIT.CHECKPOINT_BLOCKS",
    "MOCO.VIT.HEADS",
    "MOCO.VIT.PRETRAIN_",
    "SOLVER.AMP.",
    "SOLVER.BASE_LR",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "TEST.EVAL_PERIOD",
)


def check_config(
    cfg: "CfgNode", provenance: dict[str, Any] | None, *, world_size: int
) -> list[Finding]:
    """Return the findings about norms, seed and weights.

    Args:
        cfg: The config as it will run.
        provenance: The converter's report inside the weight file, if it has one.
        world_size: Number of processes.
    """
    return [
        *_frozen(cfg),
        *_layer_decay(cfg),
        *_square(cfg),
        *_basic_width(cfg),
        *_norms(cfg, world_size),
        *_seed(cfg),
        *check_provenance(cfg, provenance),
    ]


def check_name(cfg: "CfgNode", config_file: str) -> list[Finding]:
    """Return a finding if a run without weights has the name of pretrained ones, by which tables
    would call it.
    """
    name = config_file.removesuffix(".yaml").removeprefix(f"{cfg.MOCO.TASK}_")
    packaged = config_root() / "init" / f"{name}.yaml"
    if cfg.MODEL.WEIGHTS != RANDOM or name.startswith("random") or not packaged.is_file():
        return []
    return [
        Finding(
            "MODEL.WEIGHTS",
            RANDOM,
            f"tables would call this run {name}; run {cfg.MOCO.TASK}_random.yaml, or set "
            "MODEL.WEIGHTS to pretrained weights",
        )
    ]


def _frozen(cfg: "CfgNode") -> Iterator[Finding]:
    key, stages = "MODEL.BACKBONE.FREEZE_AT", cfg.MODEL.BACKBONE.FREEZE_AT
    task = reference_config(cfg.MOCO.TASK)
    expected = 0 if task is None else task.MODEL.BACKBONE.FREEZE_AT
    if stages > 0 and not expected:
        yield Finding(
            key,
            str(stages),
            "it freezes the first stages and their BatchNorm, but the paper's protocol tunes "
            "them; set it to 0",
        )
    elif stages != expected:
        yield Finding(key, str(stages), f"the task {cfg.MOCO.TASK} has {expected}; do not set it")
    elif stages > 0 and cfg.MODEL.WEIGHTS == RANDOM:
        yield Finding(
            key,
            str(stages),
            "frozen random weights have BatchNorm with mean 0 and variance 1, which does not "
            "normalize; run pretrained weights, or the task without _frozen",
        )


def _layer_decay(cfg: "CfgNode") -> Iterator[Finding]:
    decay = cfg.MOCO.VIT.LAYER_DECAY
    if decay < 1 and not (has_vit(cfg) and cfg.MOCO.OPTIMIZER == "AdamW"):
        yield Finding(
            "MOCO.VIT.LAYER_DECAY",
            str(decay),
            "it reaches no layer, because it needs MOCO.OPTIMIZER AdamW and MODEL.BACKBONE.NAME "
            "build_vit_simple_fpn_backbone; set it to 1.0, or run a task coco_vitdet_...",
        )


def _basic_width(cfg: "CfgNode") -> Iterator[Finding]:
    resnets = cfg.MODEL.RESNETS
    own = own_builder(cfg.MODEL.BACKBONE.NAME, resnets.DEPTH, resnets.RES2_OUT_CHANNELS)
    if own:
        yield Refusal(
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            str(resnets.RES2_OUT_CHANNELS),
            f"Detectron2's builder has ResNet-18 and 34 with {STEM_WIDTH} only; set it to that, or "
            f"for weights of another width set MODEL.BACKBONE.NAME {own}",
        )


def _square(cfg: "CfgNode") -> Iterator[Finding]:
    side = cfg.MOCO.VIT.IMAGE_SIZE
    trained = max(cfg.INPUT.CROP.SIZE) if cfg.MOCO.RANDOM_SCALE else cfg.INPUT.MAX_SIZE_TRAIN
    key = "INPUT.CROP.SIZE" if cfg.MOCO.RANDOM_SCALE else "INPUT.MAX_SIZE_TRAIN"
    for of, largest in ((key, trained), ("INPUT.MAX_SIZE_TEST", cfg.INPUT.MAX_SIZE_TEST)):
        if has_vit(cfg) and largest > side:
            yield Finding(
                of,
                f"{largest:g}",
                f"images do not fit into the square of MOCO.VIT.IMAGE_SIZE {side}; set one of them "
                "to the other",
            )


def _norms(cfg: "CfgNode", world_size: int) -> Iterator[Finding]:
    norm = backbone_norm(cfg)
    fpn_norm = cfg.MODEL.FPN.NORM if "fpn" in cfg.MODEL.BACKBONE.NAME else ""
    # No finding for BatchNorm that is frozen everywhere with pretrained statistics: the paper
    # compares with this initialization on LVIS.
    if norm == "FrozenBN" and cfg.MODEL.WEIGHTS == RANDOM:
        yield Finding(
            "MODEL.RESNETS.NORM",
            norm,
            "with random weights its statistics stay at mean 0 and variance 1, so it does not "
            "normalize; set SyncBN",
        )
    elif norm == "FrozenBN" and fpn_norm:
        yield Finding(
            "MODEL.RESNETS.NORM",
            norm,
            f"the paper's protocol tunes BatchNorm, and MODEL.FPN.NORM is {fpn_norm}; set SyncBN, "
            "or set MODEL.FPN.NORM '' to freeze all BatchNorm on purpose",
        )
    if norm not in ("FrozenBN", VIT_NORM) and "fpn" in cfg.MODEL.BACKBONE.NAME and not fpn_norm:
        yield Finding(
            "MODEL.FPN.NORM",
            "empty",
            "without it the run can diverge (facebookresearch/moco issue 23); set SyncBN",
        )
    if world_size > 1:
        return
    for key, value in normed_keys(cfg).items():
        if value in SYNCED_NORMS:
            yield Finding(
                key,
                value,
                "it synchronizes processes, but there is only one (facebookresearch/moco issue "
                "112); set BN",
            )


def _seed(cfg: "CfgNode") -> Iterator[Finding]:
    if cfg.SEED < 0:
        yield Finding(
            "SEED",
            str(cfg.SEED),
            "runs could not be distinguished or repeated, and Detectron2's main gives all of them "
            "the same order of images; set SEED 1, and another number for each repetition",
        )


def check_schedule(cfg: "CfgNode", written: "CfgNode") -> list[Finding]:
    """Return findings for a schedule that differs from the task's, for a run on the task's data, or
    else for one whose parts do not fit together.

    The comparison is independent of the batch: it is over the number of images, the fractions of
    the run at which the rate is lowered, and the rate per image. A user-defined task or dataset has
    no reference.

    Args:
        cfg: The scaled config as it will run.
        written: The config before it was scaled.
    """
    if cfg.SOLVER.MAX_ITER < 1:
        return [
            Refusal(
                "SOLVER.MAX_ITER",
                str(written.SOLVER.MAX_ITER),
                "no step would be trained; raise it, or evaluate with --eval-only",
            )
        ]
    reference = _reference(cfg)
    if reference is None:
        return list(_parts_of_schedule(written.SOLVER))
    run, task = cfg.SOLVER, reference.SOLVER
    scale = task.IMS_PER_BATCH / run.IMS_PER_BATCH
    expected = {
        "SOLVER.MAX_ITER": (run.MAX_ITER, round(task.MAX_ITER * scale)),
        "SOLVER.STEPS": (tuple(run.STEPS), tuple(round(step * scale) for step in task.STEPS)),
        "SOLVER.WARMUP_ITERS": (run.WARMUP_ITERS, round(task.WARMUP_ITERS * scale)),
        "SOLVER.BASE_LR": (run.BASE_LR, float(f"{task.BASE_LR / scale:g}")),
    }
    if cfg.MOCO.TUNED:  # a suite chose it
        del expected["SOLVER.BASE_LR"]
    return [
        Finding(
            key,
            str(value),
            f"the task has {wanted} at {run.IMS_PER_BATCH} images a step "
            f"({key.rpartition('.')[2]} {task[key.rpartition('.')[2]]} at {task.IMS_PER_BATCH}); "
            "do not set it, as SOLVER.REFERENCE_WORLD_SIZE scales it, or set "
            f"SOLVER.REFERENCE_WORLD_SIZE 0 and {key} {wanted}",
        )
        for key, (value, wanted) in expected.items()
        if not _close(value, wanted)
    ]


def _parts_of_schedule(solver: "CfgNode") -> Iterator[Finding]:
    """Return findings for a warm-up or a step that lies beyond the end of the run.

    A user who shortens a run by SOLVER.MAX_ITER alone would otherwise train all of it with a
    fraction of the learning rate. Scaling does not change the order of these iterations.
    """
    end = solver.MAX_ITER
    steps = sorted(solver.STEPS) if "Step" in solver.LR_SCHEDULER_NAME else []
    beyond = [step for step in steps if step >= end]
    if beyond:
        yield Finding(
            "SOLVER.STEPS",
            str(tuple(solver.STEPS)),
            f"SOLVER.MAX_ITER {end} ends the run before it would lower the learning rate at "
            f"{beyond[0]}; set SOLVER.STEPS to iterations below {end}, or to () to keep the rate",
        )
    first = min([step for step in steps if step < end], default=end)
    if first <= solver.WARMUP_ITERS and solver.WARMUP_FACTOR != 1:
        event = "the run ends" if first == end else "the learning rate is lowered"
        yield Finding(
            "SOLVER.WARMUP_ITERS",
            str(solver.WARMUP_ITERS),
            f"{event} at iteration {first}, before the warm-up has reached SOLVER.BASE_LR "
            f"{solver.BASE_LR:g}; set SOLVER.WARMUP_ITERS below {first}",
        )


def check_settings(cfg: "CfgNode") -> list[Finding]:
    """Return findings for settings that differ from the task's and depend neither on the hardware
    nor on the weights, for a run on the task's data.

    Args:
        cfg: The scaled config as it will run.
    """
    reference = _reference(cfg)
    if reference is None:
        return []
    run, task = flatten(cfg), flatten(reference)
    builder = "MODEL.BACKBONE.NAME"
    if run[builder] == BASIC_BUILDERS.get(task[builder]):  # it depends on the weights
        run[builder] = task[builder]
    return [
        Finding(
            key,
            str(run[key]) or "empty",
            f"the task has {expected}; do not set it, or set MOCO.TASK to a name of your own",
        )
        for key, expected in task.items()
        if run[key] != expected and _is_task_key(key) and to_plain(run[key]) != to_plain(expected)
    ]


def _is_task_key(key: str) -> bool:
    """Return whether a key defines what is measured, and no other finding checks it."""
    return key in ("MOCO.RANDOM_SCALE", "MOCO.LABEL_FRACTION", "MOCO.OPTIMIZER") or (
        key.startswith(("INPUT.", "MODEL.", "MOCO.VIT.", "SOLVER.", "TEST.", "DATALOADER."))
        and not key.startswith(_OF_HARDWARE_OR_WEIGHTS)
        and not key.endswith(".NORM")
    )


def _reference(cfg: "CfgNode") -> Any:
    """Return the config of a packaged task; None if the task or its data is user-defined."""
    reference = reference_config(cfg.MOCO.TASK)
    if reference is None or any(
        tuple(cfg.DATASETS[split]) != tuple(reference.DATASETS[split])
        for split in ("TRAIN", "TEST")
    ):
        return None
    return reference


def _close(value: Any, expected: Any) -> bool:
    """Return whether both are equal up to the rounding of scaled numbers."""
    values, wanted = (v if isinstance(v, tuple) else (v,) for v in (value, expected))
    return len(values) == len(wanted) and all(
        math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=1 if isinstance(b, int) else 0)
        for a, b in zip(values, wanted, strict=True)
    )


def check_memory(cfg: "CfgNode", *, available: int | None, world_size: int) -> list[Finding]:
    """Return a finding if a pass needs more memory than is available. It names the number of passes
    that fits.

    Args:
        cfg: The config as it will run.
        available: Bytes for one process (memory.available_bytes); None if unknown.
        world_size: Number of processes.
    """
    if available is None:
        return []
    local_batch_size = cfg.SOLVER.IMS_PER_BATCH // world_size
    images = local_batch_size // cfg.MOCO.ACCUMULATION
    try:
        needed = training_bytes(cfg, images)
        if needed <= available:
            return []
        for_one = needed if images == 1 else training_bytes(cfg, 1)
    except Exception as error:  # a user's model may raise anything on the meta device
        logger.info("the memory of this model cannot be estimated: %s", error)
        return []
    per_image = (needed - for_one) / max(images - 1, 1)
    advice = "set SOLVER.AMP.ENABLED True, or smaller images in INPUT.MIN_SIZE_TRAIN"
    for passes in range(cfg.MOCO.ACCUMULATION + 1, local_batch_size + 1):
        micro_batch = local_batch_size // passes
        if local_batch_size % passes == 0 and for_one + per_image * (micro_batch - 1) <= available:
            advice = f"set MOCO.ACCUMULATION {passes}"
            break
    return [
        Finding(
            "SOLVER.IMS_PER_BATCH",
            str(cfg.SOLVER.IMS_PER_BATCH),
            f"{images} image(s) a pass need about {needed / 2**30:.1f} GiB in a process ({HOW}), "
            f"and {available / 2**30:.1f} GiB are available; {advice}",
        )
    ]
