"""Builds a backbone from any checkpoint that the converter reads, or with random weights."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet

from moco_d2.checkpoint.families import IMAGENET, Input
from moco_d2.checkpoint.hub_names import origin_of
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.checkpoint.pretraining import pretraining_run
from moco_d2.checkpoint.recognition import BRANCHES, extract
from moco_d2.checkpoint.stated import read_stated
from moco_d2.checkpoint.weights_by_name import source_file
from moco_d2.errors import UserError, closest
from moco_d2.files import sha256
from moco_d2.resnet import BASIC_DEPTHS, BOTTLENECK_DEPTHS

RANDOM = "random"  # the source of a network without pretraining
_SAME_INPUT = 1e-4  # files state the same mean and std with 3 digits or more
RESNETS = tuple(f"resnet{depth}" for depth in (*BASIC_DEPTHS, *BOTTLENECK_DEPTHS))


@dataclass(frozen=True)
class Origin:
    """The origin of a backbone, in JSON types.

    Attributes:
        source: The file name, the published name (``moco://v2_800ep``), the name on the hub with
            the commit (``hf://user/repo/file@COMMIT``) or ``random``.
        sha256: The sha256 of the file; None for a random network.
        family: The checkpoint family, a name in `families.FAMILIES`, or ``random``.
        branch: The encoder of a MoCo checkpoint, ``query`` or ``key``; None for a random network.
        pretraining: The run that made it, see pretraining.pretraining_run; None if it does not
            come from tools/pretrain.py.
    """

    source: str
    sha256: str | None
    family: str
    branch: str | None
    pretraining: dict[str, Any] | None = None


def load_backbone(
    source: str | Path, *, branch: str = "query"
) -> tuple[nn.Module, Architecture, Origin]:
    """Return a torchvision ResNet with the checkpoint's weights.

    It maps images (N, 3, H, W) to features (N, D), where D is the architecture's ``num_features``.
    Its ``fc`` is the identity. It is on the CPU, in float32 and in training mode. The images have
    torchvision's input, whatever that of the checkpoint is.

    Args:
        source: A file, or a published checkpoint by name (``moco://v2_800ep``).
        branch: The encoder of a MoCo checkpoint, ``query`` or ``key``.

    Raises:
        UserError: If the checkpoint is unreadable, unknown, incomplete or damaged, or has no such
            branch.
    """
    if branch not in BRANCHES:
        raise UserError(f"--branch must be {' or '.join(BRANCHES)}, got {branch!r}")
    path = source_file(source)
    checkpoint = load_checkpoint(path)
    try:
        extracted, architecture = extract(
            checkpoint, branch, file_name=path.name, stated=read_stated(path)
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    network = _without_head(build_torchvision(architecture))
    # Strict, except for the counters of batches, which only the network has.
    network.load_state_dict({**network.state_dict(), **extracted.tensors})
    take_torchvisions_input(network, extracted.traits.input)
    return network, architecture, origin_of_file(source, path, checkpoint, extracted.family, branch)


def origin_of_file(
    source: str | Path, path: Path, checkpoint: dict[Any, Any], family: str, branch: str
) -> Origin:
    """Return the origin of a network that was read from `path`, the file of `source`."""
    name = str(source) if "://" in str(source) else path.name
    if (fetched := origin_of(path)) is not None:
        name = "@".join((fetched["name"].rpartition("@")[0], fetched.get("commit", "unknown")))
    return Origin(name, sha256(path), family, branch, pretraining_run(checkpoint))


def take_torchvisions_input(network: nn.Module, pixels: Input) -> None:
    """Let a network with another input take torchvision's: RGB, ImageNet's mean and std.

    Args:
        network: Images (N, 3, H, W) of its own input -> anything. It gets a hook.
        pixels: Its own input.
    """
    order = [0, 1, 2] if pixels.format == IMAGENET.format else [2, 1, 0]
    scale, shift = [], []
    for i, mean, std in zip(order, pixels.pixel_mean, pixels.pixel_std, strict=True):
        scale.append(IMAGENET.pixel_std[i] / std)
        shift.append((IMAGENET.pixel_mean[i] - mean) / std)
    if order[0] == 0 and max(map(abs, (*(s - 1 for s in scale), *shift))) < _SAME_INPUT:
        return

    def to_own_input(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        images = inputs[0][:, order]
        factor, term = (images.new_tensor(values)[:, None, None] for values in (scale, shift))
        return images * factor + term

    network.register_forward_pre_hook(to_own_input)


def random_backbone(
    arch: str, *, known: tuple[str, ...] = RESNETS
) -> tuple[nn.Module, Architecture, Origin]:
    """Return the same network with random weights from torch's generator.

    Args:
        arch: A name in RESNETS.
        known: The architectures that an error lists.

    Raises:
        UserError: If there is no such architecture.
    """
    if arch not in RESNETS:
        raise UserError(
            f"--arch {arch!r} is not one of {', '.join(known)}; "
            f"{closest(arch, known) or 'choose one of them'}"
        )
    architecture = Architecture(int(re.sub(r"\D", "", arch)))
    network = _without_head(build_torchvision(architecture))
    return network, architecture, Origin(RANDOM, None, RANDOM, None)


def _without_head(network: ResNet) -> nn.Module:
    network.add_module("fc", nn.Identity())
    return network
