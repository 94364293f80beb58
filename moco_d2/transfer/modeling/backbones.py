"""Backbones with a dilated conv5: the paper's R50-dilated-C5 (appendix A.1), and that of its FCN
(A.5).
"""

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.resnet import ResNet
from fvcore.nn import weight_init
from torch import Tensor
from torch.nn import functional as F

from moco_d2.errors import UserError
from moco_d2.resnet import BASIC_DEPTHS

NECK_CHANNELS = 512  # paper, appendix A.1
NECK_OUTPUT = "c5"


class DilatedC5(Backbone):
    """A ResNet whose conv5 is reduced to fewer channels by a 3x3 convolution with a norm and ReLU.

    Images (N, 3, H, W) -> ``{"c5": (N, channels, h, w)}``, h and w being H and W divided by the
    stride of conv5, rounded up.

    Stock Detectron2's dilated-C5 models lack the reduction, so that their box head begins with four
    times as many channels.
    """

    def __init__(self, bottom_up: Backbone, *, in_feature: str, channels: int, norm: str):
        """
        Args:
            bottom_up: gives `in_feature`. Its tensors keep their names behind ``bottom_up.``, as in
                Detectron2's FPN.
            channels: of the output.
            norm: as for detectron2.layers.get_norm.
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
        """See the class."""
        return {NECK_OUTPUT: self.neck(self.bottom_up(images)[self._in_feature])}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the output."""
        return {NECK_OUTPUT: self._shape}


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet with MODEL.RESNETS.RES5_DILATION: at 2, conv5 keeps the stride 16 of
    conv4, and its 3x3 convolutions are dilated instead.

    Raises:
        UserError: ResNet-18 or 34, whose blocks cannot be dilated.
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
    """DilatedC5 on build_dilated_resnet_backbone, all with the norm MODEL.RESNETS.NORM.

    Raises:
        UserError: as there.
    """
    return DilatedC5(
        build_dilated_resnet_backbone(cfg, input_shape),
        in_feature="res5",
        channels=NECK_CHANNELS,
        norm=cfg.MODEL.RESNETS.NORM,
    )
