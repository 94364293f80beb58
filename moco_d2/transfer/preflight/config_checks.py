"""Finds what would make a run silently measure the wrong thing; dataset_checks.py finds what is
wrong with its data.

Each finding says which key, its value, and what to do. ``--force`` turns findings into warnings,
and the run record keeps them, so that a table can mark the run.
"""

import logging
import math
from collections.abc import Iterator
from typing import Any

from moco_d2.config.plain import flatten, to_plain
from moco_d2.transfer.preflight.findings import Finding
from moco_d2.transfer.preflight.memory import HOW, training_bytes
from moco_d2.transfer.schedule import SYNCED_NORMS, normed_keys, reference_config
from moco_d2.transfer.weights import RANDOM, Coverage

logger = logging.getLogger(__name__)

_ROUNDING = 0.002  # steps and rates are rounded when they are scaled
# What follows from the machine (schedule.py), from the weights (_contradictions), or has findings
# of its own.
_OF_HARDWARE_OR_WEIGHTS = (
    "DATALOADER.NUM_WORKERS",
    "INPUT.FORMAT",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.DEVICE",
    "MODEL.PIXEL_",
    "MODEL.RESNETS.",
    "MODEL.WEIGHTS",
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


def check_config(cfg: Any, provenance: dict[str, Any] | None, *, world_size: int) -> list[Finding]:
    """Findings that need no model.

    Args:
        cfg: the config as it will run.
        provenance: the converter's report inside the weight file, if it has one.
        world_size: number of processes.
    """
    return [
        *_frozen(cfg),
        *_norms(cfg, world_size),
        *_seed(cfg),
        *_contradictions(cfg, provenance),
    ]


def _frozen(cfg: Any) -> Iterator[Finding]:
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        yield Finding(
            "MODEL.BACKBONE.FREEZE_AT",
            str(cfg.MODEL.BACKBONE.FREEZE_AT),
            "it freezes the first stages with their BatchNorm, which the protocol tunes; set it "
            "to 0",
        )


def _norms(cfg: Any, world_size: int) -> Iterator[Finding]:
    norm = cfg.MODEL.RESNETS.NORM
    fpn_norm = cfg.MODEL.FPN.NORM if "fpn" in cfg.MODEL.BACKBONE.NAME else ""
    # Frozen throughout, over pretrained statistics, is an initialization of its own: what the paper
    # compares with on LVIS.
    if norm == "FrozenBN" and cfg.MODEL.WEIGHTS == RANDOM:
        yield Finding(
            "MODEL.RESNETS.NORM",
            norm,
            "the statistics of random weights are frozen at mean 0 and variance 1, and nothing "
            "normalizes; set SyncBN",
        )
    elif norm == "FrozenBN" and fpn_norm:
        yield Finding(
            "MODEL.RESNETS.NORM",
            norm,
            f"the protocol tunes BatchNorm, and MODEL.FPN.NORM is {fpn_norm}; set SyncBN, or to "
            "freeze all of it on purpose MODEL.FPN.NORM ''",
        )
    if norm != "FrozenBN" and "fpn" in cfg.MODEL.BACKBONE.NAME and not fpn_norm:
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
                "it synchronizes processes, and there is one (facebookresearch/moco issue 112); "
                "set BN",
            )


def _seed(cfg: Any) -> Iterator[Finding]:
    if cfg.SEED < 0:
        yield Finding(
            "SEED",
            str(cfg.SEED),
            "runs could not be told apart or repeated, and today's Detectron2 gives all of them "
            "the same order of images; set SEED 1, and another number for each repetition",
        )


def check_schedule(cfg: Any) -> list[Finding]:
    """Findings where a run on a task's own data is not as long, or as steep, as the task says.

    Whatever the batch: compared are the images seen, where in the run the rate is lowered, and the
    rate an image. A task or data of the user's own has no reference.

    Args:
        cfg: the config as it will run, scaled.
    """
    reference = _reference(cfg)
    if reference is None:
        return []
    run, task = cfg.SOLVER, reference.SOLVER
    scale = task.IMS_PER_BATCH / run.IMS_PER_BATCH
    expected = {
        "SOLVER.MAX_ITER": (run.MAX_ITER, round(task.MAX_ITER * scale)),
        "SOLVER.STEPS": (tuple(run.STEPS), tuple(round(step * scale) for step in task.STEPS)),
        "SOLVER.WARMUP_ITERS": (run.WARMUP_ITERS, round(task.WARMUP_ITERS * scale)),
        "SOLVER.BASE_LR": (run.BASE_LR, float(f"{task.BASE_LR / scale:g}")),
    }
    return [
        Finding(
            key,
            str(value),
            f"the task has {theirs} at {run.IMS_PER_BATCH} images a step "
            f"({key.rpartition('.')[2]} {task[key.rpartition('.')[2]]} at {task.IMS_PER_BATCH}); "
            "leave it to the task and SOLVER.REFERENCE_WORLD_SIZE, or set "
            f"SOLVER.REFERENCE_WORLD_SIZE 0 and {key} {theirs}",
        )
        for key, (value, theirs) in expected.items()
        if not _close(value, theirs)
    ]


