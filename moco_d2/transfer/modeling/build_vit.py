"""The backbone of a config's ViT with a simple feature pyramid, of Detectron2's classes or ours."""

import functools
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn
from torch.utils.checkpoint import checkpoint

from moco_d2.errors import UserError
from moco_d2.plugin import compat
from moco_d2.transfer.modeling import feature_pyramid, vit  # each may be the first to be imported


@BACKBONE_REGISTRY.register()
def build_vit_simple_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Any:
    """Build the ViT of MOCO.VIT with a simple feature pyramid of MODEL.FPN.OUT_CHANNELS and NORM.

    The classes are Detectron2's, if the installed one has them.

    Raises:
        UserError: If keys of MOCO.VIT do not fit together.
    """
    keys = cfg.MOCO.VIT
    _check(keys)
    every = keys.DEPTH // keys.GLOBAL_BLOCKS if keys.GLOBAL_BLOCKS else keys.DEPTH + 1
    own = vit.ViT, feature_pyramid.SimpleFeaturePyramid
    # Main's pyramid cannot be without norm.
    vit_class, pyramid_class = (cfg.MODEL.FPN.NORM and compat.installed_vit()) or own
    more: dict[str, Any] = {}
    if vit_class is not vit.ViT:  # its default for LayerNorm is torch's
        more = {
            "norm_layer": functools.partial(nn.LayerNorm, eps=vit.EPS),
            "out_feature": vit.OUTPUT,
        }
    net = vit_class(
        img_size=keys.IMAGE_SIZE,
        patch_size=keys.PATCH_SIZE,
        embed_dim=keys.EMBED_DIM,
        depth=keys.DEPTH,
        num_heads=keys.HEADS,
        drop_path_rate=keys.DROP_PATH,
        use_rel_pos=keys.RELATIVE_POSITIONS,
        window_size=keys.WINDOW_SIZE,
        window_block_indexes=[i for i in range(keys.DEPTH) if (i + 1) % every],
        pretrain_img_size=keys.PRETRAIN_SIZE,
        pretrain_use_cls_token=keys.PRETRAIN_CLASS_TOKEN,
        **more,
    )
    if keys.CHECKPOINT_BLOCKS:  # main's own needs fairscale
        for block in net.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return pyramid_class(
        net,
        in_feature=vit.OUTPUT,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=feature_pyramid.SCALES,
        top_block=LastLevelMaxPool(),
        norm=cfg.MODEL.FPN.NORM,
        square_pad=keys.IMAGE_SIZE,
    )


def _check(keys: Any) -> None:
    fits = {
        "EMBED_DIM": ("HEADS", keys.EMBED_DIM % keys.HEADS),
        "DEPTH": ("GLOBAL_BLOCKS", keys.GLOBAL_BLOCKS and keys.DEPTH % keys.GLOBAL_BLOCKS),
        "IMAGE_SIZE": ("PATCH_SIZE", keys.IMAGE_SIZE % (2 * keys.PATCH_SIZE)),
        "PRETRAIN_SIZE": ("PATCH_SIZE", keys.PRETRAIN_SIZE % keys.PATCH_SIZE),
    }
    for key, (divisor, rest) in fits.items():
        if rest:
            twice = "twice " if key == "IMAGE_SIZE" else ""
            raise UserError(
                f"MOCO.VIT.{key} is {keys[key]}, but must be a multiple of {twice}"
                f"MOCO.VIT.{divisor}, which is {keys[divisor]}; change one of them"
            )
    if keys.PATCH_SIZE & (keys.PATCH_SIZE - 1):
        raise UserError(
            f"MOCO.VIT.PATCH_SIZE is {keys.PATCH_SIZE}, and the levels of a pyramid need a power "
            "of two; use a network with patches of 16 or 8 pixels"
        )
