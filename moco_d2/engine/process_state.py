"""What differs from process to process and has to be in the checkpoint all the same: the states of
the random number generators, and BatchNorm's running statistics.
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
    """One entry a process, in rank order; empty but in the main process. All must call.

    ``{"rng": generators, "buffers": those of the encoders (rank 0's are in the state_dict)}``.
    """
    buffers = own_buffers(model) if comm.get_rank() > 0 else {}
    return comm.gather(
        {
            "rng": rng_state(),
            "buffers": {name: buffer.cpu().clone() for name, buffer in buffers.items()},
        }
    )


def check_process_states(model: nn.Module, states: Any) -> None:
    """Check what gather_process_states gave, the entries of all processes, so that all decide
    alike.

    Raises:
        UnusableError: an entry cannot be taken up.
    """
    require(type(states) is list, f"its processes is {shown(states)}, not a list")
    if len(states) != comm.get_world_size():
        return  # and set_process_state leaves them alone
    wanted = own_buffers(model)
    for rank, state in enumerate(states):
        check_rng_state(entry(state, "rng", dict, "processes"))
        buffers = entry(state, "buffers", dict, "processes")
        if rank > 0 or buffers:
            check_tensors(buffers, wanted, f"processes[{rank}].buffers")


def set_process_state(model: nn.Module, states: list[dict[str, Any]]) -> bool:
    """Take this process's entry up, which check_process_states has accepted.

    Returns:
        whether there was one: False where the run had another number of processes.
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
    """The buffers of the encoders; the dictionary is the same in all processes."""
    return {
        name: buffer for name, buffer in model.named_buffers() if not name.startswith("dictionary.")
    }


def rng_state() -> dict[str, Any]:
    """The states of all generators of this process, as plain types and tensors."""
    python = random.getstate()
    numpy: Any = np.random.get_state()  # of this generator a tuple, of others a dict
    state = {
        "torch": torch.get_rng_state(),
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *map(int, numpy[2:4])],
        "numpy_cached_gaussian": float(numpy[4]),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's GPU
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what rng_state gave.

    Raises:
        UnusableError: it is no state of the generators.
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
