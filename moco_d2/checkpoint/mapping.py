"""Maps ResNet backbones between torchvision and Detectron2: names, shapes and settings.

Only weights and BatchNorm statistics are mapped, not ``num_batches_tracked``. Detectron2 does not
need it, and with FrozenBN would report it as unexpected.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from moco_d2.checkpoint.dialects import DETECTRON2
from moco_d2.checkpoint.families import IMAGENET, Input
from moco_d2.resnet import (
    BASIC_DEPTHS,
    BOTTLENECK_DEPTHS,
    STEM_WIDTH,
    build_resnet,
    own_builder,
)

_LAST_PLANES = 512  # channels of the last stage's 3x3 convolutions in torchvision
_BLOCK_NAME = re.compile(r"layer([1-4])\.(\d+)\.")


@dataclass(frozen=True)
class Architecture:
    """A torchvision ResNet, ResNeXt or wide ResNet.

    Args:
        depth: 18, 34 (BasicBlock), 50, 101 or 152 (Bottleneck).
        width_per_group: Width of a group in the first stage's 3x3 convolutions; Bottleneck only.
        groups: Number of groups of the 3x3 convolutions; Bottleneck only.
        width_factor: Factor of all channel numbers; 2 and 4 are the paper's R50w2x and R50w4x.
        stride_in_1x1: Whether a bottleneck's stride is in its first convolution, as in MSRA's
            networks.
    """

    depth: int
    width_per_group: int = 64
    groups: int = 1
    width_factor: float = 1
    stride_in_1x1: bool = False

    @property
    def is_basic(self) -> bool:
        return self.depth in BASIC_DEPTHS

    @property
    def num_features(self) -> int:
        """Return the width of the last stage, which is the size of a pooled feature."""
        block = BasicBlock if self.is_basic else Bottleneck
        return int(_LAST_PLANES * self.width_factor) * block.expansion

    def __str__(self) -> str:
        name = f"ResNet-{self.depth}"
        if self.width_factor != 1:
            # This text is in records, whose runs are grouped by it: it stays as it is.
            name += f" of {self.width_factor} times the width"
        if (self.groups, self.width_per_group) != (1, 64):
            name += f" with {self.groups} group(s) of width {self.width_per_group}"
        if self.stride_in_1x1:
            name += " with the stride in the 1x1 convolutions"
        return name


def to_detectron2(name: str) -> str:
    """Translate a name: ``layer3.5.bn3.bias`` -> ``res4.5.conv3.norm.bias``.

    Raises:
        ValueError: If `name` is not a tensor of a torchvision ResNet backbone.
    """
    return _look_up(name, DETECTRON2.from_torchvision)


def to_torchvision(name: str) -> str:
    """Translate a name: ``res4.5.conv3.norm.bias`` -> ``layer3.5.bn3.bias``.

    Raises:
        ValueError: If `name` is not a tensor of a Detectron2 ResNet backbone.
    """
    return _look_up(name, DETECTRON2.to_torchvision)


def _look_up(name: str, names: dict[str, str]) -> str:
    try:
        return names[name]
    except KeyError:
        raise ValueError(f"{name!r} is not a tensor of a ResNet backbone") from None


def count_blocks(tensors: Collection[str]) -> tuple[tuple[int, ...], bool]:
    """Return the number of blocks in each stage, and whether they are bottlenecks.

    Args:
        tensors: torchvision's names. A stage has all blocks up to its last one.
    """
    blocks = [0, 0, 0, 0]
    for name in tensors:
        if match := _BLOCK_NAME.match(name):
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    bottleneck = any(_BLOCK_NAME.match(name) and ".conv3." in name for name in tensors)
    return tuple(blocks), bottleneck


def infer_architecture(tensors: Mapping[str, Tensor], stride_in_1x1: bool = False) -> Architecture:
    """Return the torchvision ResNet that is closest to these names and shapes."""
    blocks, bottleneck = count_blocks(tensors)
    depths = BOTTLENECK_DEPTHS if bottleneck else BASIC_DEPTHS
    depth = min(
        depths, key=lambda d: sum(abs(a - b) for a, b in zip(blocks, depths[d], strict=True))
    )
    stem = tensors.get("conv1.weight")
    factor = 1 if stem is None or not stem.ndim else (stem.shape[0] or STEM_WIDTH) / STEM_WIDTH
    if factor == int(factor):
        factor = int(factor)
    conv = tensors.get("layer1.0.conv2.weight")
    if not bottleneck or conv is None or conv.ndim != 4 or 0 in conv.shape:
        return Architecture(depth, width_factor=factor, stride_in_1x1=stride_in_1x1)
    # A 3x3 convolution of G groups has shape [width, width / G, 3, 3].
    width, width_per_group = conv.shape[:2]
    groups = width // width_per_group if width % width_per_group == 0 else 1
    return Architecture(depth, max(int(width_per_group / factor), 1), groups, factor, stride_in_1x1)


def build_torchvision(architecture: Architecture) -> ResNet:
    """Return torchvision's network with random weights, on torch's current default device."""
    network = build_resnet(
        architecture.depth,
        num_classes=1,  # fc is no part of the backbone
        groups=architecture.groups,
        width_per_group=architecture.width_per_group,
        width_factor=architecture.width_factor,
    )
    if architecture.stride_in_1x1:
        for stage in (network.layer2, network.layer3, network.layer4):
            block = stage[0]
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    return network


# Layers call those of nn.init too, inside which a mode does not see what they call.
_INITIALIZERS = (Tensor.normal_, Tensor.uniform_, init.kaiming_uniform_, init.constant_)


class _NoInitialValues(TorchFunctionMode):
    """Skips random initialization, which takes longer than a conversion even without storage."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _INITIALIZERS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Build networks without values, for their names and shapes or to load values later."""
    with torch.device("meta"), _NoInitialValues():
        yield


@functools.lru_cache(maxsize=32)
def expected_tensors(architecture: Architecture) -> Mapping[str, torch.Size]:
    """Return torchvision name -> shape of every backbone tensor to convert (ResNet-50: 265)."""
    with without_values():
        network = build_torchvision(architecture)
    return {
        name: tensor.shape
        for name, tensor in network.state_dict().items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }


def detectron2_settings(architecture: Architecture, pixels: Input = IMAGENET) -> dict[str, Any]:
    """Return the keys of Detectron2's config that these weights need."""
    factor = architecture.width_factor
    return {
        "INPUT.FORMAT": pixels.format,
        "MODEL.PIXEL_MEAN": list(pixels.pixel_mean),
        "MODEL.PIXEL_STD": list(pixels.pixel_std),
        "MODEL.RESNETS.DEPTH": architecture.depth,
        "MODEL.RESNETS.NUM_GROUPS": architecture.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": int(architecture.width_per_group * factor),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": int(STEM_WIDTH * factor),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": int((64 if architecture.is_basic else 256) * factor),
        # The stride is in the 3x3 convolution in torchvision, and in the 1x1 in MSRA's networks.
        "MODEL.RESNETS.STRIDE_IN_1X1": architecture.stride_in_1x1,
    }


def own_builder_of(architecture: Architecture) -> str | None:
    """Return the builder for a network that Detectron2's builder refuses; None for others."""
    settings = detectron2_settings(architecture)
    shape = (settings[f"MODEL.RESNETS.{key}"] for key in ("DEPTH", "RES2_OUT_CHANNELS"))
    return own_builder("build_resnet_backbone", *shape)
