"""Finds the networks of a checkpoint that are built as ViTs, and chooses one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moco_d2.checkpoint.families import without_wrappers
from moco_d2.checkpoint.vit.names import FAMILIES, NAMES, Names, ViTFamily
from moco_d2.errors import UserError

_QUERIES = re.compile(r"blocks\.\d+\.attn\.(?:qkv|q)\.weight")


@dataclass
class Candidate:
    """Tensors of a ViT whose names have the same prefix."""

    container: str
    prefix: str
    names: Names
    keys: dict[str, str] = field(default_factory=dict)  # room's name -> name in the file
    family: ViTFamily = FAMILIES[-1]
    role: str = "query"


def find_candidates(states: Mapping[str, Mapping[str, Tensor]]) -> list[Candidate]:
    """Return the networks with attention of a ViT, complete or not.

    Raises:
        UserError: If two names stand for the same tensor of one network.
    """
    found: dict[tuple[str, str, str], Candidate] = {}
    for container, state in states.items():
        for key in state:
            for names in NAMES:
                if parts := names.split(key):
                    prefix, name = parts
                    candidate = found.setdefault(
                        (container, names.name, prefix), Candidate(container, prefix, names)
                    )
                    if name in candidate.keys:
                        raise UserError(
                            f"it holds {candidate.keys[name]} and {key}, which are the same tensor "
                            "of a ViT; save only one network"
                        )
                    candidate.keys[name] = key
    return [c for c in found.values() if any(_QUERIES.fullmatch(name) for name in c.keys)]


def assign(
    candidate: Candidate, checkpoint: Mapping[Any, Any], names: list[str], file_name: str
) -> None:
    """Set the family of a network and its role; `names` are all in its container."""
    plain = [without_wrappers(name) for name in names]
    for family in FAMILIES:
        role = family.role(candidate.container, candidate.prefix)
        if role and candidate.names in family.names and family.owns(checkpoint, plain, file_name):
            candidate.family, candidate.role = family, role
            return


def choose(
    candidates: list[Candidate], states: Mapping[str, Mapping[str, Tensor]], branch: str
) -> Candidate:
    """Return the network of a branch.

    Raises:
        UserError: If there is none, or there are two different ones.
    """
    of_branch = [c for c in candidates if c.role == branch]
    if branch == "key" and not of_branch:
        raise UserError("the checkpoint has no key encoder; leave out --branch key")
    of_branch = of_branch or candidates
    # The most complete one: a decoder or a text encoder has no patches.
    first = max(of_branch, key=lambda c: len(c.keys))
    for other in of_branch:
        if other is first or "patch_embed.proj.weight" not in other.keys:
            continue
        ours, theirs = states[first.container], states[other.container]
        if other.keys.keys() != first.keys.keys() or not all(
            torch.equal(ours[first.keys[name]], theirs[other.keys[name]]) for name in first.keys
        ):
            raise UserError(
                f"it holds two different networks, under '{first.container}:{first.prefix}' and "
                f"'{other.container}:{other.prefix}'; save only the one you need: "
                "torch.save({'state_dict': model.state_dict()}, file)"
            )
    return first
