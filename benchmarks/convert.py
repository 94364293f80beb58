#!/usr/bin/env python3
"""Compare the conversion of an R50 training checkpoint with loading and saving it.

The checkpoint has both encoders, the queue and the optimizer's momentum. The baseline is torch.load
and torch.save of the whole file. The limits are 1.5 times the baseline's time and 2.5 times the
file's size in memory.

    python benchmarks/convert.py [--repeats 7] [--json FILE]
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

# convert needs these modules. They are imported here, so that their import is not measured.
import detectron2.checkpoint
import detectron2.modeling  # noqa: F401
import torch
import torchvision

from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import load_checkpoint

TIME_LIMIT, MEMORY_LIMIT = 1.5, 2.5
DIM, QUEUE = 128, 65536  # as in the paper


def make_checkpoint(path: Path) -> None:
    """Write a checkpoint in the official layout: epoch, arch, state_dict, optimizer."""
    state: dict[str, torch.Tensor] = {}
    momentum: dict[int, Any] = {}
    for encoder in ("encoder_q", "encoder_k"):
        network = torchvision.models.resnet50(num_classes=DIM)
        state |= {f"module.{encoder}.{k}": v for k, v in network.state_dict().items()}
        if encoder == "encoder_q":
            momentum = {
                i: {"momentum_buffer": torch.randn_like(p)}
                for i, p in enumerate(network.parameters())
            }
    state |= {"module.queue": torch.randn(DIM, QUEUE), "module.queue_ptr": torch.zeros(1).long()}
    optimizer = {"state": momentum, "param_groups": [{"lr": 0.03, "params": list(momentum)}]}
    content = {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}
    torch.save(content, path)


def base(path: Path, out: Path) -> None:
    torch.save(torch.load(path, map_location="cpu", weights_only=True), out)


def ours(path: Path, out: Path) -> None:
    convert(path, out)


def resident() -> int:
    """Return the resident bytes of this process, including pages of files (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(action: Callable[[Path, Path], None], path: Path, out: Path, pipe: Any) -> None:
    """Send the seconds of an action, and its bytes of memory on top of the imports, to a pipe."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    # A first small action excludes the one-time work of torch and Detectron2 from the measurement.
    small = out.with_name("small.pth")
    torch.save(torchvision.models.resnet50(width_per_group=4).state_dict(), small)
    action(small, out)
    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    action(path, out)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    pipe.send((seconds, peak[0] - before))


def in_a_process(action: Callable[[Path, Path], None], path: Path, out: Path) -> tuple[float, int]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(action, path, out, sender))
    process.start()
    sender.close()  # if the process dies, recv raises instead of waiting forever
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    times: dict[str, list[float]] = {"base": [], "ours": []}
    memory: dict[str, list[int]] = {"base": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "checkpoint.pth", Path(name) / "out.pth"
        make_checkpoint(path)
        load_checkpoint(path)  # into the page cache
        size = path.stat().st_size
        for _ in range(args.repeats):
            for label, action in (("base", base), ("ours", ours)):
                seconds, grown = in_a_process(action, path, out)
                times[label].append(seconds)
                memory[label].append(grown)
                out.unlink()
    ratios = [a / b for a, b in zip(times["ours"], times["base"], strict=True)]
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": str(torch.__version__),
        "file_mb": round(size / 1e6),
        "base_s": round(statistics.median(times["base"]), 3),
        "convert_s": round(statistics.median(times["ours"]), 3),
        "time_ratio": round(statistics.median(ratios), 2),
        "time_limit": TIME_LIMIT,
        "base_memory_ratio": round(statistics.median(memory["base"]) / size, 2),
        "memory_ratio": round(statistics.median(memory["ours"]) / size, 2),
        "memory_limit": MEMORY_LIMIT,
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
