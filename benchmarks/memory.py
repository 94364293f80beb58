#!/usr/bin/env python3
"""Measure the peak memory of a MoCo R50 step, by batch and precision, and that of data workers.

It is compared with the same step without key encoder and queue. Each measurement uses a new
process. On a CPU the figure is the growth of the process up to its peak, including the image batch.
On a GPU it is the memory that torch allocated.

The shared memory of many workers is computed from a real batch, and measured with two workers.

    python benchmarks/memory.py [--device cuda --batches 64 128 256]
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import check, finish, parser

DIM, QUEUE = 128, 65536
WORKERS, BATCH, SIDE = 16, 256, 224  # of a process with a GPU
_SHARED = "/dev/shm"


def measure(kind: str, batch: int, precision: str, *, device: str, size: int, arch: str) -> float:
    """Return the peak memory in GiB up to the third step."""
    import torch
    import torch.nn.functional as F
    import torchvision

    from moco_d2.engine.malloc import keep_freed_memory
    from moco_d2.pretrain.model.dictionary import Queue
    from moco_d2.pretrain.model.moco import MoCo

    if device == "cpu":
        keep_freed_memory()  # as tools/pretrain.py does; it raises the peak
    baseline = _resident_peak()
    network = torchvision.models.get_model(arch, num_classes=DIM)
    if kind == "moco":
        dictionary = Queue(dim=DIM, size=QUEUE)
        model = MoCo(network, dictionary, momentum=0.999, temperature=0.2)
    else:
        model = network
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.03, momentum=0.9
    )
    query, key = (
        torch.randn(batch, 3, size, size, device=device).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        kind_of_device = torch.device(device).type
        with torch.autocast(kind_of_device, torch.bfloat16, enabled=precision == "bf16"):
            if kind == "moco":
                loss = model({"query": query, "key": key})["loss_contrastive"]
            else:
                loss = F.cross_entropy(model(query), labels)
        loss.backward()
        optimizer.step()
        if kind == "moco":
            model.finish_step()
    if kind_of_device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return _resident_peak() - baseline


def training_data(workers: int, batch: int, side: int, folder: Path) -> Any:
    """Return the training data of a process, whose images are small pictures of one color."""
    from PIL import Image

    from moco_d2.config.load import load_config
    from moco_d2.pretrain.data.build import build_training_data

    folder.mkdir(exist_ok=True)
    for number in range(batch):
        Image.new("RGB", (16, 16), (number % 256, 0, 0)).save(folder / f"{number:05d}.png")
    words = [
        *("DATASETS.TRAIN", f"('{folder}',)", "SOLVER.IMS_PER_BATCH", str(batch)),
        *("MOCO.AUGMENTATION.SIZE", str(side), "DATALOADER.NUM_WORKERS", str(workers)),
        *("OUTPUT_DIR", str(folder.parent / "out")),
    ]
    return build_training_data(load_config("moco_v2_R50_200ep.yaml", words))


def shared_gigabytes(workers: int, batch: int, side: int) -> tuple[float, float]:
    """Return the shared memory of workers that wait for a step, computed and measured, in GB."""
    with tempfile.TemporaryDirectory() as name:
        data = training_data(workers, batch, side, Path(name) / "images")
        before = _used(_SHARED)
        batches = iter(data.loader(0))
        used = next(batches)
        views = sum(used[view].nbytes for view in data.make_views.names)
        held = workers * data.prefetch_factor
        while _made(batches) < held:
            time.sleep(0.05)
        measured = _used(_SHARED) - before
        batches._shutdown_workers()
        return (held + 1) * views / 1e9, measured / 1e9


def _made(batches: Any) -> int:
    """Return the batches that a loader has ahead: those of workers, and those that came early."""
    early = sum(len(task) == 2 for task in batches._task_info.values())
    return int(batches._worker_result_queue.qsize()) + early


def _used(folder: str) -> int:
    state = os.statvfs(folder)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def _resident_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_a_process(*args: object, **options: object) -> float:
    """Return `measure(*args, **options)` in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps([args, options])],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--device", default="cpu")
    options.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64])
    options.add_argument("--one", help="make one measurement; for the program itself")
    args = options.parse_args()
    if args.one:
        arguments, keywords = json.loads(args.one)
        print(measure(*arguments, **keywords))
        return
    size, arch = (32, "resnet18") if args.small else (224, "resnet50")
    on = {"device": args.device, "size": size, "arch": arch}
    largest = max(args.batches)
    peaks = {
        (kind, batch, precision): statistics.median(
            in_a_process(kind, batch, precision, **on) for _ in range(args.repeats)
        )
        for kind, batch in [*(("moco", batch) for batch in args.batches), ("plain", largest)]
        for precision in ("fp32", "bf16")
    }
    few, batch, side = (2, 64, 64) if args.small else (2, BATCH, SIDE)
    computed, measured = shared_gigabytes(few, batch, side)
    with tempfile.TemporaryDirectory() as name:
        many = training_data(WORKERS, BATCH, SIDE, Path(name) / "images")
        of_many = many.shared_bytes(many.prefetch_factor) / 1e9
    finish(
        args,
        title=f"Memory of a step: {arch}, {size} pixels, queue of {QUEUE}",
        checks=[
            check(
                f"MoCo / the same network and batch ({largest}) without key encoder and queue, {p}",
                peaks["moco", largest, p] / peaks["plain", largest, p],
            )
            for p in ("fp32", "bf16")
        ]
        + [
            check(
                f"shared memory of {WORKERS} workers, two views of {SIDE} pixels, batch {BATCH}, "
                "computed",
                of_many,
                unit="GB",
                at_most=2.5,
            ),
            check(
                f"shared memory of {few} workers, {side} pixels, batch {batch}, measured / "
                "computed",
                measured / computed,
                at_most=1.05,
            ),
        ],
        tables=[
            {
                "title": "Peak of a MoCo step, GiB",
                "columns": ["batch", "fp32", "bf16"],
                "rows": [
                    [batch, *(f"{peaks['moco', batch, p]:.2f}" for p in ("fp32", "bf16"))]
                    for batch in args.batches
                ],
            }
        ],
        notes=[
            f"Figures are medians of {args.repeats} process(es). bf16 is autocast: parameters, "
            "momentum and the queue stay fp32.",
            "Shared memory has the batches that workers have made ahead, and the one of the step. "
            "Views travel as bytes, and each worker makes 2 batches ahead, or 1 if 2 would exceed "
            "2.5 GB.",
        ],
        device=args.device,
    )


if __name__ == "__main__":
    main()
