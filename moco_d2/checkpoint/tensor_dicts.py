"""Collects all tensors of a checkpoint, grouped by the dict that holds them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moco_d2.errors import UserError

# Levels of dicts inside dicts. No checkpoint nests deeper.
_NESTING = 8
# Every real file is below these limits. The time to read a file grows with their product.
MOST_TENSORS = 20_000
LONGEST_NAME = 500
# FSDP, activation checkpointing and torch.compile wrap modules inside the backbone.
_INNER_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def tensors_by_dict(checkpoint: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each dict: dotted path -> name -> tensor.

    A key with slashes is part of a name, as in haiku's dicts. Parameters and statistics of haiku
    become one dict.

    Raises:
        UserError: If a name is not printable text, or there are too many tensors or too long names.
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
                    f"it holds the name {key!r:.60}, which is not printable text; save the network "
                    "again with torch.save({'state_dict': model.state_dict()}, file)"
                )
            if isinstance(key, str) and isinstance(value, dict) and len(key) > LONGEST_NAME:
                continue  # no network's container has such a name
            # Keys that are numbers belong to optimizers, and name no tensor of a network.
            if not isinstance(key, str):
                if isinstance(value, Tensor) and not depth:
                    states.setdefault(container, {})[str(key)] = value
            elif isinstance(value, Tensor):
                full = f"{name}/{key}" if name else key
                for wrapper in _INNER_WRAPPERS:
                    full = full.replace(wrapper, "")
                _add(states.setdefault(container, {}), full, value)
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
            f"it holds {len(names)} tensors with names of up to {max(map(len, names))} characters, "
            f"and the limits are {MOST_TENSORS} tensors and {LONGEST_NAME} characters; save only "
            "the network: torch.save({'state_dict': model.state_dict()}, file)"
        )
    for state in states.values():
        _join_c4(state)
    return states


def _add(state: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add a tensor whose name has lost its wrappers.

    Raises:
        UserError: If another tensor has the same name.
    """
    if name in state:
        raise UserError(
            f"it holds two tensors {name}, of a network and of its wrapper; save only the network: "
            "torch.save({'state_dict': model.state_dict()}, file)"
        )
    state[name] = value


def _join_c4(state: dict[str, Tensor]) -> None:
    """Move res5 back to the backbone: a C4 detector of Detectron2 has it in the head."""
    if "backbone.res2.0.conv1.weight" in state:
        for name in [name for name in state if name.startswith("roi_heads.res5.")]:
            if not name.startswith("roi_heads.res5.norm."):
                state["backbone." + name.removeprefix("roi_heads.")] = state.pop(name)
