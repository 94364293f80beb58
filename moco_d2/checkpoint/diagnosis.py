"""Why a checkpoint holds no ResNet that Detectron2 can build, and what to do about it."""

import re
from collections.abc import Mapping

from torch import Tensor

from moco_d2.checkpoint.dialects import STATISTICS
from moco_d2.checkpoint.mapping import Architecture

_NAMED = 3  # names that a sentence can hold


def unrecognized(states: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Of a file without any block of a ResNet: what it seems to be."""
    names = [name for state in states.values() for name in state]
    if any("attn.qkv" in name or name.endswith("cls_token") for name in names):
        return (
            "it is a vision transformer (ViT), which Detectron2's ResNet recipes cannot load; give "
            "a ResNet's checkpoint, or use Detectron2's ViTDet project"
        )
    if reason := _other_network(names):
        return reason
    return (
        f"no ResNet backbone among its {len(names)} tensors; give a checkpoint with a complete "
        "ResNet in it (tools/convert.py --list shows the known kinds)"
    )


def incomplete(
    source: str,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    *,
    stem: Tensor | None,
    missing: list[str],
    misshapen: list[str],
    unknown: list[str],
) -> str:
    """Of a network that comes close to a ResNet: what is different.

    Args:
        source: whose file, and where in it.
        architecture: what it comes closest to.
        state: all tensors beside it, by name.
        stem: of the network, if it has one of torchvision's name.
        missing, misshapen, unknown: names.
    """
    if reason := _other_network(list(state)) or _other_stem(stem):
        return reason
    problems = [
        f"{len(group)} {what} ({_first(group)})"
        for what, group in (
            ("missing", missing),
            ("of another shape", misshapen),
            ("unknown", unknown),
        )
        if group
    ]
    if missing and all(name.endswith(STATISTICS) for name in missing):
        advice = "save the network's state_dict(), which includes the BatchNorm statistics"
    elif missing or misshapen:
        advice = "give the complete, unmodified checkpoint of a torchvision ResNet"
    else:
        advice = "if they are no part of the backbone, leave them behind with --drop PATTERN"
    expected = architecture.tensor_count
    found = expected - len(missing) - len(misshapen)
    return (
        f"read as {source}, {architecture}: {found} of {expected} tensors found, "
        f"{', '.join(problems)}; {advice}"
    )


def _other_network(names: list[str]) -> str | None:
    """Blocks or stems that are not torchvision's, by their names."""
    if any("mixing_conv" in name or ".conv2.attn." in name for name in names):
        return (
            "its blocks have selective kernels (SK-ResNet), which Detectron2 cannot build; give "
            "the sk0 checkpoint of the same method"
        )
    if any(re.search(r"(^|\.)conv1\.3\.weight$", name) for name in names):
        if any(re.search(r"downsample\.2\.running_mean$", name) for name in names):
            return (
                "it is a ResNet-D: a deep stem, and average pooling in the shortcuts, which "
                "Detectron2 cannot build; pretrain or give a plain ResNet"
            )
        return (
            "it has a deep stem of three 3x3 convolutions, which Detectron2's ResNet recipes do "
            "not have; pretrain or give a ResNet with one 7x7 convolution there"
        )
    return None


def _other_stem(stem: Tensor | None) -> str | None:
    if stem is None or stem.ndim != 4:
        return None
    shape = list(stem.shape)
    if shape[1] in (1, 2):
        return (
            f"its stem {shape} takes {shape[1]} of the channels of a Lab image, and Detectron2 "
            "gives the network RGB or BGR; give a checkpoint trained on color images"
        )
    if shape[2:] == [3, 3]:
        return (
            f"its stem {shape} is the 3x3 convolution for small images (CIFAR), which Detectron2's "
            "ResNet does not have; pretrain with torchvision's 7x7 stem"
        )
    return None


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
