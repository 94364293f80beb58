"""Scaling of one reference schedule to the available hardware, with a description for the log.

The configs describe the paper's 8 GPUs with 2 images each. For W processes, Detectron2's
SOLVER.REFERENCE_WORLD_SIZE multiplies batch and learning rate by W / 8, and steps, warm-up and
periods by 8 / W. The norms depend on W, too. MOCO.ACCUMULATION keeps the batch if memory is short,
but BatchNorm then sees fewer images at a time.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moco_d2.errors import UserError
from moco_d2.transfer.norms import NORMED, backbone_norm, batchnorm_images, has_vit, norm_for

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_PAPERS_BATCH = (
    16  # images that BatchNorm sees in the paper: 8 synchronized GPUs with 2 images each
)


def scale_to_hardware(
    cfg: "CfgNode", world_size: int, *, trains: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Scale a config to `world_size` processes, and describe the result for log and record.

    A synchronized norm becomes BN on one process. On several CPU processes, on which torch's
    SyncBN does not run, it becomes naiveSyncBN.

    Args:
        cfg: The config as it is written.
        world_size: The number of processes.
        trains: Whether the run takes steps. Otherwise, only the norms are changed.

    Returns:
        A new config (frozen if `cfg` is frozen) and ``{"world_size", "ims_per_batch",
        "accumulation", "base_lr", "max_iter", "steps", "warmup_iters", "eval_period",
        "checkpoint_period", "norm", "batchnorm_images", "notes"}``. Notes are sentences, and
        batchnorm_images is None if BatchNorm is frozen or absent.

    Raises:
        UserError: If the batch does not divide among the processes and passes.
    """
    from detectron2.engine import DefaultTrainer

    if trains:
        _check_division(cfg, world_size)
    else:  # the batch of an evaluation is one image
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
        cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, world_size)
    if scaled is cfg:  # otherwise it is a copy
        scaled = cfg.clone()
    scaled.defrost()
    solver = scaled.SOLVER
    notes = []
    if solver.MAX_ITER != cfg.SOLVER.MAX_ITER:
        notes.append(
            f"scaled from {cfg.SOLVER.REFERENCE_WORLD_SIZE} to {world_size} process(es): "
            f"{cfg.SOLVER.IMS_PER_BATCH} -> {solver.IMS_PER_BATCH} images a step, lr "
            f"{cfg.SOLVER.BASE_LR:g} -> {solver.BASE_LR:g}, {cfg.SOLVER.MAX_ITER} -> "
            f"{solver.MAX_ITER} steps, warm-up {cfg.SOLVER.WARMUP_ITERS} -> {solver.WARMUP_ITERS}; "
            "set SOLVER.REFERENCE_WORLD_SIZE 0 to keep the batch if memory allows, or with "
            "MOCO.ACCUMULATION if it does not"
        )
    for name in NORMED:
        node = scaled.MODEL[name]
        replacement = norm_for(node.NORM, world_size, scaled.MODEL.DEVICE)
        if replacement != node.NORM:
            notes.append(
                f"norm {node.NORM} -> {replacement} on {world_size} process(es) (MODEL.{name})"
            )
            node.NORM = replacement
    passes = scaled.MOCO.ACCUMULATION
    if passes > 1:
        notes.append(
            f"{passes} passes a step of {solver.IMS_PER_BATCH // passes} images: the gradient is "
            f"that of {solver.IMS_PER_BATCH}, BatchNorm's batch is not"
        )
    images = batchnorm_images(scaled, world_size)
    if "Cosine" in solver.LR_SCHEDULER_NAME:
        notes.append("the learning rate falls to 0 along half a period of a cosine")
    if has_vit(scaled):
        notes.append("the backbone is a ViT, whose LayerNorm depends on no other image")
    elif images is None:
        notes.append("BatchNorm is frozen (the paper tunes it)")
    else:
        notes.append(f"BatchNorm statistics over {images} images (the paper: {_PAPERS_BATCH})")
    if cfg.is_frozen():
        scaled.freeze()
    effective = {
        "world_size": world_size,
        "ims_per_batch": solver.IMS_PER_BATCH,
        "accumulation": passes,
        "base_lr": solver.BASE_LR,
        "max_iter": solver.MAX_ITER,
        "steps": list(solver.STEPS),
        "warmup_iters": solver.WARMUP_ITERS,
        "eval_period": scaled.TEST.EVAL_PERIOD,
        "checkpoint_period": solver.CHECKPOINT_PERIOD,
        "norm": backbone_norm(scaled),
        "batchnorm_images": images,
        "notes": notes,
    }
    return scaled, effective


def describe(effective: Mapping[str, Any]) -> list[str]:
    """Return the scaled schedule as lines for the log."""
    steps = ", ".join(map(str, effective["steps"]))
    period = effective["eval_period"]
    periodic = f"every {period} and " if 0 < period < effective["max_iter"] else ""
    first = (
        f"{effective['max_iter']} steps of {effective['ims_per_batch']} images on "
        f"{effective['world_size']} process(es), lr {effective['base_lr']:g} after a warm-up of "
        f"{effective['warmup_iters']}, lowered at {steps or 'no step'}; evaluated {periodic}at "
        f"the end, saved every {effective['checkpoint_period']}"
    )
    return [first, *effective["notes"]]


def _check_division(cfg: "CfgNode", world_size: int) -> None:
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and batch % reference:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} is the batch of the {reference} processes of "
            f"SOLVER.REFERENCE_WORLD_SIZE, and does not divide among them: choose a multiple of "
            f"{reference}, which is scaled to your {world_size}, or set "
            f"SOLVER.REFERENCE_WORLD_SIZE 0 for {batch} images a step and an unscaled schedule"
        )
    passes = cfg.MOCO.ACCUMULATION
    batch = batch * world_size // reference if reference else batch
    if batch % (world_size * passes):
        raise UserError(
            f"{batch} images a step do not divide among {world_size} process(es) and "
            f"MOCO.ACCUMULATION {passes} passes: change SOLVER.IMS_PER_BATCH or MOCO.ACCUMULATION"
        )
