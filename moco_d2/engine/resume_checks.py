"""Check the content of a checkpoint before a resume uses it or writes a file.

A checkpoint loads without running code (checkpoint/io.py), but may have any content: text instead
of a number, momentum of another network, NaN. Each check raises an `UnusableError`, and
`continuing` turns it into one sentence with the file and the fix.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_d2.engine.failures import describe
from moco_d2.errors import UserError

# The fix for a checkpoint of pretraining or fine-tuning that cannot be used.
FIX = (
    "copy it again, write the name of an earlier checkpoint into last_checkpoint, or begin anew in "
    "another OUTPUT_DIR without --resume"
)
# Integers up to here are exact as floats, too. No run has so many iterations.
MOST = 2**53
_LENGTH = 60  # characters of a value or a name that a message quotes
# Settings of SGD and AdamW that a checkpoint has. The flags must be those of this run;
# foreach and fused are left out, because they choose a way to the same result.
_NUMBERS = ("lr", "momentum", "dampening", "weight_decay", "eps")
_FLAGS = ("nesterov", "amsgrad", "maximize", "capturable", "differentiable")


class UnusableError(Exception):
    """An entry of a checkpoint cannot be used. The message names the entry and the reason."""


@contextlib.contextmanager
def continuing(path: str | Path, fix: str = FIX) -> Iterator[None]:
    """Turn errors that the content of a checkpoint causes into one sentence.

    Args:
        path: The checkpoint.
        fix: What the user can do.

    Raises:
        UserError: If an entry cannot be used. A UserError of the block, and errors of the disk or
            of memory, pass unchanged.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except UnusableError as error:
        raise UserError(f"{path} cannot be continued: {error}; {fix}") from error
    except Exception as error:
        if describe(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise UserError(f"{path} cannot be continued: it is damaged ({reason}); {fix}") from error


def shown(value: Any) -> str:
    """Return a value of a checkpoint as short text without control characters."""
    if type(value) is int and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if value is None or type(value) in (bool, int, float, str):
        return ascii(value)[:_LENGTH]
    return f"a {type(value).__name__}"


def require(condition: bool, message: str) -> None:
    """Raise an UnusableError unless `condition`."""
    if not condition:
        raise UnusableError(message)


def entry(content: Any, name: str, kind: type, where: str = "") -> Any:
    """Return ``content[name]``, which must exist and have exactly this type.

    Args:
        content: A value that must be a dict.
        name: The key.
        kind: The type.
        where: The name of `content` in messages; empty for the checkpoint itself.
    """
    full = f"{where}.{name}" if where else name
    require(isinstance(content, dict), f"its {where or 'content'} is {shown(content)}, not a dict")
    require(name in content, f"it has no {full}")
    value = content[name]
    require(type(value) is kind, f"its {full} is {shown(value)}, not of type {kind.__name__}")
    return value


def check_count(value: Any, name: str, *, least: int = 0, most: int = MOST) -> int:
    """Check a whole number from `least` to `most`, and return it."""
    good = type(value) is int and least <= value <= most
    require(good, f"its {name} is {shown(value)}, not a whole number from {least} to {most}")
    return value


def check_number(value: Any, name: str, *, least: float = -math.inf) -> float:
    """Check a finite number that is `least` or greater, and return it."""
    good = type(value) in (int, float) and abs(value) <= MOST**16 and math.isfinite(value)
    require(good, f"its {name} is {shown(value)}, not a finite number")
    require(value >= least, f"its {name} is {shown(value)}, less than {least:g}")
    return value


def check_json(value: Any, name: str) -> None:
    """Check a value that is written into a record."""
    try:
        json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnusableError(f"its {name} cannot be written as JSON") from error


def check_name(value: Any, name: str) -> str:
    """Check a printable text, and return it."""
    good = type(value) is str and value.isprintable()
    require(good, f"its {name} is {shown(value)}, not a text that can be printed")
    return value


def check_tensor(value: Any, like: Tensor, name: str) -> Tensor:
    """Check a dense, finite tensor with the shape and the kind of numbers of `like`; return it.

    The precision may differ, because torch converts it.
    """
    is_variance, name = name.endswith("running_var"), shown(name)
    require(isinstance(value, Tensor), f"its {name} is {shown(value)}, not a tensor")
    require(value.layout == torch.strided and not value.is_quantized, f"its {name} is not dense")
    shape, expected = tuple(value.shape), tuple(like.shape)
    require(shape == expected, f"its {name} has the shape {shape} instead of {expected}")
    same = _kind(value) == _kind(like)
    require(same, f"its {name} has numbers of type {value.dtype} instead of {like.dtype}")
    if value.is_floating_point():
        require(bool(torch.isfinite(value).all()), f"its {name} has values that are not finite")
    if is_variance:
        require(bool((value >= 0).all()), f"its {name} has negative variances")
    return value


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floating"
    return str(tensor.dtype) if tensor.is_complex() or tensor.dtype == torch.bool else "integer"


def check_tensors(tensors: Any, wanted: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A dict with exactly the names of `wanted`, each a tensor like the one there."""
    require(type(tensors) is dict, f"its {name} is {shown(tensors)}, not a dict of tensors")
    for key in wanted:
        require(key in tensors, f"its {name} has no {shown(key)}, which this network has")
    for key in tensors:
        require(key in wanted, f"its {name} has {shown(key)}, which this network has not")
    for key, like in wanted.items():
        check_tensor(tensors[key], like, key)
    return tensors


def check_momentum(state: Any, parameter: Tensor, name: str) -> None:
    """Check SGD's state of a parameter: ``{"momentum_buffer": like the parameter, or None}``."""
    require(
        type(state) is dict, f"its optimizer state of {shown(name)} is {shown(state)}, not a dict"
    )
    for key, value in state.items():
        known = type(key) is str and key == "momentum_buffer"
        require(known, f"its optimizer has {shown(key)}, which SGD does not keep")
        if value is not None:
            check_tensor(value, parameter, f"momentum of {name}")


def check_adamw(state: Any, parameter: Tensor, name: str) -> None:
    """Check AdamW's state of a parameter: its step, and two tensors like the parameter."""
    require(type(state) is dict, f"its optimizer state of {name} is {shown(state)}, not a dict")
    wanted = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
    check_tensors(state, wanted, f"optimizer state of {name}")
    for key in ("step", "exp_avg_sq"):
        require(bool((state[key] >= 0).all()), f"its {key} of {name} has negative numbers")


def check_optimizer(saved: Any, optimizer: torch.optim.Optimizer) -> None:
    """Check the result of ``optimizer.state_dict()`` for an SGD or AdamW with the same
    parameters.
    """
    is_adamw = isinstance(optimizer, torch.optim.AdamW)
    states = entry(saved, "state", dict, "optimizer")
    groups = entry(saved, "param_groups", list, "optimizer")
    current = optimizer.state_dict()["param_groups"]
    same = len(groups) == len(current)
    require(same, f"its optimizer has {len(groups)} parameter groups instead of {len(current)}")
    parameters: dict[int, Any] = {}
    for group, now, of in zip(groups, current, optimizer.param_groups, strict=True):
        numbers = entry(group, "params", list, "optimizer.param_groups")
        same = all(type(number) is int for number in numbers) and numbers == now["params"]
        require(same, "its optimizer has other parameters than this network")
        for key in _NUMBERS:
            if key not in now:
                continue
            require(key in group, f"its optimizer has no {key}")
            check_number(group[key], f"optimizer's {key}", least=0)
        if "betas" in now:
            betas = group.get("betas")
            good = type(betas) in (list, tuple) and len(betas) == 2
            require(good, f"its optimizer's betas are {shown(betas)}, not two numbers")
            for beta in betas:
                check_number(beta, "optimizer's beta", least=0)
        for key in _FLAGS:
            if key in group and key in now:
                same = group[key] is now[key]
                require(same, f"its optimizer's {key} is {shown(group[key])} and not {now[key]}")
        parameters.update(zip(numbers, of["params"], strict=True))
    for number, state in states.items():
        known = type(number) is int and number in parameters
        require(known, f"its optimizer has a state of {shown(number)}, which is no parameter")
        check = check_adamw if is_adamw else check_momentum
        check(state, parameters[number], f"parameter {number}")


def check_grad_scaler(saved: Any) -> None:
    """Check the result of ``GradScaler.state_dict()``, which is empty if it was not enabled."""
    require(type(saved) is dict, f"its grad_scaler is {shown(saved)}, not a dict")
    if not saved:
        return
    for key in ("scale", "growth_factor", "backoff_factor"):
        require(key in saved, f"its grad_scaler has no {key}")
        check_number(saved[key], f"grad_scaler's {key}", least=0)
        require(saved[key] > 0, f"its grad_scaler's {key} is 0")
    require(saved["growth_factor"] > 1, "its grad_scaler's growth_factor is not above 1")
    require(saved["backoff_factor"] < 1, "its grad_scaler's backoff_factor is not below 1")
    check_count(saved.get("growth_interval"), "grad_scaler's growth_interval", least=1)
    check_count(saved.get("_growth_tracker"), "grad_scaler's _growth_tracker")


def check_metrics(saved: Any, iteration: int) -> None:
    """Check a result of MetricsState.state after `iteration` iterations. It may be empty."""
    require(type(saved) is dict, f"its metrics is {shown(saved)}, not a dict")
    if not saved:
        return
    check_count(saved.get("written"), "metrics.written", least=-1, most=iteration)
    for name, values in entry(saved, "histories", dict, "metrics").items():
        check_name(name, "name of a metric")
        require(
            type(values) is list, f"its history of {shown(name)} is {shown(values)}, not a list"
        )
        for pair in values:
            good = type(pair) is list and len(pair) == 2 and type(pair[0]) is float
            require(good, f"its history of {shown(name)} is not a list of [value, iteration]")
            check_count(pair[1], f"history of {shown(name)}", most=iteration)
    for name in entry(saved, "smoothed", list, "metrics"):
        check_name(name, "name of a metric")
