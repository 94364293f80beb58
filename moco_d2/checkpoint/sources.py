"""Whose checkpoint is it, and is all of it there? One small recogniser class per family.

A family says where its backbone is and which other tensors it is known to carry. Nothing is ever
ignored quietly: a tensor is a backbone tensor, a declared companion, or the reason for a refusal.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor

from moco_d2.checkpoint.mapping import Architecture, expected_tensors
from moco_d2.errors import UserError
from moco_d2.resnet import BASIC_DEPTHS, BOTTLENECK_DEPTHS, STEM_WIDTH

_BACKBONE_NAME = re.compile(r"(conv1|bn1|layer[1-4])\.")
_BLOCK_NAME = re.compile(r"layer([1-4])\.(\d+)\.")
_WRAPPERS = ("module.", "")  # DistributedDataParallel prepends the first
# Dicts inside dicts: deeper than any checkpoint, and an end for one that contains itself.
_NESTING = 4


@dataclass(frozen=True)
class Extracted:
    """A backbone found in a checkpoint.

    Args:
        family: name of the checkpoint family.
        prefix: what stood before the torchvision names.
        tensors: torchvision name -> tensor, everything under the prefix that is not declared junk.
        dropped: group of known companions -> how many tensors of it there were.
        leftover: names in the checkpoint that the family does not account for.
    """

    family: str
    prefix: str
    tensors: dict[str, Tensor]
    dropped: dict[str, int]
    leftover: list[str]


class Family:
    """Torchvision names behind a prefix, in ``checkpoint["state_dict"]`` or at the top level."""

    name: ClassVar[str]
    # What stands before the torchvision names, inside a DistributedDataParallel or without one.
    backbone: str
    # Patterns (fnmatch) of the known companions, likewise.
    junk: tuple[str, ...]

    def prefixes(self) -> list[str]:
        """The prefixes this family accepts."""
        return [wrapper + self.backbone for wrapper in _WRAPPERS]

    def recognise(self, checkpoint: Mapping[Any, Any]) -> Extracted | None:
        """The backbone and what was beside it, or None if this is not the family."""
        nested = checkpoint.get("state_dict")
        state = nested if isinstance(nested, dict) else checkpoint
        for wrapper in _WRAPPERS:
            prefix = wrapper + self.backbone
            if any(_BACKBONE_NAME.match(_without(prefix, key)) for key in state):
                return self._sort(state, wrapper, prefix)
        return None

    def _sort(self, state: Mapping[Any, Any], wrapper: str, prefix: str) -> Extracted:
        tensors: dict[str, Tensor] = {}
        dropped: Counter[str] = Counter()
        leftover: list[str] = []
        for key, value in state.items():
            name = _without(prefix, key)
            junk = next(
                (wrapper + p for p in self.junk if fnmatchcase(str(key), wrapper + p)), None
            )
            if junk is not None:
                dropped[junk] += 1
            elif not name or not isinstance(value, Tensor):
                leftover.append(str(key))
            elif name.endswith(".num_batches_tracked"):
                dropped["*.num_batches_tracked"] += 1
            else:
                tensors[name] = value
        return Extracted(self.name, prefix, tensors, dict(dropped), leftover)


class OfficialMoCo(Family):
    """The authors' main_moco.py (v1 and v2), PCL, and our own pretraining, memory bank included."""

    name = "moco"

    def __init__(self, branch: str = "query"):
        """
        Args:
            branch: whose weights are wanted, ``query`` or ``key``.
        """
        own, other = f"encoder_{branch[0]}", "encoder_k" if branch == "query" else "encoder_q"
        self.backbone = f"{own}."
        self.junk = (f"{other}.*", "queue", "queue_ptr", "bank", f"{own}.fc.*")


class Torchvision(Family):
    """torchvision's own files, PyTorch's ImageNet example, and our own supervised pretraining."""

    name = "torchvision"
    backbone = ""
    junk = ("fc.*",)


FAMILIES: tuple[Family, ...] = (OfficialMoCo(), Torchvision())
BRANCHES = {"query": FAMILIES, "key": (OfficialMoCo("key"),)}


def extract(checkpoint: Mapping[Any, Any], branch: str = "query") -> tuple[Extracted, Architecture]:
    """The backbone in a checkpoint, complete and sound, and what it is.

    Args:
        branch: a key of BRANCHES: which of a contrastive checkpoint's two encoders.

    Raises:
        UserError: no family recognises the checkpoint, it is converted already, a tensor is
            missing, misshapen or unaccounted for, or a value is not a finite number.
    """
    if any(name.endswith("stem.conv1.weight") for _, name, _ in _walk(checkpoint)):
        raise UserError("this file is in Detectron2's format already; use it as MODEL.WEIGHTS")
    for family in BRANCHES[branch]:
        extracted = family.recognise(checkpoint)
        if extracted is not None:
            architecture = infer_architecture(extracted.tensors)
            _check_complete(extracted, architecture)
            _check_values(extracted)
            return extracted, architecture
    if branch == "key":
        raise UserError("the checkpoint has no key encoder; leave out --branch key")
    raise UserError(_unrecognised(checkpoint))


