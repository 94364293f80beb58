"""The C4 head of the paper: conv5 on each region, then one more BatchNorm (section 4.2 and the
official train_net.py).
"""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

_BASIC_BLOCKS = {18: 2, 34: 3}  # ResNet depth -> number of basic blocks in conv5


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Res5ROIHeads with a norm layer between res5 and the pooling, for boxes and masks.

    The parameters of the norm are ``roi_heads.res5.norm.*``. The parameters of res5 keep
    Detectron2's names (``roi_heads.res5.0.conv1.weight``). A wrapper module would rename them, and
    pretrained weights of res5 would silently not be loaded.

    Unlike Detectron2's head, it also builds the BasicBlock res5 of ResNet-18 and 34.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        resnets = cfg.MODEL.RESNETS
        if resnets.DEPTH in _BASIC_BLOCKS:
            res5, channels = _build_basic_res5(resnets)
        else:
            res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(resnets.NORM, channels))
        return res5, channels


def _build_basic_res5(resnets: Any) -> tuple[nn.Sequential, int]:
    channels = resnets.RES2_OUT_CHANNELS * 8
    blocks = _BASIC_BLOCKS[resnets.DEPTH]
    stage = ResNet.make_stage(
        BasicBlock,
        blocks,
        stride_per_block=[2] + [1] * (blocks - 1),
        in_channels=channels // 2,
        out_channels=channels,
        norm=resnets.NORM,
    )
    return nn.Sequential(*stage), channels