def check_settings(cfg: Any) -> list[Finding]:
    """Findings where a run on a task's own data has other settings than the task, in what does not
    follow from the hardware or from the weights.

    Args:
        cfg: the config as it will run, scaled.
    """
    reference = _reference(cfg)
    if reference is None:
        return []
    run, task = flatten(cfg), flatten(reference)
    return [
        Finding(
            key,
            str(run[key]) or "empty",
            f"the task has {theirs}; leave it to the task, or call the run by a MOCO.TASK of its "
            "own",
        )
        for key, theirs in task.items()
        if _is_of_the_task(key) and to_plain(run[key]) != to_plain(theirs)
    ]


def _is_of_the_task(key: str) -> bool:
    """Whether a key decides on what is measured, and no other finding is about it."""
    return key == "MOCO.RANDOM_SCALE" or (
        key.startswith(("INPUT.", "MODEL.", "SOLVER.", "TEST.", "DATALOADER."))
        and not key.startswith(_OF_HARDWARE_OR_WEIGHTS)
        and not key.endswith(".NORM")
    )


def _reference(cfg: Any) -> Any:
    """The config of a packaged task on its own data; None for a task or data of the user's own."""
    reference = reference_config(cfg.MOCO.TASK)
    if reference is None or any(
        tuple(cfg.DATASETS[split]) != tuple(reference.DATASETS[split])
        for split in ("TRAIN", "TEST")
    ):
        return None
    return reference


def _close(value: Any, expected: Any) -> bool:
    """Equal but for the rounding that scaling brings."""
    ours, theirs = (v if isinstance(v, tuple) else (v,) for v in (value, expected))
    return len(ours) == len(theirs) and all(
        math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=1 if isinstance(b, int) else 0)
        for a, b in zip(ours, theirs, strict=True)
    )


def check_memory(cfg: Any, *, available: int | None, world_size: int) -> list[Finding]:
    """A finding if a pass needs more memory than there is, with the number of passes that would do.

    Args:
        cfg: the config as it will run.
        available: bytes for one process, memory.available_bytes; None: not known.
        world_size: number of processes.
    """
    if available is None:
        return []
    share = cfg.SOLVER.IMS_PER_BATCH // world_size
    try:
        needed = {
            images: training_bytes(cfg, images) for images in (share // cfg.MOCO.ACCUMULATION, 1)
        }
    except Exception as error:  # whatever a model of the user's own makes of shapes without numbers
        logger.info("no estimate of the memory for this model: %s", error)
        return []
    (images, wanted), one = next(iter(needed.items())), needed[1]
    if wanted <= available:
        return []
    an_image = (wanted - one) / max(images - 1, 1)
    advice = "set SOLVER.AMP.ENABLED True, or smaller images in INPUT.MIN_SIZE_TRAIN"
    for passes in range(cfg.MOCO.ACCUMULATION + 1, share + 1):
        if share % passes == 0 and one + an_image * (share // passes - 1) <= available:
            advice = f"set MOCO.ACCUMULATION {passes}"
            break
    return [
        Finding(
            "SOLVER.IMS_PER_BATCH",
            str(cfg.SOLVER.IMS_PER_BATCH),
            f"{images} image(s) a pass need about {wanted / 2**30:.1f} GiB in a process ({HOW}), "
            f"and there are {available / 2**30:.1f}; {advice}",
        )
    ]


def _contradictions(cfg: Any, provenance: dict[str, Any] | None) -> list[Finding]:
    """Findings where the config and the weight file's own account of itself differ."""
    if provenance is None:
        return []
    preprocessing = provenance.get("preprocessing", {})
    factor = provenance.get("width_factor", 1)
    wanted = {
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, preprocessing.get("format")),
        "MODEL.PIXEL_MEAN": (list(cfg.MODEL.PIXEL_MEAN), preprocessing.get("pixel_mean")),
        "MODEL.PIXEL_STD": (list(cfg.MODEL.PIXEL_STD), preprocessing.get("pixel_std")),
        "MODEL.RESNETS.STRIDE_IN_1X1": (
            cfg.MODEL.RESNETS.STRIDE_IN_1X1,
            provenance.get("stride_in_1x1"),
        ),
        "MODEL.RESNETS.DEPTH": (cfg.MODEL.RESNETS.DEPTH, provenance.get("depth")),
        "MODEL.RESNETS.NUM_GROUPS": (cfg.MODEL.RESNETS.NUM_GROUPS, provenance.get("groups")),
        "MODEL.RESNETS.WIDTH_PER_GROUP": (
            cfg.MODEL.RESNETS.WIDTH_PER_GROUP,
            provenance.get("width_per_group", 64) * factor,
        ),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": (cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, 64 * factor),
    }
    return [
        Finding(key, str(configured), f"MODEL.WEIGHTS was made with {made!r}; set {key} to that")
        for key, (configured, made) in wanted.items()
        if made is not None and configured != made
    ]


def check_coverage(cfg: Any, coverage: Coverage) -> list[Finding]:
    """A finding if pretrained weights did not arrive completely; random initialization has none."""
    weights = cfg.MODEL.WEIGHTS
    if weights == RANDOM or not coverage.missing:
        return []
    return [
        Finding(
            "MODEL.WEIGHTS",
            weights,
            f"only {coverage.loaded} of {coverage.expected} backbone tensors arrived, first "
            f"missing {coverage.missing[0]}; the rest would train from random values. Convert the "
            "checkpoint with tools/convert.py, and check MODEL.RESNETS.DEPTH and WIDTH_PER_GROUP",
        )
    ]
