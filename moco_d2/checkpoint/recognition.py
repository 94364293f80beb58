"""Finds the complete backbone in a checkpoint by its structure.

Every tensor's name is read in every dialect. Tensors with the same prefix form one candidate. Only
a candidate with every tensor of a ResNet, by name and shape, is converted. The family (families.py)
decides the rest. No tensor is ignored silently: it is part of the backbone, a known companion, or
the reason for an error.
"""

import glob
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from moco_d2.checkpoint.diagnosis import incomplete, unrecognized
from moco_d2.checkpoint.dialects import Dialect, split
from moco_d2.checkpoint.families import (
    FAMILIES,
    IMAGENET,
    MSRA,
    RUN,
    Family,
    Input,
    Traits,
    input_of,
    without_wrappers,
)
from moco_d2.checkpoint.mapping import Architecture, expected_tensors, infer_architecture
from moco_d2.checkpoint.stated import NOTHING, Stated, check_plain, named_traits
from moco_d2.checkpoint.tensor_dicts import tensors_by_dict
from moco_d2.errors import UserError

BRANCHES = ("query", "key")
MOST_NETWORKS = 32  # no real file has more, and each network takes time
_TRACKER = ".num_batches_tracked"
_DIGITS = 3  # of a mean, behind the point; float32 has no more exact ones
# Mean and std of the pixels as tensors: of Detectron2's models, and of OpenMMLab's preprocessors.
_CONSTANTS = (
    ("pixel_mean", "pixel_std"),
    ("data_preprocessor.mean", "data_preprocessor.std"),
)
# Numbers of 8 bits are those of a quantized network, whose scales would be lost.
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Extracted:
    """A backbone from a checkpoint.

    Args:
        family: The name of the checkpoint family.
        container: The dotted path of its dict; empty for the file's top-level dict.
        prefix: The text before the backbone's names.
        dialect: The name of the dialect.
        tensors: Torchvision name -> tensor, for the complete backbone.
        dropped: Group of known companions -> the number of its tensors.
        traits: The input format, the stride and caveats.
    """

    family: str
    container: str
    prefix: str
    dialect: str
    tensors: dict[str, Tensor]
    dropped: dict[str, int]
    traits: Traits


@dataclass
class _Candidate:
    """Tensors of a ResNet whose names have the same prefix."""

    container: str
    prefix: str
    dialect: Dialect
    names: dict[str, str] = field(default_factory=dict)  # torchvision name -> name in the file
    tensors: dict[str, Tensor] = field(default_factory=dict)
    trackers: int = 0
    family: Family = FAMILIES[-1]
    role: str = "query"

    def is_inside(self, key: str) -> bool:
        """Return whether a tensor of the file is in the stem or in a stage of this network."""
        return key.startswith(self.prefix) and self.dialect.is_inside(key[len(self.prefix) :])

    def read(self, state: Mapping[str, Tensor]) -> None:
        for name, key in self.names.items():
            if name.endswith(_TRACKER):
                self.trackers += 1
            else:
                self.tensors[name] = self.dialect.as_torchvision(name, state[key])
        self.tensors.update(self.dialect.absent(self.tensors))


def extract(
    checkpoint: Mapping[Any, Any],
    branch: str = "query",
    *,
    file_name: str = "",
    stated: Stated = NOTHING,
    drop: Iterable[str] = (),
) -> tuple[Extracted, Architecture]:
    """Return the complete backbone of a checkpoint, and its architecture.

    Args:
        checkpoint: The file's dict.
        branch: ``query``, the network that gradients train (online, student), or ``key``, its
            moving average (momentum, target, teacher).
        file_name: The checkpoint's name. Some families are recognized only by it.
        stated: What the files beside the checkpoint say, the result of stated.read_stated.
        drop: Patterns of tensors to leave out besides the family's known companions.

    Raises:
        UserError: If the branch has no complete ResNet, or two different ones; if a tensor is
            missing, has another shape or is unknown; if a name says that the network is no plain
            ResNet; or if a value is not a finite number.
    """
    states = tensors_by_dict(checkpoint)
    candidates = [c for name, state in states.items() for c in _candidates(name, state)]
    if not candidates:
        raise UserError(unrecognized(states))
    if len(candidates) > MOST_NETWORKS:
        raise UserError(
            f"it holds {len(candidates)} networks, or parts of them; save only the one you need: "
            "torch.save({'state_dict': model.state_dict()}, file)"
        )
    for candidate in candidates:
        candidate.read(states[candidate.container])
        _assign(candidate, checkpoint, states[candidate.container], file_name)
    chosen = _choose(candidates, branch)
    traits = _traits(chosen, checkpoint, states[chosen.container], file_name, stated)
    architecture = infer_architecture(chosen.tensors, traits.stride_in_1x1)
    dropped, leftover = _account(chosen, candidates, states, tuple(drop))
    _check_complete(chosen, architecture, states[chosen.container], leftover)
    check_plain(checkpoint, file_name, stated)
    check_values(chosen.names, chosen.tensors)
    if chosen.role == "key" and branch == "query":
        caveat = f"the only network in it is a moving average by its name ({chosen.prefix})"
        traits = replace(traits, caveats=(*traits.caveats, caveat))
    return (
        Extracted(
            chosen.family.name,
            chosen.container,
            chosen.prefix,
            chosen.dialect.name,
            chosen.tensors,
            dropped,
            traits,
        ),
        architecture,
    )


