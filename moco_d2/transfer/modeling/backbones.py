"""Backbones that Detectron2 lacks: with a dilated conv5, the paper's R50-dilated-C5 (appendix A.1)
and the backbone of its FCN (appendix A.5), and ResNet-18 and 34 of any width.
"""

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.backbone.resnet import ResNet
from fvcore.nn import weight_init
from torch import Tensor
from torch.nn import functional as F

from moco_d2.errors import UserError
from moco_d2.resnet import BASIC_DEPTHS, build_basic_resnet

NECK_CHANNELS = 512  # paper, appendix A.1
NECK_OUTPUT = "c5"


class DilatedC5(Backbone):
    """A ResNet with a 3x3 convolution, norm and ReLU that reduce the channels of conv5.

    It maps images (N, 3, H, W) to ``{"c5": (N, channels, h, w)}``, where h and w are H and W
    divided by the stride of conv5 and rounded up.

    Detectron2's dilated-C5 models lack this reduction, so their box head gets four times as many
    channels.
    """

    def __init__(self, bottom_up: Backbone, *, in_feature: str, channels: int, norm: str):
        """
        Args:
            bottom_up: The ResNet. Its tensors are named ``bottom_up.*``, as in Detectron2's FPN.
            in_feature: The feature of `bottom_up` that is reduced.
            channels: Number of channels of the output.
            norm: Name of the norm for detectron2.layers.get_norm.
        """
        super().__init__()
        shape = bottom_up.output_shape()[in_feature]
        self.bottom_up = bottom_up
        self.neck = Conv2d(
            shape.channels,
            channels,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, channels),
            activation=F.relu,
        )
        weight_init.c2_msra_fill(self.neck)
        self._in_feature = in_feature
        self._shape = ShapeSpec(channels=channels, stride=shape.stride)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return ``{"c5": (N, channels, h, w)}`` of images (N, 3, H, W)."""
        return {NECK_OUTPUT: self.neck(self.bottom_up(images)[self._in_feature])}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of the output."""
        return {NECK_OUTPUT: self._shape}


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build Detectron2's ResNet with MODEL.RESNETS.RES5_DILATION. With 2, conv5 keeps the stride 16
    of conv4, and its 3x3 convolutions are dilated.

    Raises:
        UserError: If the network is ResNet-18 or 34, whose blocks Detectron2 cannot dilate.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.RES5_DILATION > 1 and resnets.DEPTH in BASIC_DEPTHS:
        raise UserError(
            f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}, and Detectron2 cannot dilate conv5 of a "
            "ResNet without bottlenecks: set DEPTH 50 (with RES2_OUT_CHANNELS 256) or more, or "
            "RES5_DILATION 1"
        )
    return build_resnet_backbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_dilated_c5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedC5:
    """Build DilatedC5 with build_dilated_resnet_backbone; all layers use MODEL.RESNETS.NORM.

    Raises:
        UserError: As in build_dilated_resnet_backbone.
    """
    return DilatedC5(
        build_dilated_resnet_backbone(cfg, input_shape),
        in_feature="res5",
        channels=NECK_CHANNELS,
        norm=cfg.MODEL.RESNETS.NORM,
    )


BACKBONE_REGISTRY.register(build_basic_resnet)


@BACKBONE_REGISTRY.register()
def build_basic_resnet_fpn(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN of build_basic_resnet."""
    return FPN(
        bottom_up=build_basic_resnet(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
