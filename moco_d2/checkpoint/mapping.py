"""ResNet backbones in two vocabularies, torchvision's and Detectron2's: names, shapes and settings.

Only weights and BatchNorm statistics are mapped. ``num_batches_tracked`` is not: Detectron2 does
without it, and with FrozenBN it would be reported as unexpected.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moco_d2.resnet import BASIC_DEPTHS, STEM_WIDTH, build_resnet

_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
_STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
_IN_BLOCK = {
    "conv1": "conv1",
    "bn1": "conv1.norm",
    "conv2": "conv2",
    "bn2": "conv2.norm",
    "conv3": "conv3",
    "bn3": "conv3.norm",
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}
_TO_DETECTRON2 = (_STEM, _STAGES, _IN_BLOCK)
_TO_TORCHVISION = tuple({new: old for old, new in table.items()} for table in _TO_DETECTRON2)

# What torchvision networks are trained on: RGB in [0, 1], ImageNet's mean and standard deviation; x
# 255 here.
PREPROCESSING = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}


@dataclass(frozen=True)
class Architecture:
    """A torchvision ResNet, ResNeXt or wide ResNet.

    Args:
        depth: 18, 34 (BasicBlock), 50, 101 or 152 (Bottleneck).
        width_per_group: width of a group in the first stage's 3x3 convolutions; Bottleneck only.
        groups: groups of the 3x3 convolutions; Bottleneck only.
        width_factor: of every number of channels; 2 and 4 are the paper's R50w2x and R50w4x.
    """

    depth: int
    width_per_group: int = 64
    groups: int = 1
    width_factor: int = 1

    @property
    def is_basic(self) -> bool:
        return self.depth in BASIC_DEPTHS

    def __str__(self) -> str:
        name = f"ResNet-{self.depth}"
        if self.width_factor != 1:
            name += f" of {self.width_factor} times the width"
        if (self.groups, self.width_per_group) != (1, 64):
            name += f" with {self.groups} group(s) of width {self.width_per_group}"
        return name


def to_detectron2(name: str) -> str:
    """``layer3.5.bn3.bias`` -> ``res4.5.conv3.norm.bias``.

    Raises:
        ValueError: `name` is not a tensor of a torchvision ResNet backbone.
    """
    return _translate(name, _TO_DETECTRON2)


def to_torchvision(name: str) -> str:
    """``res4.5.conv3.norm.bias`` -> ``layer3.5.bn3.bias``; the inverse of `to_detectron2`.

    Raises:
        ValueError: `name` is not a tensor of a Detectron2 ResNet backbone.
    """
    return _translate(name, _TO_TORCHVISION)


def _translate(name: str, tables: tuple[dict[str, str], ...]) -> str:
    stem, stages, in_block = tables
    module, _, parameter = name.rpartition(".")
    if module in stem:
        return f"{stem[module]}.{parameter}"
    stage, _, rest = module.partition(".")
    index, _, inner = rest.partition(".")
    if stage in stages and index.isdecimal() and inner in in_block:
        return f"{stages[stage]}.{index}.{in_block[inner]}.{parameter}"
    raise ValueError(f"{name!r} is not a tensor of a ResNet backbone")


def build_torchvision(architecture: Architecture) -> nn.Module:
    """torchvision's network with random weights, on torch's current default device."""
    return build_resnet(
        architecture.depth,
        num_classes=1,  # fc is no part of the backbone
        groups=architecture.groups,
        width_per_group=architecture.width_per_group,
        width_factor=architecture.width_factor,
    )


def expected_tensors(architecture: Architecture) -> dict[str, torch.Size]:
    """Torchvision name -> shape of every backbone tensor to convert (ResNet-50: 265)."""
    with torch.device("meta"):
        network = build_torchvision(architecture)
    return {
        name: tensor.shape
        for name, tensor in network.state_dict().items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }


def detectron2_settings(architecture: Architecture) -> dict[str, Any]:
    """The keys of Detectron2's config that these weights need."""
    factor = architecture.width_factor
    return {
        "INPUT.FORMAT": PREPROCESSING["format"],
        "MODEL.PIXEL_MEAN": PREPROCESSING["pixel_mean"],
        "MODEL.PIXEL_STD": PREPROCESSING["pixel_std"],
        "MODEL.RESNETS.DEPTH": architecture.depth,
        "MODEL.RESNETS.NUM_GROUPS": architecture.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": architecture.width_per_group * factor,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": STEM_WIDTH * factor,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": (64 if architecture.is_basic else 256) * factor,
        # torchvision strides in the 3x3 convolution, the MSRA networks in the 1x1.
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    }