def _candidates(container: str, state: Mapping[str, Tensor]) -> list[_Candidate]:
    candidates: dict[tuple[str, str], _Candidate] = {}
    for key in state:
        for dialect, prefix, name in split(key):
            candidate = candidates.get((dialect.name, prefix))
            if candidate is None:
                candidate = _Candidate(container, prefix, dialect)
                candidates[dialect.name, prefix] = candidate
            candidate.names[name] = key
    return [
        candidate
        for candidate in candidates.values()
        if any(name.startswith("layer") for name in candidate.names)
    ]


def _assign(
    candidate: _Candidate,
    checkpoint: Mapping[Any, Any],
    state: Mapping[str, Tensor],
    file_name: str,
) -> None:
    names = [without_wrappers(name) for name in state]
    for family in FAMILIES:
        role = family.role(candidate.container, candidate.prefix)
        if role is None or candidate.dialect not in family.dialects:
            continue
        if family.owns(checkpoint, names, file_name):
            candidate.family, candidate.role = family, role
            return


def _choose(candidates: list[_Candidate], branch: str) -> _Candidate:
    of_branch = [c for c in candidates if c.role == branch]
    if branch == "key" and not of_branch:
        raise UserError("the checkpoint has no key encoder; leave out --branch key")
    # A moving average is used if it is the only network, not if the query network is damaged.
    of_branch = of_branch or candidates
    complete = [c for c in of_branch if _is_complete(c)]
    if not complete:
        return max(of_branch, key=lambda c: len(c.tensors))
    first = min(complete, key=_preference)
    for other in complete:
        if other is not first and not _same(first, other):
            raise UserError(
                f"it holds two different networks, under {_location(first)!r} and "
                f"{_location(other)!r}; save only the one you need: "
                "torch.save({'state_dict': model.state_dict()}, file)"
            )
    return first


def _traits(
    chosen: _Candidate,
    checkpoint: Mapping[Any, Any],
    state: Mapping[str, Tensor],
    file_name: str,
    stated: Stated,
) -> Traits:
    """Return what the file, its name and the files beside it say; the most certain counts.

    Raises:
        UserError: If a file beside it cannot be read, or two of them contradict each other.
    """
    groups = infer_architecture(chosen.tensors).groups
    traits = chosen.family.traits_of(checkpoint, file_name, groups)
    if not traits.certain:
        if traits.input == IMAGENET and not traits.stride_in_1x1:
            traits = named_traits(checkpoint, file_name, stated, groups) or traits
        for config in chosen.family.configs:
            if reason := stated.unreadable.get(config):
                raise UserError(
                    f"the {config} beside it, which may state its input and its network, cannot "
                    f"be read ({reason}); correct it, or move it away"
                )
        if chosen.family.configs == RUN:
            traits = stated.run or traits
        elif chosen.family.configs:
            traits = replace(
                traits,
                input=stated.input or traits.input,
                stride_in_1x1=traits.stride_in_1x1 or stated.stride_in_1x1,
                caveats=() if stated.input else traits.caveats,
            )
    return _with_constants(state, traits)


def _with_constants(state: Mapping[str, Tensor], traits: Traits) -> Traits:
    """Return traits with the mean and std that a detector or a preprocessor has as tensors."""
    by_name = {without_wrappers(name): name for name in state}
    for mean, std in _CONSTANTS:
        if mean not in by_name or std not in by_name:
            continue
        pixels = input_of(*(_three(state[by_name[name]]) for name in (mean, std)))
        if pixels is None:
            raise UserError(
                f"its tensors {mean} and {std} are no mean and std of pixels; remove them if they "
                "are no part of the network"
            )
        assumed = _rounded(traits.input)
        if _rounded(pixels) == assumed:
            continue
        if traits.certain:
            raise UserError(
                f"its tensors {mean} and {std} say {pixels.pixel_mean} and {pixels.pixel_std}, but "
                f"its config says {assumed[0]} and {assumed[1]}; correct the config"
            )
        # Detectron2's networks with the stride in the 1x1 convolution are those of MSRA.
        is_msra = pixels.pixel_std == MSRA.pixel_std
        stride_in_1x1 = is_msra if mean == "pixel_mean" else traits.stride_in_1x1
        caveat = (
            f"mean and std are those of its tensors {mean} and {std}; from them, the images are "
            f"taken as {pixels.format} and the stride as in the "
            + ("1x1 convolution" if stride_in_1x1 else "3x3 convolution")
        )
        traits = Traits(pixels, stride_in_1x1, (caveat,))
    return traits


