"""The official checkpoint layout: ``{"epoch", "arch", "state_dict", "optimizer"}``.

state_dict has ``module.encoder_q.*``, ``module.encoder_k.*``, ``module.queue`` and
``module.queue_ptr``; that of v3 has ``module.base_encoder.*``, ``module.momentum_encoder.*`` and
``module.predictor.*``. The official optimizer has all parameters, our optimizer only the trained
ones. Files number the parameters as the official optimizer does, in the order of the state_dict, so
the names connect them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from moco_d2.engine.resume_checks import (
    check_adamw,
    check_momentum,
    check_tensor,
    check_tensors,
    entry,
    require,
    shown,
)
from moco_d2.errors import UserError
from moco_d2.pretrain.optimizer import LARS

# Prefixes of our module names -> the official prefixes.
_OFFICIAL_PREFIX = {"dictionary.": "", "encoder.": ""}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "queue", "queue_ptr", "bank")
# The values of MOCO.CHECKPOINT.REINITIALISE -> prefixes of the official names of their tensors.
PARTS = {
    "queue": ("queue", "queue_ptr", "bank"),
    "head": (
        *("encoder_q.fc.", "encoder_k.fc.", "fc.", "head.", "predictor."),
        *(f"{name}_encoder.{head}." for name in ("base", "momentum") for head in ("fc", "head")),
    ),
}


def official_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's tensors under the official names, which start with ``module.``."""
    return {f"module.{_official_name(name)}": tensor for name, tensor in model.state_dict().items()}


def _official_name(name: str) -> str:
    for ours, official in _OFFICIAL_PREFIX.items():
        if name.startswith(ours):
            return official + name.removeprefix(ours)
    return name


def load_official_state_dict(
    model: nn.Module, state_dict: dict[str, torch.Tensor], *, reinitialize: Iterable[str] = ()
) -> None:
    """Load all tensors of a state_dict with official names.

    Args:
        reinitialize: The PARTS that keep the new values of `model`.

    Raises:
        UserError: If names or shapes differ. The message names the first one, its config key and,
            if possible, how to start with a new part.
        UnusableError: If an entry is not a tensor, or has impossible values.
    """
    _check_named_tensors(state_dict)
    names = {_official_name(name): name for name in model.state_dict()}
    saved = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    current = model.state_dict()
    for official, name in names.items():
        if _is_part_of(official, reinitialize):
            saved[official] = current[name]
        if official not in saved:
            raise UserError(
                f"the checkpoint has no {official}, so it was made with other settings: compare "
                "MOCO.ENCODER and MOCO.DICTIONARY with the config.yaml beside it"
                f"{_new_part(official)}"
            )
        shape, saved_shape = tuple(current[name].shape), tuple(saved[official].shape)
        if shape != saved_shape:
            key = "MOCO.DICTIONARY.SIZE" if official == "queue" else "MOCO.ENCODER"
            raise UserError(
                f"the checkpoint's {official} has the shape {saved_shape}, but this config gives "
                f"{shape}: change {key} back{_new_part(official)}"
            )
    for name in saved:
        if name not in names and not _is_part_of(name, reinitialize):
            raise UserError(
                f"the checkpoint has {name}, which this config's network does not have, so it was "
                "made with other settings: compare MOCO.ENCODER with the config.yaml beside it"
                f"{_new_part(name)}"
            )
    for official, name in names.items():
        check_tensor(saved[official], current[name], official)
    if "queue_ptr" in saved and "queue" in saved:
        pointer, size = int(saved["queue_ptr"]), saved["queue"].shape[1]
        require(
            0 <= pointer < size, f"its queue_ptr is {pointer}, not a column of a queue of {size}"
        )
    model.load_state_dict({name: saved[official] for official, name in names.items()})


def official_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the optimizer's state as the official code saves it: one group of all parameters.

    Args:
        optimizer: An optimizer with one group, which has the trained parameters of `model`.
        model: The model.
    """
    saved = optimizer.state_dict()
    trained = [i for i, parameter in enumerate(model.parameters()) if parameter.requires_grad]
    (group,) = saved["param_groups"]
    numbers = list(range(len(list(model.parameters()))))
    return {
        "state": {trained[i]: state for i, state in saved["state"].items()},
        "param_groups": [{**group, "fused": None, "params": numbers}],  # see engine.one_pass
    }


def load_official_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    saved: dict[str, Any],
    state_dict: dict[str, torch.Tensor],
    *,
    reinitialize: Iterable[str] = (),
) -> None:
    """Load the state of every trained parameter. The config gives the hyper-parameters.

    Args:
        saved: The entry ``optimizer`` of the checkpoint.
        state_dict: The state_dict of the same checkpoint. Its order gives the parameters' numbers.

    Raises:
        UserError: If `saved` is not the state of an optimizer of these parameters.
        UnusableError: If `saved` is not a state of such an optimizer.
    """
    states = entry({"optimizer": saved}, "optimizer", dict).get("state", {})
    require(type(states) is dict, f"its optimizer.state is {shown(states)}, not a dict")
    names = [name.removeprefix("module.") for name in state_dict if not name.endswith(_BUFFERS)]
    number = {name: i for i, name in enumerate(names)}
    trained = [(_official_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    state = {}
    for i, (name, parameter) in enumerate(trained):
        if _is_part_of(name, reinitialize):
            continue
        if number.get(name) in states:
            state[i] = states[number[name]]
            _check_state(optimizer, state[i], parameter, name)
    if states and not state:
        raise UserError(
            "the checkpoint's optimizer has other parameters than this network: check MOCO.ENCODER"
        )
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _check_state(
    optimizer: torch.optim.Optimizer, state: Any, parameter: torch.Tensor, name: str
) -> None:
    if isinstance(optimizer, torch.optim.AdamW):
        check_adamw(state, parameter, name)
    elif isinstance(optimizer, LARS):
        check_tensors(state, {"mu": parameter}, f"optimizer state of {name}")
    else:
        check_momentum(state, parameter, name)


def _check_named_tensors(state_dict: Any) -> None:
    good = type(state_dict) is dict and all(type(name) is str for name in state_dict)
    require(good, "its state_dict is not a dict of tensors by name")
    for name, tensor in state_dict.items():
        good = isinstance(tensor, torch.Tensor)
        require(good, f"its {shown(name)} is {shown(tensor)}, not a tensor")


def _is_part_of(official: str, parts: Iterable[str]) -> bool:
    return any(official.startswith(PARTS[part]) for part in parts)


def _new_part(official: str) -> str:
    for part in PARTS:
        if _is_part_of(official, (part,)):
            return f", or start with a new {part}: MOCO.CHECKPOINT.REINITIALISE {part}"
    return ""
