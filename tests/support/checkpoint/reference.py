"""The networks in the files: torchvision's and Detectron2's, and the names of both."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import moco_d2  # noqa: F401  before detectron2

# isort: split
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from moco_d2.checkpoint.mapping import without_values

State = dict[str, Tensor]

STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class Network:
    """A ResNet: torchvision's, or one with every width divided or with the stride elsewhere.

    Args:
        depth: 18 or 50.
        width_per_group: of the bottlenecks, before `divisor`.
        divisor: of all widths, those of the stem and of the stages' outputs too.
        stride_in_1x1: as in the networks of MSRA.
        affine: BatchNorm has no statistics, only a scale and an offset.
    """

    depth: int = 50
    width_per_group: int = 16
    divisor: int = 1
    stride_in_1x1: bool = False
    affine: bool = False

    @functools.cache  # noqa: B019  a handful of them, for the whole session
    def build(self, seed: int) -> nn.Module:
        """The network in eval mode, with BatchNorm layers that have seen data."""
        network = self.skeleton().to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                elif isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.1)
                    nn.init.normal_(module.running_mean, std=0.1)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)
                    module.num_batches_tracked.fill_(1000)
                    if self.affine:
                        # What Detectron2's own reader of such files fills in.
                        module.running_mean.zero_()
                        module.running_var.fill_(1)
        return network

    def skeleton(self) -> nn.Module:
        """The network in eval mode, for values to come."""
        block, blocks = {18: (BasicBlock, [2, 2, 2, 2]), 50: (Bottleneck, [3, 4, 6, 3])}[self.depth]
        with without_values():
            network = ResNet(block, blocks, width_per_group=self.width_per_group)
            network.fc = nn.Identity()
            if self.divisor > 1:
                _divide_widths(network, self.divisor)
        if self.stride_in_1x1:
            for stage in (network.layer2, network.layer3, network.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        return network.eval().requires_grad_(False)

    def state(self, seed: int) -> State:
        """Torchvision name -> tensor, ``num_batches_tracked`` too, no ``fc``."""
        return dict(self.build(seed).state_dict())

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return (512 if self.depth == 18 else 2048) // self.divisor

    def detectron2_settings(self) -> dict[str, Any]:
        """What Detectron2's config has to say to build the same network."""
        return {
            "MODEL.RESNETS.DEPTH": self.depth,
            "MODEL.RESNETS.WIDTH_PER_GROUP": self.width_per_group // self.divisor,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 64 // self.divisor,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": (64 if self.depth == 18 else 256) // self.divisor,
            "MODEL.RESNETS.STRIDE_IN_1X1": self.stride_in_1x1,
        }


NARROW = Network(divisor=4)
R18 = Network(depth=18, width_per_group=64)
R50 = Network(width_per_group=64)
SLIM_18 = Network(depth=18, width_per_group=64, divisor=4)  # no builder of Detectron2 makes it
# SwAV's w2 .. w5, VICReg's and BYOL's x2 scale every width, not only the bottlenecks'. A quarter
# needs the same of a converter as a double, at a hundredth of the size.
QUARTER = Network(width_per_group=64, divisor=4)
MSRA = Network(divisor=4, stride_in_1x1=True, affine=True)
STRIDE_IN_1X1 = Network(divisor=4, stride_in_1x1=True)

QUERY, KEY = 1, 2  # seeds


def _divide_widths(network: nn.Module, divisor: int) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            channels = module.in_channels if module.in_channels == 3 else None
            new = nn.Conv2d(
                channels or module.in_channels // divisor,
                module.out_channels // divisor,
                module.kernel_size,
                module.stride,
                module.padding,
                bias=False,
            )
        elif isinstance(module, nn.BatchNorm2d):
            new = nn.BatchNorm2d(module.num_features // divisor)
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)


def detectron2_name(name: str) -> str:
    """``layer1.0.bn2.bias`` -> ``res2.0.conv2.norm.bias``"""
    module, _, leaf = name.rpartition(".")
    module = re.sub(r"^(conv1|bn1)$", r"stem.\1", module)
    module = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", module)
    module = re.sub(r"downsample\.0$", "shortcut", module)
    module = re.sub(r"downsample\.1$", "shortcut.norm", module)
    module = re.sub(r"bn(\d)$", r"conv\1.norm", module)
    return f"{module}.{leaf}"


def as_detectron2(state: Mapping[str, Tensor]) -> State:
    """What has to be in the weights converted from `state`: float32, without trackers."""
    return {
        detectron2_name(name): tensor.float()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def config(network: Network) -> CfgNode:
    """Detectron2's defaults for this network; nothing is frozen and every stage is an output."""
    cfg = get_cfg()
    settings = {
        **network.detectron2_settings(),
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": list(STAGES),
        "MODEL.BACKBONE.FREEZE_AT": 0,
    }
    cfg.merge_from_list([word for pair in settings.items() for word in pair])
    return cfg


@functools.lru_cache(maxsize=2)
def _detectron2_backbone(network: Network) -> nn.Module:
    with without_values():
        backbone = build_resnet_backbone(config(network), ShapeSpec(channels=3)).eval()
    return backbone.to_empty(device="cpu")


@functools.cache
def _original(network: Network) -> nn.Module:
    """A network that takes the weights of each file."""
    return network.skeleton()


def forget_networks() -> None:
    """Those that are kept take hundreds of megabytes."""
    for kept in (Network.build, _detectron2_backbone, _original):
        kept.cache_clear()


@torch.inference_mode()
def parity(network: Network, state: State, weights: Path) -> float:
    """Largest relative difference, max|a - b| / max|a|, of the features of res2 .. res5 for one
    image: of torchvision's `network` with `state`, and of Detectron2's with the converted weights.
    """
    original, backbone = _original(network), _detectron2_backbone(network)
    for tensor in backbone.state_dict().values():
        tensor.fill_(1)  # the last file's weights shall not pass for this one's
    original.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    DetectionCheckpointer(backbone).load(str(weights))
    # Odd sides: a padding or a stride in the wrong place shows at the borders.
    image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    features = backbone(image)
    x = original.maxpool(original.relu(original.bn1(original.conv1(image))))
    differences = []
    for stage, layer in zip(STAGES, ("layer1", "layer2", "layer3", "layer4"), strict=True):
        x = getattr(original, layer)(x)
        differences.append(float((x - features[stage]).abs().max() / x.abs().max()))
    return max(differences)
