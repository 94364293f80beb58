"""A model in several processes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from moco_d2.pretrain.data.stream import Batch


def distribute(model: nn.Module) -> nn.Module:
    """Wrap the model so that gradients are averaged over all processes.

    With one process, the result is the model itself.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # The queues differ at first, because every process has another seed. Without broadcast_buffers,
    # the wrapper copies only the parameters.
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)
    # No later step needs a broadcast: every process updates its queue with the same gathered keys,
    # and BatchNorm statistics must differ. (The official code broadcasts the queue, 33.6 MB, in
    # every step.)
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
    )


def micro_batches(
    model: nn.Module, batch: Batch, count: int
) -> Iterator[tuple[Batch, contextlib.AbstractContextManager[Any]]]:
    """Split a batch into `count` micro-batches of equal size.

    Each comes with the context of its forward and backward pass. Only the last micro-batch
    exchanges gradients between the processes.
    """
    parts = {name: value.chunk(count) for name, value in batch.items()}
    for i in range(count):
        context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if i < count - 1 and isinstance(model, nn.parallel.DistributedDataParallel):
            context = model.no_sync()
        yield {name: part[i] for name, part in parts.items()}, context
