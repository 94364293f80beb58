"""One reference schedule, run on the hardware at hand, and said out loud.

The configs describe the paper's 8 GPUs with 2 images each. Detectron2's own
SOLVER.REFERENCE_WORLD_SIZE carries that over to W processes: batch and learning rate by W / 8,
steps and periods by 8 / W. What follows from W besides is the norm.
"""

from typing import Any

import torch

SYNCED_NORMS = ("SyncBN", "nnSyncBN", "naiveSyncBN")


def scale_to_hardware(cfg: Any, world_size: int) -> tuple[Any, dict[str, Any]]:
    """The config as it will run on `world_size` processes, and its description for log and record.

    A synchronised norm becomes BN on one process, where there is nothing to synchronise with, and
    naiveSyncBN on several CPU processes, where torch's SyncBN does not run.

    Returns:
        a new config, frozen as the given one is, and ``{"world_size", "ims_per_batch", "base_lr",
        "max_iter", "steps", "norm", "notes"}``, notes being sentences.
    """
    from detectron2.engine import DefaultTrainer

    notes = []
    scaled = DefaultTrainer.auto_scale_workers(cfg, world_size).clone()
    scaled.defrost()
    if scaled.SOLVER.MAX_ITER != cfg.SOLVER.MAX_ITER:
        notes.append(
            f"scaled from {cfg.SOLVER.REFERENCE_WORLD_SIZE} to {world_size} process(es): "
            f"{cfg.SOLVER.IMS_PER_BATCH} -> "
            f"{scaled.SOLVER.IMS_PER_BATCH} images a step, lr {cfg.SOLVER.BASE_LR:g} -> "
            f"{scaled.SOLVER.BASE_LR:g}, "
            f"{cfg.SOLVER.MAX_ITER} -> {scaled.SOLVER.MAX_ITER} steps; set "
            "SOLVER.REFERENCE_WORLD_SIZE 0 to keep the "
            "batch if memory allows"
        )
    for node in (scaled.MODEL.RESNETS, scaled.MODEL.FPN):
        replacement = _norm_for(node.NORM, world_size, scaled.MODEL.DEVICE)
        if replacement != node.NORM:
            notes.append(f"norm {node.NORM} -> {replacement} on {world_size} process(es)")
            node.NORM = replacement
    if scaled.MODEL.RESNETS.NORM != "FrozenBN":
        synced = scaled.MODEL.RESNETS.NORM in SYNCED_NORMS
        images = scaled.SOLVER.IMS_PER_BATCH // (1 if synced else world_size)
        notes.append(f"BatchNorm statistics over {images} images (the paper: 16)")
    if cfg.is_frozen():
        scaled.freeze()
    effective = {
        "world_size": world_size,
        "ims_per_batch": scaled.SOLVER.IMS_PER_BATCH,
        "base_lr": scaled.SOLVER.BASE_LR,
        "max_iter": scaled.SOLVER.MAX_ITER,
        "steps": list(scaled.SOLVER.STEPS),
        "norm": scaled.MODEL.RESNETS.NORM,
        "notes": notes,
    }
    return scaled, effective


def _norm_for(norm: str, world_size: int, device: str) -> str:
    if norm not in SYNCED_NORMS:
        return norm
    if world_size == 1:
        return "BN"
    return norm if torch.device(device).type == "cuda" else "naiveSyncBN"
