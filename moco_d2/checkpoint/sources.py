"""Finds the backbone in a checkpoint, whole and sound, by its structure.

Every tensor's name is read in every dialect; tensors with the same words before their names are
one candidate; only a candidate with every tensor of a ResNet, by name and shape, is taken. Whose
file it is decides the rest (families.py). Nothing is ever ignored quietly: a tensor is part of the
backbone, a declared companion, or the reason for a refusal.
"""

import glob
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from moco_d2.checkpoint.diagnosis import incomplete, unrecognized
from moco_d2.checkpoint.dialects import DIALECTS, Dialect
from moco_d2.checkpoint.families import FAMILIES, Family, Traits, without_wrappers
from moco_d2.checkpoint.mapping import Architecture, expected_tensors, infer_architecture
from moco_d2.errors import UserError

BRANCHES = ("query", "key")
# Dicts inside dicts: deeper than any checkpoint.
_NESTING = 8
# Beyond every real file; what follows takes time in proportion to the product of some of them.
MOST_TENSORS = 20_000
MOST_NETWORKS = 32
LONGEST_NAME = 500
# FSDP and activation checkpointing wrap modules inside the backbone.
_INNER_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_TRACKER = ".num_batches_tracked"


@dataclass(frozen=True)
class Extracted:
    """A backbone found in a checkpoint.

    Args:
        family: name of the checkpoint family.
        container: dotted path of the dict it is in; empty for the file's own.
        prefix: what stood before the backbone's names.
        dialect: which names.
        tensors: torchvision name -> tensor, complete.
        dropped: group of known companions -> how many tensors of it there were.
        traits: input and caveats.
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
    """Tensors of a ResNet with the same words before their names."""

    container: str
    prefix: str
    dialect: Dialect
    names: dict[str, str] = field(default_factory=dict)  # torchvision name -> name in the file
    tensors: dict[str, Tensor] = field(default_factory=dict)
    trackers: int = 0
    family: Family = FAMILIES[-1]
    role: str = "query"

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
    drop: Iterable[str] = (),
) -> tuple[Extracted, Architecture]:
    """The backbone in a checkpoint, complete and sound, and what it is.

    Args:
        branch: ``query``, the network that gradients train (online, student), or ``key``, its
            moving average (momentum, target, teacher).
        file_name: of the checkpoint; some families can be told by it only.
        drop: patterns of tensors to leave behind besides the family's known companions.

    Raises:
        UserError: there is no complete ResNet, or not on that branch, or two different ones; a
            tensor is missing, misshapen or unaccounted for; or a value is not a finite number.
    """
    states = _states(checkpoint)
    candidates = [c for name, state in states.items() for c in _candidates(name, state)]
    if not candidates:
        raise UserError(unrecognized(states))
    if len(candidates) > MOST_NETWORKS:
        raise UserError(
            f"it holds {len(candidates)} networks, or parts of them; save the wanted one alone: "
            "torch.save({'state_dict': model.state_dict()}, file)"
        )
    for candidate in candidates:
        candidate.read(states[candidate.container])
        _assign(candidate, checkpoint, states[candidate.container], file_name)
    chosen = _choose(candidates, branch)
    traits = chosen.family.traits_of(checkpoint, file_name)
    architecture = infer_architecture(chosen.tensors, traits.stride_in_1x1)
    dropped, leftover = _account(chosen, candidates, states, tuple(drop))
    _check_complete(chosen, architecture, states[chosen.container], leftover)
    _check_values(chosen)
    if chosen.role == "key" and branch == "query":
        caveat = f"the only network in it is a moving average by its name ({chosen.prefix})"
        traits = Traits(traits.input, traits.stride_in_1x1, (*traits.caveats, caveat))
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


def _states(checkpoint: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    """Dotted path of a dict -> the tensors in it by name.

    Keys with slashes are parts of a name, as in haiku's dicts, whose parameters and statistics
    belong together.
    """
    states: dict[str, dict[str, Tensor]] = {}
    visited: set[int] = set()

    def walk(node: Mapping[Any, Any], container: str, name: str, depth: int) -> None:
        if id(node) in visited or depth > _NESTING:
            return
        visited.add(id(node))
        for key, value in node.items():
            if isinstance(key, str) and isinstance(value, dict | Tensor) and not key.isprintable():
                raise UserError(
                    f"it holds the name {key!r:.60}, which is no text; save the network again, "
                    "with torch.save({'state_dict': model.state_dict()}, file)"
                )
            if isinstance(key, str) and isinstance(value, dict) and len(key) > LONGEST_NAME:
                continue  # no container of a network
            # An optimizer's keys are numbers, of which none names a tensor of a network.
            if not isinstance(key, str):
                if isinstance(value, Tensor) and not depth:
                    states.setdefault(container, {})[str(key)] = value
            elif isinstance(value, Tensor):
                full = f"{name}/{key}" if name else key
                for wrapper in _INNER_WRAPPERS:
                    full = full.replace(wrapper, "")
                states.setdefault(container, {})[full] = value
            elif isinstance(value, dict):
                if name or "/" in key:
                    merged = container.removesuffix("_params").removesuffix("_state")
                    walk(value, merged, f"{name}/{key}" if name else key, depth + 1)
                else:
                    walk(value, f"{container}.{key}" if container else key, "", depth + 1)

    walk(checkpoint, "", "", 0)
    names = [name for state in states.values() for name in state]
    if len(names) > MOST_TENSORS or any(len(name) > LONGEST_NAME for name in names):
        raise UserError(
            f"it holds {len(names)} tensors, with names of up to {max(map(len, names))} "
            f"characters; a network has at most {MOST_TENSORS}, with {LONGEST_NAME}: save it "
            "alone, with torch.save({'state_dict': model.state_dict()}, file)"
        )
    for state in states.values():
        _join_c4(state)
    return states


def _join_c4(state: dict[str, Tensor]) -> None:
    """A C4 detector of Detectron2 has its res5 in the head."""
    if "backbone.res2.0.conv1.weight" in state:
        for name in [name for name in state if name.startswith("roi_heads.res5.")]:
            if not name.startswith("roi_heads.res5.norm."):
                state["backbone." + name.removeprefix("roi_heads.")] = state.pop(name)


def _candidates(container: str, state: Mapping[str, Tensor]) -> list[_Candidate]:
    found: dict[tuple[str, str], _Candidate] = {}
    for key in state:
        for dialect in DIALECTS:
            if parts := dialect.split(key):
                prefix, name = parts
                candidate = found.setdefault(
                    (dialect.name, prefix), _Candidate(container, prefix, dialect)
                )
                candidate.names[name] = key
    return [
        candidate
        for candidate in found.values()
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
    # A lone moving average is what there is to take; one beside a damaged query network is not.
    of_branch = of_branch or candidates
    complete = [c for c in of_branch if _is_complete(c)]
    if not complete:
        return max(of_branch, key=lambda c: len(c.tensors))
    first = min(complete, key=_preference)
    for other in complete:
        if other is not first and not _same(first, other):
            raise UserError(
                f"it holds two different networks, under {_place(first)!r} and {_place(other)!r}; "
                "save the wanted one alone: torch.save({'state_dict': model.state_dict()}, file)"
            )
    return first


def _is_complete(candidate: _Candidate) -> bool:
    expected = expected_tensors(infer_architecture(candidate.tensors))
    return {n: t.shape for n, t in candidate.tensors.items()} == expected


def _preference(candidate: _Candidate) -> tuple[int, int]:
    place = f"{candidate.container}:{without_wrappers(candidate.prefix)}"
    places = (*candidate.family.query, *candidate.family.key)
    return (
        places.index(place) if place in places else len(places),
        len(candidate.prefix),
    )


def _same(a: _Candidate, b: _Candidate) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        a.tensors[name].shape == b.tensors[name].shape
        and torch.equal(a.tensors[name], b.tensors[name])
        for name in a.tensors
    )


def _place(candidate: _Candidate) -> str:
    return f"{candidate.container}:{candidate.prefix}"


def _account(
    chosen: _Candidate,
    candidates: list[_Candidate],
    states: Mapping[str, Mapping[str, Tensor]],
    drop: tuple[str, ...],
) -> tuple[dict[str, int], list[str]]:
    """Known companions by group, and the names that nobody declared."""
    family, prefix = chosen.family, without_wrappers(chosen.prefix)
    groups: dict[str, str | None] = {
        key: f"{other.prefix}*"
        for other in candidates
        if other.container == chosen.container and other is not chosen and _is_complete(other)
        for key in other.names.values()
    }
    groups |= dict.fromkeys(chosen.names.values())
    heads = (other.prefix for other in candidates if other.container == chosen.container)
    patterns = (
        *(glob.escape(without_wrappers(p)) + h for p in (prefix, *heads) for h in family.heads),
        *family.companions,
        *drop,
    )
    dropped: Counter[str] = Counter()
    leftover = []
    for key in states[chosen.container]:
        if key in groups:
            group = groups[key]
        else:
            name = without_wrappers(key)
            group = next((p for p in patterns if fnmatchcase(name, p)), None)
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
    """Every expected tensor by name and shape, and nothing else."""
    expected = expected_tensors(architecture)
    tensors = chosen.tensors
    theirs = {name: chosen.names.get(name, chosen.prefix + name) for name in (*expected, *tensors)}
    missing = [theirs[name] for name in expected if name not in tensors]
    misshapen = [
        f"{theirs[name]} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    unknown = [theirs[name] for name in tensors if name not in expected] + leftover
    if missing or misshapen or unknown:
        raise UserError(
            incomplete(
                f"family {chosen.family.name!r} (prefix {chosen.prefix!r})",
                architecture,
                state,
                stem=tensors.get("conv1.weight"),
                missing=missing,
                misshapen=misshapen,
                unknown=unknown,
            )
        )


def _check_values(chosen: _Candidate) -> None:
    for name, tensor in chosen.tensors.items():
        key = chosen.names.get(name, name)
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or not tensor.is_floating_point():
            raise UserError(
                f"{key} is not a dense floating-point tensor ({tensor.dtype}); "
                "give the unquantized checkpoint"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{key} repeats its values through its strides; give the original file")
        finite = torch.isfinite(tensor)
        if not finite.all():
            bad = int((~finite).sum())
            raise UserError(
                f"{key} holds {bad} NaN or infinite values: the pretraining diverged or the file "
                "is damaged; give an earlier checkpoint"
            )