def _three(tensor: Tensor) -> list[float]:
    """Return the values of a tensor of mean or std; none if it is another tensor."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.dtype not in _PRECISIONS or tensor.numel() != 3:
        return []
    return [round(value, _DIGITS) for value in tensor.flatten().tolist()]


def _rounded(pixels: Input) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(round(value, _DIGITS) for value in values)
        for values in (pixels.pixel_mean, pixels.pixel_std)
    )


def _is_complete(candidate: _Candidate) -> bool:
    expected = expected_tensors(infer_architecture(candidate.tensors))
    return {n: t.shape for n, t in candidate.tensors.items()} == expected


def _preference(candidate: _Candidate) -> tuple[int, int]:
    location = f"{candidate.container}:{without_wrappers(candidate.prefix)}"
    known = (*candidate.family.query, *candidate.family.key)
    return (
        known.index(location) if location in known else len(known),
        len(candidate.prefix),
    )


def _same(a: _Candidate, b: _Candidate) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        a.tensors[name].shape == b.tensors[name].shape
        and torch.equal(a.tensors[name], b.tensors[name])
        for name in a.tensors
    )


def _location(candidate: _Candidate) -> str:
    return f"{candidate.container}:{candidate.prefix}"


def _account(
    chosen: _Candidate,
    candidates: list[_Candidate],
    states: Mapping[str, Mapping[str, Tensor]],
    drop: tuple[str, ...],
) -> tuple[dict[str, int], list[str]]:
    """Return the number of known companions by group, and the names of unknown tensors."""
    family, prefix = chosen.family, without_wrappers(chosen.prefix)
    groups: dict[str, str | None] = {
        key: f"{other.prefix}*"
        for other in candidates
        if other.container == chosen.container and other is not chosen and _is_complete(other)
        for key in other.names.values()
    }
    groups |= dict.fromkeys(chosen.names.values())
    heads = (other.prefix for other in candidates if other.container == chosen.container)
    patterns = [
        glob.escape(without_wrappers(p)) + h for p in (prefix, *heads) for h in family.heads
    ]
    beside = (*patterns, *family.companions, *drop)
    dropped: Counter[str] = Counter()
    leftover = []
    for key in states[chosen.container]:
        if key in groups:
            group = groups[key]
        else:
            name = without_wrappers(key)
            # An unknown tensor among the layers takes part in what the network computes.
            known = patterns if chosen.is_inside(key) else beside
            group = next((p for p in known if fnmatchcase(name, p)), None)
            if group is None:
                leftover.append(key)
        if group is not None:
            dropped[group] += 1
    for container, state in states.items():
        if container != chosen.container:
            dropped[f"{container or 'top level'}: all"] += len(state)
    if chosen.trackers:
        dropped[f"*{_TRACKER}"] = chosen.trackers
    return dict(dropped), leftover


def _check_complete(
    chosen: _Candidate,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    leftover: list[str],
) -> None:
    """Check that every expected tensor is there, by name and shape, and no other tensor."""
    expected = expected_tensors(architecture)
    tensors = chosen.tensors
    in_file = {name: chosen.names.get(name, chosen.prefix + name) for name in (*expected, *tensors)}
    missing = [in_file[name] for name in expected if name not in tensors]
    misshapen = [
        f"{in_file[name]} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    unknown = [in_file[name] for name in tensors if name not in expected] + leftover
    if missing or misshapen or unknown:
        raise UserError(
            incomplete(
                f"family {chosen.family.name!r} (prefix {chosen.prefix!r})",
                architecture,
                state,
                tensors=tensors,
                missing=missing,
                misshapen=misshapen,
                unknown=unknown,
                inside=[key for key in unknown if chosen.is_inside(key)],
            )
        )


def check_values(names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Check that all values are finite numbers of 16 bits or more.

    Args:
        names: The room's name -> name in the file.
        tensors: The room's name -> tensor.

    Raises:
        UserError: If a tensor has other values.
    """
    for name, tensor in tensors.items():
        key = names.get(name, name)
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.dtype not in _PRECISIONS:
            raise UserError(
                f"{key} is not a dense floating-point tensor of 16 bits or more ({tensor.dtype}); "
                "use the unquantized checkpoint"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{key} repeats its values through its strides; use the original file")
        values = tensor.float()  # a number of 64 bits may exceed Detectron2's 32
        # A sum of values that are not all finite is not finite either; other sums may overflow.
        if not values.sum().isfinite() and (bad := int((~torch.isfinite(values)).sum())):
            raise UserError(
                f"{key} holds {bad} NaN or infinite values: the pretraining diverged or the file "
                "is damaged; use an earlier checkpoint"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise UserError(
                f"{key} holds a negative variance: the file is damaged; use an earlier checkpoint"
            )
