#!/usr/bin/env python3
"""Count the bytes that two processes exchange in a MoCo step, in our scheme and the official one.

The count is of bytes that a process receives from the other one through gloo. Our scheme sends each
image once, to the process that encodes it, and the keys once. The official code gathers all images
on all processes, and the keys twice (for the order and for the queue). DDP broadcasts all buffers,
including the queue, in every step. Gradients are equal in both and are not counted.

    python benchmarks/distributed.py
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import torchvision
from harness import check, finish, parser
from torch import nn

from moco_d2.pretrain.model.dictionary import Queue
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.parallel import distribute

DIM, QUEUE = 128, 65536


class Received:
    """Counts the bytes that this process receives in collectives of torch.distributed."""

    def __init__(self) -> None:
        self.bytes = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count all collectives that are called from Python inside this context."""
        rank, originals = dist.get_rank(), {}

        def all_gather(tensors: list[torch.Tensor], tensor: torch.Tensor, **kwargs: Any) -> Any:
            self.bytes += (len(tensors) - 1) * _size(tensor)
            return originals["all_gather"](tensors, tensor, **kwargs)

        def broadcast(tensor: torch.Tensor, src: int, **kwargs: Any) -> Any:
            self.bytes += _size(tensor) if src != rank else 0
            return originals["broadcast"](tensor, src, **kwargs)

        def all_to_all_single(
            output: torch.Tensor,
            input: torch.Tensor,
            output_split_sizes: list[int],
            input_split_sizes: list[int],
        ) -> Any:
            others = sum(output_split_sizes) - output_split_sizes[rank]
            self.bytes += others * _size(output[:1])
            return originals["all_to_all_single"](
                output, input, output_split_sizes, input_split_sizes
            )

        counted = {
            "all_gather": all_gather,
            "broadcast": broadcast,
            "all_to_all_single": all_to_all_single,
        }
        for name, function in counted.items():
            originals[name] = getattr(dist, name)
            setattr(dist, name, function)
        try:
            yield
        finally:
            for name, function in originals.items():
                setattr(dist, name, function)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Official(nn.Module):
    """The official builder's scheme of exchanges around two encoders."""

    def __init__(self, encoder_q: nn.Module, encoder_k: nn.Module, queue: int):
        super().__init__()
        self.encoder_q, self.encoder_k = encoder_q, encoder_k.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(DIM, queue), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @staticmethod
    def gather(tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.ones_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor)
        return torch.cat(gathered)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        rank, batch = dist.get_rank(), len(key)
        q = F.normalize(self.encoder_q(query), dim=1)
        with torch.no_grad():
            for p_q, p_k in zip(
                self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True
            ):
                p_k.data = p_k.data * 0.999 + p_q.data * 0.001
            images = self.gather(key)
            order = torch.randperm(len(images))
            dist.broadcast(order, src=0)
            local = order.view(dist.get_world_size(), -1)[rank]
            k = F.normalize(self.encoder_k(images[local]), dim=1)
            k = self.gather(k)[order.argsort()[rank * batch : (rank + 1) * batch]]
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone()], dim=1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(batch, dtype=torch.long))
        keys, start = self.gather(k), int(self.queue_ptr)
        self.queue[:, start : start + len(keys)] = keys.T
        self.queue_ptr[0] = (start + len(keys)) % self.queue.shape[1]
        return loss


def encoder(arch: str) -> nn.Module:
    return torchvision.models.get_model(arch, num_classes=DIM)


def run(rank: int, world_size: int, options: dict[str, Any]) -> None:
    """Time both schemes in turns in one process. The last rank writes seconds and bytes."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{options['store']}", rank=rank, world_size=world_size
        )
    torch.manual_seed(rank)
    arch, size, batch = options["arch"], options["size"], options["batch"]
    query, key = torch.randn(2, batch, 3, size, size)
    dictionary = Queue(dim=DIM, size=options["queue"])
    moco = MoCo(encoder(arch), dictionary, momentum=0.999, temperature=0.2)
    ours = distribute(moco)
    models: dict[str, nn.Module] = {"ours": ours}
    if world_size > 1:
        official = Official(encoder(arch), encoder(arch), options["queue"])
        models["official"] = nn.parallel.DistributedDataParallel(official)  # with buffers
    optimizers = {
        name: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.01)
        for name, m in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    received = dict.fromkeys(models, 0)
    for turn in range(1 + options["repeats"]):
        for name, model in models.items():
            model.train()
            counter = Received()
            counts = counter.counting() if world_size > 1 else contextlib.nullcontext()
            start = time.perf_counter()
            optimizers[name].zero_grad()
            with counts:
                if name == "ours":
                    loss = model({"query": query, "key": key})["loss_contrastive"]
                else:
                    loss = model(query, key)
                loss.backward()
                optimizers[name].step()
                if name == "ours":
                    moco.finish_step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
            # DDP's own broadcast happens in C++, where Python counts nothing.
            buffers = 0
            if name == "official" and rank:
                buffers = sum(_size(buffer) for buffer in official.buffers())
            received[name] = counter.bytes + buffers
    # Rank 1 writes the figures, because rank 0 receives no broadcast.
    if rank == world_size - 1:
        torch.save({"seconds": seconds, "received": received}, options["out"])
    if world_size > 1:
        dist.destroy_process_group()


def measure(world_size: int, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run both schemes in `world_size` processes."""
    options = options | {"out": folder / f"{world_size}.pth", "store": folder / f"s{world_size}"}
    mp.spawn(run, args=(world_size, options), nprocs=world_size)
    return torch.load(options["out"])


def main() -> None:
    """Measure and print."""
    args = parser(__doc__, repeats=5).parse_args()
    options = {"arch": "resnet50", "size": 224, "batch": 8, "queue": QUEUE}
    if args.small:
        options = {"arch": "resnet18", "size": 32, "batch": 4, "queue": 256}
    options["repeats"] = args.repeats
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        one, two = (measure(n, Path(folder), options) for n in (1, 2))
    received = two["received"]
    medians = {name: statistics.median(values) for name, values in two["seconds"].items()}
    finish(
        args,
        title=f"Distributed: two processes (gloo), {options['arch']}, {options['size']} pixels, "
        f"{options['batch']} images each, queue of {options['queue']}",
        checks=[
            check(
                "bytes received, official scheme / ours", received["official"] / received["ours"]
            ),
            check("ours, bytes received by a process per step", received["ours"] / 1e6, unit="MB"),
            check(
                "official, bytes received by a process per step",
                received["official"] / 1e6,
                unit="MB",
            ),
            check("step with 2 processes, official / ours", medians["official"] / medians["ours"]),
            check(
                "our step with 2 processes / with 1, at the same batch per process",
                medians["ours"] / statistics.median(one["seconds"]["ours"]),
            ),
        ],
        notes=[
            "Each process has one thread. The bytes do not include the gradients, which are the "
            "same in both."
        ],
    )


if __name__ == "__main__":
    main()
