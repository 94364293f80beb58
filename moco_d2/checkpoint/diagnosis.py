"""Explains why a checkpoint holds no ResNet that Detectron2 can build, and what to do about it."""

import re
from collections.abc import Mapping

from torch import Tensor

from moco_d2.checkpoint.dialects import STATISTICS
from moco_d2.checkpoint.mapping import Architecture, count_blocks, expected_tensors
from moco_d2.resnet import BASIC_DEPTHS, BOTTLENECK_DEPTHS

_NAMED = 3  # most names in a sentence
_CHANNELS = 3
# What a number of channels usually is. CMC trains one network on L and another on ab of Lab images.
_KINDS = {
    1: "gray images, or L of Lab images",
    2: "ab of Lab images",
    4: "RGB and depth or infrared",
    13: "all bands of Sentinel-2",
}


def unrecognized(states: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return what a file without any ResNet block seems to be, as an error message."""
    names = [name for state in states.values() for name in state]
    if any(name.endswith("cls_token") for name in names) and not any("attn" in n for n in names):
        return (
            f"it has the class token of a vision transformer (ViT) and none of its blocks among "
            f"{len(names)} tensors; use the checkpoint of the whole network"
        )
    if any("attn.qkv" in name or name.endswith("cls_token") for name in names):
        return (
            "it is a vision transformer (ViT), and here only ResNets can be read; use a ResNet's "
            "checkpoint, or convert a plain ViT with tools/convert.py (docs/checkpoints.md)"
        )
    if reason := _other_network(names):
        return reason
    reason = f"no ResNet backbone among its {len(names)} tensors"
    if not names:
        reason = "it holds no tensors of a network, at most the state of an optimizer"
    return (
        f"{reason}; use a checkpoint with a complete "
        "ResNet or plain ViT in it (tools/convert.py --list shows the known kinds)"
    )


def incomplete(
    source: str,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    *,
    tensors: Mapping[str, Tensor],
    missing: list[str],
    misshapen: list[str],
    unknown: list[str],
    inside: list[str],
) -> str:
    """Return how a network differs from the closest ResNet, as an error message.

    Args:
        source: The family and the location in the file.
        architecture: The closest ResNet.
        state: All tensors in the same dict, by name.
        tensors: The network's tensors by torchvision's names.
        missing: Names of missing tensors.
        misshapen: Names of tensors with another shape.
        unknown: Names of tensors that a ResNet does not have.
        inside: Those of them that are in the stem or in a stage.
    """
    reason = (
        _other_network(list(state))
        or _other_stem(tensors.get("conv1.weight"))
        or _other_depth(tensors)
    )
    if reason:
        return reason
    problems = [
        f"{len(group)} {problem} ({_first(group)})"
        for problem, group in (
            ("missing", missing),
            ("of another shape", misshapen),
            ("unknown", unknown),
        )
        if group
    ]
    if inside and not missing and not misshapen:
        advice = (
            "they are among its layers, so it is another architecture; use the checkpoint of a "
            "plain ResNet"
        )
    elif not any(name.endswith(STATISTICS) for name in state):
        advice = (
            "the network has a norm without statistics (GroupNorm), which Detectron2's ResNet "
            "recipes do not build, or the file lacks the BatchNorm statistics: use a network with "
            "BatchNorm, and save its whole state_dict()"
        )
    elif missing and all(name.endswith(STATISTICS) for name in missing):
        advice = "save the network's state_dict(), which includes the BatchNorm statistics"
    elif missing or misshapen:
        advice = "use the complete, unmodified checkpoint of a torchvision ResNet"
    else:
        advice = "if they are no part of the backbone, leave them out with --drop PATTERN"
    expected = len(expected_tensors(architecture))
    correct = expected - len(missing) - len(misshapen)
    return (
        f"read as {source}, {architecture}: {correct} of {expected} tensors found, "
        f"{', '.join(problems)}; {advice}"
    )


def _other_network(names: list[str]) -> str | None:
    """Return an error message for blocks or stems that torchvision lacks, by their names."""
    if any("mixing_conv" in name or ".conv2.attn." in name for name in names):
        return (
            "its blocks have selective kernels (SK-ResNet), which Detectron2 cannot build; use "
            "the sk0 checkpoint of the same method"
        )
    if any(re.search(r"(^|\.)conv1\.3\.weight$", name) for name in names):
        if any(re.search(r"downsample\.2\.running_mean$", name) for name in names):
            return (
                "it is a ResNet-D (deep stem, average pooling in the shortcuts), which Detectron2 "
                "cannot build; pretrain or use a plain ResNet"
            )
        return (
            "it has a deep stem of three 3x3 convolutions, which Detectron2's ResNet recipes do "
            "not have; pretrain or use a ResNet with one 7x7 convolution instead"
        )
    return None


def _other_depth(tensors: Mapping[str, Tensor]) -> str | None:
    """Return an error message for stages of whole blocks that no known ResNet has."""
    blocks, is_bottleneck = count_blocks(tensors)
    known = BOTTLENECK_DEPTHS if is_bottleneck else BASIC_DEPTHS
    conv1 = {
        f"layer{i}.{n}.conv1.weight" for i, count in enumerate(blocks, 1) for n in range(count)
    }
    if 0 in blocks or blocks in known.values() or not conv1 <= tensors.keys():
        return None
    layers = 3 if is_bottleneck else 2
    depth = 2 + layers * sum(blocks)  # with the stem and the classifier
    return (
        f"its stages have {', '.join(map(str, blocks))} blocks of {layers} convolutions, so it is "
        f"a ResNet-{depth}, but Detectron2 builds ResNet-18, 34, 50, 101 and 152; use one of these"
    )


def _other_stem(stem: Tensor | None) -> str | None:
    if stem is None or stem.ndim != 4:
        return None
    shape = list(stem.shape)
    if shape[1] != _CHANNELS and shape[2] == shape[3]:
        kind = _KINDS.get(shape[1], "images of other channels")
        return (
            f"its stem {shape} takes {shape[1]} channel(s) ({kind}), but Detectron2's images are "
            f"RGB or BGR, which have {_CHANNELS}; use a checkpoint trained on color images"
        )
    if shape[2:] == [3, 3]:
        return (
            f"its stem {shape} is the 3x3 convolution for small images (CIFAR), which Detectron2's "
            "ResNet does not have; pretrain with torchvision's 7x7 stem"
        )
    return None


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
