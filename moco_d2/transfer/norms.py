"""The norms of a model: which of them its config has, and which run on how many processes."""

from typing import TYPE_CHECKING

import torch

from moco_d2.config.plain import flatten

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# Norms that need several processes, and the ones among them that run without CUDA.
SYNCED_NORMS = ("SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_SYNCED_ON_CPU = ("naiveSyncBN", "naiveSyncBN_N")
# The parts of the paper's models that have their own NORM key.
NORMED = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD")
VIT_NORM = "LN"
VIT_BACKBONE = "build_vit_simple_fpn_backbone"


def batchnorm_images(cfg: "CfgNode", world_size: int) -> int | None:
    """Return how many images the backbone's BatchNorm normalizes together; None if it is frozen or
    absent.
    """
    norm = backbone_norm(cfg)
    if norm in ("FrozenBN", VIT_NORM):
        return None
    groups = 1 if norm in SYNCED_NORMS else world_size
    return cfg.SOLVER.IMS_PER_BATCH // (groups * cfg.MOCO.ACCUMULATION)


def has_vit(cfg: "CfgNode") -> bool:
    """Return whether the backbone is the ViT of MOCO.VIT; MODEL.RESNETS does not count then."""
    return cfg.MODEL.BACKBONE.NAME == VIT_BACKBONE


def backbone_norm(cfg: "CfgNode") -> str:
    """Return the norm of the pretrained backbone."""
    return VIT_NORM if has_vit(cfg) else cfg.MODEL.RESNETS.NORM


def normed_keys(cfg: "CfgNode") -> dict[str, str]:
    """Return every norm of the model by its key, ``{"MODEL.FPN.NORM": "SyncBN", ...}``."""
    return {
        f"MODEL.{key}": value
        for key, value in flatten(cfg.MODEL).items()
        if key.rpartition(".")[2] == "NORM"
    }


def norm_for(norm: str, world_size: int, device: str) -> str:
    if norm not in SYNCED_NORMS:
        return norm
    if world_size == 1:
        return "BN"
    on_gpu = torch.device(device).type == "cuda"
    return norm if on_gpu or norm in _SYNCED_ON_CPU else "naiveSyncBN"
