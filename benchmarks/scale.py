#!/usr/bin/env python3
"""Time and memory as the work grows: queue, list of images, shards (run records: records.py).

For each a table and the exponent of a power law through it (1: linear).

    python benchmarks/scale.py
"""

import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import numpy as np
import torch
import torch.nn.functional as F
from harness import check, finish, parser, take_turns
from PIL import Image

from moco_d2.pretrain.augmentation import build_crop
from moco_d2.pretrain.data import ListedData
from moco_d2.pretrain.dictionary import Queue
from moco_d2.pretrain.sharded_data import ShardedData
from moco_d2.pretrain.shards import list_shards
from moco_d2.pretrain.sources import list_source
from moco_d2.pretrain.stream import ViewMaker

DIM, BATCH = 128, 64
_PATH = "train/n01440764/n01440764_{:08d}.JPEG"  # as long as ImageNet's


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of log(value) over log(size), least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(title: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    return {"title": title, "columns": columns, "rows": rows}


def queue_step(size: int, repeats: int) -> float:
    """Seconds of logits, loss, backward pass and enqueueing, without the encoders."""
    queue = Queue(dim=DIM, size=size)
    keys = F.normalize(torch.randn(BATCH, DIM), dim=1)
    queries = keys.clone().requires_grad_()

    def step() -> None:
        logits, labels = queue.contrast(queries, keys, None)
        F.cross_entropy(logits / 0.2, labels).backward()
        queue.update(queries.detach(), keys, None)

    return float(np.median(take_turns({"step": step}, repeats)["step"]))


def stream() -> dict[str, Any]:
    views = ViewMaker(build_crop(size=32), names=("query", "key"), seed=0)
    return {"make_views": views, "total_batch": 1}


def first_batch(build: Callable[[], Any]) -> tuple[float, float]:
    """Seconds until the first batch is there, and MB that the process has grown by."""
    before = _peak_mb()
    start = time.perf_counter()
    batches = build().batches()
    next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return seconds, _peak_mb() - before


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def listed(count: int, folder: Path) -> tuple[float, float]:
    """First batch from a list file of so many lines; any image that is asked for is there."""
    file = folder / "list.txt"
    # One real image stands for all: the list does not look for its files.
    one = folder / "one.jpg"
    Image.new("RGB", (64, 64)).save(one)
    with file.open("w") as lines:
        lines.writelines(_PATH.format(number) + "\n" for number in range(count))
    from moco_d2.pretrain import data

    read = data.read_image
    data.read_image = lambda path: read(one)
    try:
        return first_batch(lambda: ListedData(list_source(f"list:{file}"), **stream()))
    finally:
        data.read_image = read
        file.unlink()


def sharded(count: int, folder: Path) -> tuple[float, float]:
    """First batch from so many shards of two images."""
    image = io.BytesIO()
    Image.new("RGB", (64, 64)).save(image, "JPEG")
    content = image.getvalue()
    with io.BytesIO() as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for number in range(2):
                info = tarfile.TarInfo(f"{number}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        shard = packed.getvalue()
    for number in range(count):
        (folder / f"{number:06d}.tar").write_bytes(shard)
    pattern = f"{folder}/{{000000..{count - 1:06d}}}.tar"
    return first_batch(lambda: ShardedData(list_shards(pattern), shuffle=2, **stream()))


def in_a_process(kind: str, count: int) -> tuple[float, float]:
    """`listed` or `sharded` in a fresh process: a peak of memory does not come down."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", kind, str(count)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, grown = done.stdout.split()[-2:]
    return float(seconds), float(grown)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--one", nargs=2, help="of one process; for the program itself")
    args = options.parse_args()
    if args.one:
        kind, count = args.one
        with tempfile.TemporaryDirectory() as folder:
            print(*{"listed": listed, "sharded": sharded}[kind](int(count), Path(folder)))
        return
    queues = [2**power for power in (range(12, 15) if args.small else range(12, 21, 2))]
    lists = [1_000, 10_000] if args.small else [10_000, 100_000, 1_000_000, 10_000_000]
    shards = [1, 10] if args.small else [1, 10, 100, 1_000, 10_000]
    steps = [queue_step(size, args.repeats) for size in queues]
    images = [in_a_process("listed", count) for count in lists]
    tars = [in_a_process("sharded", count) for count in shards]
    million = lists[-1] / 1e6
    finish(
        args,
        title="Scale: queue, list of images, shards",
        checks=[
            check("queue: time ~ K to the power", exponent(queues, steps), unit=""),
            check(
                "list: time to the first batch ~ images to the power",
                exponent(lists[-2:], [seconds for seconds, _ in images[-2:]]),
                unit="",
            ),
            check("list: memory of a million images", images[-1][1] / million, unit="MB"),
            check(
                "list: time to the first batch of a million images",
                images[-1][0] / million,
                unit="s",
            ),
            check(
                "shards: time to the first batch ~ shards to the power",
                exponent(shards[-2:], [seconds for seconds, _ in tars[-2:]]),
                unit="",
            ),
        ],
        tables=[
            table(
                f"Queue: logits, loss, backward and enqueueing of {BATCH} queries, C = {DIM}",
                ["K", "ms", "MB of keys"],
                [
                    [size, f"{1e3 * s:.1f}", f"{4 * DIM * size / 1e6:.0f}"]
                    for size, s in zip(queues, steps, strict=True)
                ],
            ),
            table(
                "List of images: until the first batch",
                ["images", "s", "MB"],
                [[n, f"{s:.2f}", f"{m:.0f}"] for n, (s, m) in zip(lists, images, strict=True)],
            ),
            table(
                "Shards of two images: until the first batch",
                ["shards", "s", "MB"],
                [[n, f"{s:.2f}", f"{m:.0f}"] for n, (s, m) in zip(shards, tars, strict=True)],
            ),
        ],
        notes=[
            "At a billion images, by these figures: a list would take "
            f"{images[-1][1] / million:.0f} GB of memory and "
            f"{images[-1][0] / million * 1000 / 60:.0f} minutes before the first batch in every "
            "process, and an epoch's order 8 GB more; use shards, of which a million with a "
            "thousand images each would need "
            f"{tars[-1][0] / shards[-1] * 1e6 / 60:.0f} minutes to be counted, once "
            "(MOCO.DATA.SHARD_IMAGES says the number and saves that)."
        ],
    )


if __name__ == "__main__":
    main()
