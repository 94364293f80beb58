"""What stands beside a backbone in a checkpoint: heads, queues, optimizers, trainers' entries."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from support.checkpoint.reference import State


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def without_trackers(state: State) -> State:
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def linear(name: str, inputs: int = 8, outputs: int = 4, bias: bool = True) -> State:
    state = {f"{name}.weight": torch.randn(outputs, inputs)}
    return state | ({f"{name}.bias": torch.randn(outputs)} if bias else {})


def batch_norm(name: str, channels: int = 4, affine: bool = True) -> State:
    state = {f"{name}.weight": torch.ones(channels), f"{name}.bias": torch.zeros(channels)}
    return (state if affine else {}) | {
        f"{name}.running_mean": torch.randn(channels),
        f"{name}.running_var": torch.rand(channels) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(1000),
    }


def projector(name: str, inputs: int) -> State:
    """Linear, BatchNorm, ReLU, Linear: most projection and prediction heads."""
    return (
        linear(f"{name}.0", inputs, 8)
        | batch_norm(f"{name}.1", 8)
        | linear(f"{name}.3", bias=False)
    )


def sgd(state: State) -> dict[str, Any]:
    """An optimizer's state_dict: parameters are numbered, and some buffers have a stem's shape."""
    parameters = [t for name, t in state.items() if name.endswith("weight")][:5]
    return {
        "state": {i: {"momentum_buffer": torch.zeros_like(t)} for i, t in enumerate(parameters)},
        "param_groups": [
            {"lr": 0.03, "momentum": 0.9, "nesterov": False, "params": list(range(len(parameters)))}
        ],
    }


def queue() -> State:
    return {"queue": torch.randn(16, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}


def lightning(state: State, **extra: Any) -> dict[str, Any]:
    """A checkpoint of Lightning's Trainer."""
    return {
        "epoch": 99,
        "global_step": 500_000,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 100}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None, 'mode': 'min'}": {
                "monitor": None,
                "best_model_score": torch.tensor(0.5),
                "best_k_models": {},
                "dirpath": "checkpoints",
            }
        },
        "optimizer_states": [sgd(state)],
        "lr_schedulers": [{"last_epoch": 99, "_step_count": 100}],
        **extra,
    }
