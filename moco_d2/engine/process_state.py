"""The part of a checkpoint that differs between processes.

It is the states of the random number generators, and BatchNorm's running statistics.
"""

import random
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import nn

from moco_d2.engine.generator_checks import check_rng_state
from moco_d2.engine.resume_checks import check_tensors, entry, require, shown


def gather_process_states(model: nn.Module) -> list[dict[str, Any]]:
    """Return an entry for each process, in rank order. All processes must call this.

    An entry is ``{"rng": states of the generators, "buffers": buffers of the encoders}``. Rank 0
    has no buffers, because they are in the state_dict. Only the main process gets the list.
    """
    buffers = own_buffers(model) if comm.get_rank() > 0 else {}
    return comm.gather(
        {
            "rng": rng_state(),
            "buffers": {name: buffer.cpu().clone() for name, buffer in buffers.items()},
        }
    )


def check_process_states(model: nn.Module, states: Any) -> None:
    """Check a result of gather_process_states.

    Every process checks the entries of all, so all decide alike.

    Raises:
        UnusableError: If an entry cannot be used.
    """
    require(type(states) is list, f"its processes is {shown(states)}, not a list")
    if len(states) != comm.get_world_size():
        return  # set_process_state ignores them then
    wanted = own_buffers(model)
    for rank, state in enumerate(states):
        check_rng_state(entry(state, "rng", dict, "processes"))
        buffers = entry(state, "buffers", dict, "processes")
        if rank > 0 or buffers:
            check_tensors(buffers, wanted, f"processes[{rank}].buffers")


def set_process_state(model: nn.Module, states: list[dict[str, Any]]) -> bool:
    """Restore the state of this process from checked entries.

    Returns:
        Whether it was restored. It is not if the run had another number of processes.
    """
    if len(states) != comm.get_world_size():
        return False
    state = states[comm.get_rank()]
    buffers = own_buffers(model)
    for name, value in state["buffers"].items():
        buffers[name].copy_(value)
    set_rng_state(state["rng"])
    return True


def own_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers of the encoders. The dictionary is equal in all processes."""
    return {
        name: buffer for name, buffer in model.named_buffers() if not name.startswith("dictionary.")
    }


def rng_state() -> dict[str, Any]:
    """Return the states of all generators of this process, as plain types and tensors."""
    python = random.getstate()
    numpy: Any = np.random.get_state()  # a tuple for the legacy generator
    state = {
        "torch": torch.get_rng_state(),
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *map(int, numpy[2:4])],
        "numpy_cached_gaussian": float(numpy[4]),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # GPU of this process
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Set all generators to a result of rng_state.

    Raises:
        UnusableError: If it is not a state of the generators.
    """
    check_rng_state(state)
    torch.set_rng_state(state["torch"])
    version, internal, cached = state["python"]
    random.setstate((version, tuple(internal), cached))
    name, keys, position, has_gauss = state["numpy"]
    np.random.set_state(
        (name, keys.numpy().astype(np.uint32), position, has_gauss, state["numpy_cached_gaussian"])
    )
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
