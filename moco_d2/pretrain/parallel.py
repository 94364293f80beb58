"""A model in several processes, and the few numbers they tell each other in every step."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from moco_d2.pretrain.data.stream import Batch
from moco_d2.pretrain.model.shuffle_bn import all_gather


def distribute(model: nn.Module) -> nn.Module:
    """The model wrapped for gradients over all processes; itself where there is one."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # All begin with rank 0's queue: every process has a seed of its own, and without
    # broadcast_buffers the wrapper copies parameters only.
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)
    # From then on buffers stay where they are: every process updates its queue with the same
    # gathered keys, and BatchNorm statistics are meant to differ (the official code broadcasts the
    # queue, 33.6 MB, in every step).
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
    )


def micro_batches(
    model: nn.Module, batch: Batch, count: int
) -> Iterator[tuple[Batch, contextlib.AbstractContextManager[Any]]]:
    """`batch` in `count` parts of one size, each with the context of its two passes: gradients
    travel between the processes with the last part only.
    """
    parts = {name: value.chunk(count) for name, value in batch.items()}
    for i in range(count):
        context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if i < count - 1 and isinstance(model, nn.parallel.DistributedDataParallel):
            context = model.no_sync()
        yield {name: part[i] for name, part in parts.items()}, context


def of_all_processes(
    numbers: Mapping[str, float | torch.Tensor], device: str | torch.device
) -> dict[str, list[float]]:
    """Every process's numbers, in rank order, in one exchange and one wait for the device."""
    row = torch.stack(
        [
            torch.as_tensor(number, dtype=torch.float64).to(device, non_blocking=True)
            for number in numbers.values()
        ]
    )
    return dict(zip(numbers, all_gather(row[None]).T.tolist(), strict=True))
