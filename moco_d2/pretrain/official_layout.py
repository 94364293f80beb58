"""The official checkpoint layout: ``{"epoch", "arch", "state_dict", "optimizer"}``.

state_dict has ``module.encoder_q.*``, ``module.encoder_k.*``, ``module.queue``,
``module.queue_ptr``. The official optimizer was given all parameters, ours those that are trained:
both number them in the order of the state_dict, so that names connect the two.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from moco_d2.engine.resume_checks import check_momentum, check_tensor, entry, require, shown
from moco_d2.errors import UserError

# Where our module names differ from the official ones.
_OFFICIAL_PREFIX = {"dictionary.": "", "encoder.": ""}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "queue", "queue_ptr", "bank")
# What MOCO.CHECKPOINT.REINITIALISE may name, and where its tensors are.
PARTS = {
    "queue": ("queue", "queue_ptr", "bank"),
    "head": ("encoder_q.fc.", "encoder_k.fc.", "fc."),
}


def official_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors under the official names, ``module.`` included."""
    return {f"module.{_official_name(name)}": tensor for name, tensor in model.state_dict().items()}


def _official_name(name: str) -> str:
    for ours, official in _OFFICIAL_PREFIX.items():
        if name.startswith(ours):
            return official + name.removeprefix(ours)
    return name


def load_official_state_dict(
    model: nn.Module, state_dict: dict[str, torch.Tensor], *, reinitialize: Iterable[str] = ()
) -> None:
    """Load what official_state_dict wrote, or an official file's state_dict: all of it.

    Args:
        reinitialize: PARTS that keep the model's own, new values.

    Raises:
        UserError: names or shapes differ; names the first, the config key behind it and, where
            there is one, the way to begin anew with that part only.
        UnusableError: an entry is not a tensor, or has values that cannot be.
    """
    _check_named_tensors(state_dict)
    ours = {_official_name(name): name for name in model.state_dict()}
    theirs = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    current = model.state_dict()
    for official, name in ours.items():
        if _is_part_of(official, reinitialize):
            theirs[official] = current[name]
        if official not in theirs:
            raise UserError(
                f"the checkpoint has no {official}; it was made with other settings: check "
                "MOCO.ENCODER and MOCO.DICTIONARY against the config.yaml beside it"
                f"{_way(official)}"
            )
        wanted, found = tuple(current[name].shape), tuple(theirs[official].shape)
        if wanted != found:
            key = "MOCO.DICTIONARY.SIZE" if official == "queue" else "MOCO.ENCODER"
            raise UserError(
                f"the checkpoint's {official} is {found} and this config makes it {wanted}: "
                f"change {key} back{_way(official)}"
            )
    for name in theirs:
        if name not in ours and not _is_part_of(name, reinitialize):
            raise UserError(
                f"the checkpoint has {name}, which this config's network has not; it was made with "
                f"other settings: check MOCO.ENCODER against the config.yaml beside it{_way(name)}"
            )
    for official, name in ours.items():
        check_tensor(theirs[official], current[name], official)
    if "queue_ptr" in theirs and "queue" in theirs:
        pointer, size = int(theirs["queue_ptr"]), theirs["queue"].shape[1]
        require(
            0 <= pointer < size, f"its queue_ptr is {pointer}, not a column of a queue of {size}"
        )
    model.load_state_dict({name: theirs[official] for official, name in ours.items()})


def load_official_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    saved: dict[str, Any],
    state_dict: dict[str, torch.Tensor],
    *,
    reinitialize: Iterable[str] = (),
) -> None:
    """Load the momentum of every trained parameter; hyper-parameters stay those of the config.

    Args:
        saved: ``optimizer`` of the checkpoint.
        state_dict: of the same checkpoint; its order gives the parameters' numbers.

    Raises:
        UserError: `saved` is not the state of an optimizer of these parameters.
        UnusableError: it is none of SGD's.
    """
    states = entry({"optimizer": saved}, "optimizer", dict).get("state", {})
    require(type(states) is dict, f"its optimizer.state is {shown(states)}, no dict")
    theirs = [name.removeprefix("module.") for name in state_dict if not name.endswith(_BUFFERS)]
    number = {name: i for i, name in enumerate(theirs)}
    trained = [(_official_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    state = {}
    for i, (name, parameter) in enumerate(trained):
        if _is_part_of(name, reinitialize):
            continue
        if number.get(name) in states:
            state[i] = states[number[name]]
            check_momentum(state[i], parameter, name)
    if states and not state:
        raise UserError("the checkpoint's optimizer is not of this network; check MOCO.ENCODER")
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _check_named_tensors(state_dict: Any) -> None:
    good = type(state_dict) is dict and all(type(name) is str for name in state_dict)
    require(good, "its state_dict is not a dict of tensors by name")
    for name, tensor in state_dict.items():
        good = isinstance(tensor, torch.Tensor)
        require(good, f"its {shown(name)} is {shown(tensor)}, not a tensor")


def _is_part_of(official: str, parts: Iterable[str]) -> bool:
    return any(official.startswith(PARTS[part]) for part in parts)


def _way(official: str) -> str:
    for part in PARTS:
        if _is_part_of(official, (part,)):
            return f", or begin with a new {part}: MOCO.CHECKPOINT.REINITIALISE {part}"
    return ""