def infer_architecture(tensors: Mapping[str, Tensor]) -> Architecture:
    """The torchvision ResNet that these names and shapes come closest to."""
    blocks = [0, 0, 0, 0]
    for name in tensors:
        if match := _BLOCK_NAME.match(name):
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    bottleneck = any(_BLOCK_NAME.match(name) and ".conv3." in name for name in tensors)
    depths = BOTTLENECK_DEPTHS if bottleneck else BASIC_DEPTHS
    depth = min(
        depths, key=lambda d: sum(abs(a - b) for a, b in zip(blocks, depths[d], strict=True))
    )
    stem = tensors.get("conv1.weight")
    factor = 1 if stem is None or stem.ndim != 4 else max(stem.shape[0] // STEM_WIDTH, 1)
    conv = tensors.get("layer1.0.conv2.weight")
    if not bottleneck or conv is None or conv.ndim != 4 or 0 in conv.shape:
        return Architecture(depth, width_factor=factor)
    # A 3x3 convolution of G groups has shape [width, width / G, 3, 3].
    width, width_per_group = conv.shape[:2]
    groups = max(width // width_per_group, 1)
    return Architecture(depth, max(width_per_group // factor, 1), groups, factor)


def _check_complete(extracted: Extracted, architecture: Architecture) -> None:
    """Every expected tensor by name and shape, and nothing else."""
    expected = expected_tensors(architecture)
    prefix, tensors = extracted.prefix, extracted.tensors
    missing = [prefix + name for name in expected if name not in tensors]
    misshapen = [
        f"{prefix + name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    leftover = [prefix + name for name in tensors if name not in expected] + extracted.leftover
    if not (missing or misshapen or leftover):
        return
    found = len(expected) - len(missing) - len(misshapen)
    problems = [
        f"{len(group)} {what} ({_first(group)})"
        for what, group in (
            ("missing", missing),
            ("of another shape", misshapen),
            ("unknown", leftover),
        )
        if group
    ]
    if missing and all(name.endswith((".running_mean", ".running_var")) for name in missing):
        advice = "save the network's state_dict(), which includes the BatchNorm statistics"
    elif missing or misshapen:
        advice = "give the complete, unmodified checkpoint of a torchvision ResNet"
    else:
        advice = "remove the unknown entries if they are no part of the backbone"
    raise UserError(
        f"read as family {extracted.family!r} (prefix {prefix!r}), {architecture}: "
        f"{found} of {len(expected)} tensors found, {', '.join(problems)}; {advice}"
    )


def _check_values(extracted: Extracted) -> None:
    for name, tensor in extracted.tensors.items():
        key = extracted.prefix + name
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or not tensor.is_floating_point():
            raise UserError(
                f"{key} is not a dense floating-point tensor ({tensor.dtype}); "
                "give the unquantised checkpoint"
            )
        finite = torch.isfinite(tensor.float())
        if not finite.all():
            bad = int((~finite).sum())
            raise UserError(
                f"{key} holds {bad} NaN or infinite values: the pretraining diverged or the file "
                "is damaged; give an earlier checkpoint"
            )


def _unrecognised(checkpoint: Mapping[Any, Any]) -> str:
    accepted = ", ".join(
        f"{prefix!r} ({family.name})" for family in FAMILIES for prefix in family.prefixes()
    )
    stems = [
        (container, name, list(tensor.shape))
        for container, name, tensor in _walk(checkpoint)
        if tensor.ndim == 4 and tuple(tensor.shape[1:]) == (3, 7, 7)
    ]
    if not stems:
        count = sum(1 for _ in _walk(checkpoint))
        return (
            f"no ResNet backbone among its {count} tensors (no convolution [w, 3, 7, 7]); "
            f"give a checkpoint with torchvision names behind one of the prefixes {accepted}"
        )
    seen = "; ".join(
        (f"prefix {name.removesuffix('conv1.weight')!r}" if name.endswith("conv1.weight") else name)
        + (f" of checkpoint[{container!r}]" if container else "")
        for container, name, _ in stems[:3]
    )
    return (
        f"a ResNet stem {stems[0][2]} is there under {seen}, where no known family has it; give "
        f"a dict or checkpoint['state_dict'] with one of the accepted prefixes: {accepted}"
    )


def _walk(
    node: Mapping[Any, Any], container: str = "", depth: int = _NESTING
) -> Iterator[tuple[str, str, Tensor]]:
    """(container, key, tensor) of nested dicts; not of an optimizer, whose keys are numbers."""
    for key, value in node.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield container, key, value
        elif isinstance(value, dict) and depth > 1:
            yield from _walk(value, f"{container}.{key}" if container else key, depth - 1)


def _without(prefix: str, key: Any) -> str:
    """`key` after `prefix`; empty if it does not start with it."""
    return key[len(prefix) :] if isinstance(key, str) and key.startswith(prefix) else ""


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
