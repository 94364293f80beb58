"""The exchanges of a pretraining step between many processes, of which one is there.

torch's "fake" backend sends nothing, so values are not right, but calls and sizes are.
"""

import collections
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.small_network import SmallNetwork
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from moco_d2.engine.exchange import gather_numbers
from moco_d2.pretrain.model.dictionary import build_dictionary
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.parallel import distribute, micro_batches

PROCESSES = (8, 64, 1024)
DICTIONARIES = ("Queue", "MemoryBank", "EndToEnd")
_BATCH, _PASSES, _DIM, _SIZE = 32, 2, 128, 65536


class _Exchanges(TorchDispatchMode):
    """Counts collectives, and bytes of what they leave in this process and of what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[str] = collections.Counter()
        self.received = self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self.calls[func._schema.name.split("::")[1]] += 1
            self.received += _bytes(args[0])  # all of them write into their first argument
        elif not getattr(func, "is_view", False):
            self.made += _bytes(out)
        return out


def _exchanged(counted: _Exchanges, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Count an exchange of gradients, which are sent by C++ code that no mode sees."""
    counted.calls["allreduce of gradients"] += 1
    counted.received += _bytes(bucket.buffer())
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


@contextlib.contextmanager
def _world(processes: int) -> Iterator[None]:
    dist.init_process_group("fake", rank=processes // 2, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def step(dictionary: str, processes: int) -> dict[str, Any]:
    """Return what a step of 2 x 16 images in each process exchanges."""
    with _world(processes):
        torch.manual_seed(1)
        model = MoCo(
            SmallNetwork(_DIM),
            build_dictionary(dictionary, dim=_DIM, size=_SIZE, num_images=_SIZE),
            momentum=0.999,
            temperature=0.2,
        )
        parallel = distribute(model)
        images = torch.zeros(_BATCH, 3, 16, 16).to(memory_format=torch.channels_last)
        batch = {"query": images, "key": images, "index": torch.arange(_BATCH)}
        counted = _Exchanges()
        parallel.register_comm_hook(counted, _exchanged)
        with counted:
            for micro_batch, synchronization in micro_batches(parallel, batch, _PASSES):
                with synchronization:
                    parallel(micro_batch)["loss_contrastive"].backward()
            model.finish_step()
            gather_numbers({"loss": 1.0, "signal": 0, "overdue": 0}, "cpu")
    return {
        "collectives": counted.calls.total(),
        "MB received": round(counted.received / 1e6, 3),
        "MB computed": round(counted.made / 1e6, 3),
        "places": dict(counted.calls),
    }


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the counts of each dictionary and number of processes."""
    return {f"{d}, {w:,} processes": step(d, w) for d in DICTIONARIES for w in PROCESSES}
