"""Builds torchvision's ResNets, the ResNets of other widths that torchvision lacks, and those that
Detectron2 lacks.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import resnet as detectron2_resnet

# Blocks per stage (He et al. 2016, Table 1).
BASIC_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STEM_WIDTH = 64
#: MODEL.BACKBONE.NAME of Detectron2, whose ResNet-18 and 34 have plain width only -> ours.
BASIC_BUILDERS = {
    "build_resnet_backbone": "build_basic_resnet",
    "build_resnet_fpn_backbone": "build_basic_resnet_fpn",
}


def own_builder(name: str, depth: int, res2_channels: int) -> str | None:
    """Return the builder to take for Detectron2's `name` if that refuses the network, or None."""
    refused = depth in BASIC_DEPTHS and res2_channels != STEM_WIDTH
    return BASIC_BUILDERS.get(name) if refused else None


class WiderResNet(ResNet):
    """A ResNet with all channel numbers multiplied: the paper's R50w2x and R50w4x (Table 1).

    torchvision's wide ResNets widen the 3x3 convolutions only. The tensor names are the same.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: list[int],
        *,
        width_factor: float,
        **kwargs: Any,
    ):
        self.width_factor = width_factor
        super().__init__(block, layers, **kwargs)

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        if planes == STEM_WIDTH:  # the first stage: the stem is there, of torchvision's width
            self.inplanes = int(STEM_WIDTH * self.width_factor)
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        return super()._make_layer(block, int(planes * self.width_factor), blocks, stride, dilate)


def conv_to_one_cell(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """Return a convolution of maps (N, C, H, W) whose output is one cell, without its padding.

    The taps that are left out meet padding only, so the result and its gradients are the same. On
    maps of 1x1, it takes a ninth of the products of a 3x3 kernel.

    Returns:
        (N, out, 1, 1), or None where the output has several cells.
    """
    pads, (height, width) = cast(tuple[int, int], layer.padding), x.shape[-2:]
    for cells, kernel, pad, stride in zip(
        (height, width), layer.kernel_size, pads, layer.stride, strict=True
    ):
        if cells + pad > kernel or cells + 2 * pad - kernel >= stride:
            return None
    top, left = pads
    met = layer.weight[:, :, top : top + height, left : left + width]
    return nn.functional.conv2d(x, met, layer.bias, groups=layer.groups)


class SmallMapConv(nn.Conv2d):
    """A convolution that skips the products with padding of conv_to_one_cell."""

    def _get_name(self) -> str:
        return "Conv2d"  # the network prints as torchvision's

    def forward(self, x: Tensor) -> Tensor:
        cell = conv_to_one_cell(self, x)
        return super().forward(x) if cell is None else cell


def build_resnet(
    depth: int,
    *,
    num_classes: int,
    groups: int = 1,
    width_per_group: int = 64,
    width_factor: float = 1,
    norm_layer: Callable[..., nn.Module] | None = None,
) -> ResNet:
    """Return a ResNet with random weights: images (N, 3, H, W) -> scores (N, num_classes).

    Args:
        depth: A key of BASIC_DEPTHS or BOTTLENECK_DEPTHS.
        num_classes: The number of classes.
        groups: Groups of the 3x3 convolutions in bottlenecks, as in torchvision.
        width_per_group: Width of these groups in the first stage, as in torchvision.
        width_factor: Factor of all channel numbers.
        norm_layer: The class of the norm layers; None for BatchNorm.
    """
    block: type[BasicBlock | Bottleneck] = BasicBlock if depth in BASIC_DEPTHS else Bottleneck
    layers = list((BASIC_DEPTHS | BOTTLENECK_DEPTHS)[depth])
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "groups": groups,
        "width_per_group": width_per_group,
        "norm_layer": norm_layer,
    }
    if width_factor == 1:
        return ResNet(block, layers, **options)
    network = WiderResNet(block, layers, width_factor=width_factor, **options)
    network.fc = nn.Linear(network.inplanes, num_classes)  # torchvision's has a fixed width
    return network


def basic_stage(resnets: Any, index: int) -> list[nn.Module]:
    """Return the blocks of a stage of Detectron2's ResNet-18 or 34.

    Args:
        resnets: MODEL.RESNETS of a config.
        index: 0 for res2 to 3 for res5.
    """
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

    blocks, width = BASIC_DEPTHS[resnets.DEPTH][index], resnets.RES2_OUT_CHANNELS * 2**index
    stage: list[nn.Module] = ResNet.make_stage(
        BasicBlock,
        blocks,
        stride_per_block=[2 if index else 1] + [1] * (blocks - 1),
        in_channels=width // 2 if index else resnets.STEM_OUT_CHANNELS,
        out_channels=width,
        norm=resnets.NORM,
    )
    return stage


def build_basic_resnet(cfg: "CfgNode", input_shape: "ShapeSpec") -> "detectron2_resnet.ResNet":
    """Build Detectron2's ResNet-18 or 34 of any width: images (N, 3, H, W) -> its features.

    Detectron2's own builder accepts MODEL.RESNETS.RES2_OUT_CHANNELS 64 only. Of that width, the
    networks are the same, and so are the names of all tensors.

    Args:
        cfg: A config whose MODEL.RESNETS.DEPTH is a key of BASIC_DEPTHS, and OUT_FEATURES are
            stages.
        input_shape: The channels of the images.
    """
    from detectron2.modeling.backbone.resnet import BasicStem, ResNet

    resnets = cfg.MODEL.RESNETS
    last = max(int(name.removeprefix("res")) for name in resnets.OUT_FEATURES)
    stages = [basic_stage(resnets, index) for index in range(last - 1)]  # res2 is the first
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)
    return ResNet(
        stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )
