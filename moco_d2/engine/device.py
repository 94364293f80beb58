"""Choose the device of a process: the CPU, a GPU that the user names, or its own of several."""

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from moco_d2.errors import UserError

if TYPE_CHECKING:
    import torch
    from detectron2.config import CfgNode


def choose_device(cfg: "CfgNode") -> None:
    """Find MODEL.DEVICE, and change it from cuda to cpu, in place, if no GPU is usable.

    Raises:
        UserError: If MODEL.DEVICE does not exist.
    """
    import torch

    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    find_device(cfg.MODEL.DEVICE, setting="MODEL.DEVICE")


def find_device(name: str, *, setting: str) -> "torch.device":
    """Return the device of this name. A GPU with an index becomes the current one.

    Generators, memory statistics and new tensors belong to the current GPU, so a network on another
    one would be trained with other random numbers than the checkpoint records.

    Args:
        name: cpu, cuda (the current GPU), or cuda:INDEX.
        setting: The setting that names the device, for errors.

    Raises:
        UserError: If the device does not exist, or several processes would share it.
    """
    import torch
    from detectron2.utils import comm

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{setting} {name!r} is unknown: give cpu, cuda or cuda:INDEX") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise UserError(
            f"{setting} is {name}, but this machine has no usable GPU: give {setting} cpu"
        )
    if ":" not in name:
        return torch.device("cuda", torch.cuda.current_device())
    if device.index >= torch.cuda.device_count():
        raise UserError(
            f"{setting} is {name}, but this process sees {torch.cuda.device_count()} GPU(s), "
            "counted from 0: give a smaller index, or cuda"
        )
    if comm.get_world_size() > 1:
        raise UserError(
            f"{setting} is {name}, but each of the {comm.get_world_size()} processes takes a GPU "
            f"of its own: give {setting} cuda, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(device)
    return device


def send(values: "torch.Tensor", device: "torch.device | str") -> "torch.Tensor":
    """Copy a tensor from the CPU to a device. The host does not wait until a GPU has it."""
    import torch

    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)  # from other memory, CUDA may wait


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fetch(values: "torch.Tensor") -> "Callable[[], torch.Tensor]":
    """Begin to copy a tensor to the CPU, and return a function that waits for it and returns it.

    The function waits only for what was queued before the copy, so a GPU goes on with what is
    queued later.
    """
    import torch

    if values.device.type != "cuda":
        return lambda: values
    copied = values.to("cpu", non_blocking=True)  # into pinned memory
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> torch.Tensor:
        arrived.synchronize()
        return copied

    return wait


def take_own_gpu(local_rank: int, local_world_size: int) -> str:
    """Make this process's GPU the current one, and return a name that no other GPU has.

    With as many visible GPUs as processes, it is the GPU of the local rank. With fewer, as with
    SLURM's --gpus-per-task, each process sees other GPUs and takes its first one.
    """
    import torch

    index = local_rank if local_world_size <= torch.cuda.device_count() else 0
    torch.cuda.set_device(index)
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is not None:
        return str(uuid)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return f"{socket.gethostname()} {visible} {index}"
