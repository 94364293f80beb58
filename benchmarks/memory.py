#!/usr/bin/env python3
"""Measure the peak memory of a MoCo R50 step, by batch and precision.

It is compared with the same step without key encoder and queue. Each measurement uses a new
process. On a CPU the figure is the growth of the process up to its peak, including the image batch.
On a GPU it is the memory that torch allocated.

    python benchmarks/memory.py [--device cuda --batches 64 128 256]
"""

import json
import resource
import statistics
import subprocess
import sys

from harness import check, finish, parser

DIM, QUEUE = 128, 65536


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
    finish(
        args,
        title=f"Memory of a step: {arch}, {size} pixels, queue of {QUEUE}",
        checks=[
            check(
                f"MoCo / the same network and batch ({largest}) without key encoder and queue, {p}",
                peaks["moco", largest, p] / peaks["plain", largest, p],
            )
            for p in ("fp32", "bf16")
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
            f"Figures are medians of {args.repeats} processes. bf16 is autocast: parameters, "
            "momentum and the queue stay fp32."
        ],
        device=args.device,
    )


if __name__ == "__main__":
    main()
