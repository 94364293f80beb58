#!/usr/bin/env python3
"""Measure how time and memory grow with the queue, a list of images, class folders and shards.

Each has a table and the exponent of a power law through its figures (1 means linear). A note says
what follows for a billion images. records.py measures run records.

    python benchmarks/scale.py
"""

import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import numpy as np
import torch
import torch.nn.functional as F
from harness import check, finish, parser, take_turns
from PIL import Image
from webdataset import TarWriter

from moco_d2.pretrain.augmentation.views import build_crop
from moco_d2.pretrain.data.images import read_pixels
from moco_d2.pretrain.data.listed_stream import ListedData
from moco_d2.pretrain.data.sharded_stream import ShardedData
from moco_d2.pretrain.data.shards import count_images, list_shards
from moco_d2.pretrain.data.sources import list_source
from moco_d2.pretrain.data.stream import TrainingData, ViewMaker
from moco_d2.pretrain.model.dictionary import Queue

DIM, BATCH = 128, 64
_PATH = "train/n01440764/n01440764_{:08d}.JPEG"  # as long as ImageNet's


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the least-squares slope of log(value) over log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(title: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    return {"title": title, "columns": columns, "rows": rows}


def queue_step(size: int, repeats: int) -> float:
    """Return the seconds of logits, loss, backward pass and enqueueing, without the encoders."""
    queue = Queue(dim=DIM, size=size)
    keys = F.normalize(torch.randn(BATCH, DIM), dim=1)
    queries = keys.clone().requires_grad_()

    def step() -> None:
        logits, labels = queue.contrast(queries, keys, None)
        F.cross_entropy(logits / 0.2, labels).backward()
        queue.update(queries.detach(), keys, None)

    return float(np.median(take_turns({"step": step}, repeats)["step"]))


def first_batch(build: Callable[..., TrainingData]) -> tuple[float, float, float]:
    """Return three figures of a data source.

    They are the seconds until the first batch, the growth of the process in MB, and the seconds of
    the fingerprint that the processes of a run compare.
    """
    views = ViewMaker(build_crop(size=32), names=("query", "key"), seed=0)
    before = _peak_mb()
    start = time.perf_counter()
    data = build(make_views=views, total_batch=1)
    batches = data.batches()
    next(batches)
    seconds, grown = time.perf_counter() - start, _peak_mb() - before
    batches.close()
    start = time.perf_counter()
    data.fingerprint()
    return seconds, grown, time.perf_counter() - start


def _peak_mb() -> float:
    """Return the peak memory in MB. That of getrusage starts at the parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def one_image(folder: Path) -> Path:
    """Write a JPEG, and return its path."""
    path = folder / "one.jpg"
    Image.new("RGB", (64, 64)).save(path)
    return path


def listed(count: int, folder: Path) -> tuple[float, ...]:
    """Measure the first batch from a list file with `count` lines. Its first image exists."""
    first, file = folder / _PATH.format(0), folder / "list.txt"
    first.parent.mkdir(parents=True)
    first.touch()
    with file.open("w") as lines:
        lines.writelines(_PATH.format(number) + "\n" for number in range(count))
    one = one_image(folder)  # replaces all images
    with mock.patch("moco_d2.pretrain.data.listed_stream.read_pixels", lambda *_: read_pixels(one)):
        return first_batch(lambda **on: ListedData(list_source(f"list:{file}"), **on))


def in_folders(count: int, folder: Path) -> tuple[float, ...]:
    """Measure the first batch from class folders of a thousand links to one image."""
    one = one_image(folder)
    for number in range(count):
        file = folder / "train" / f"n{number // 1000:08d}" / f"{number:08d}.JPEG"
        if number % 1000 == 0:
            file.parent.mkdir(parents=True)
        file.symlink_to(one)
    return first_batch(lambda **on: ListedData(list_source(f"{folder}/train"), **on))


def shard(images: int) -> bytes:
    """Return a tar file of labeled images, written by webdataset's TarWriter."""
    with tempfile.TemporaryDirectory() as folder:
        image = one_image(Path(folder)).read_bytes()
    packed = io.BytesIO()
    with TarWriter(packed, encoder=False) as tar:
        for number in range(images):
            tar.write({"__key__": f"{number:04d}", "jpg": image, "cls": b"1"})
    return packed.getvalue()


def counted(count: int, folder: Path) -> tuple[float, ...]:
    """Measure the first batch from `count` shards of two images, which are counted."""
    content = shard(2)
    for number in range(count):
        (folder / f"{number:07d}.tar").write_bytes(content)
    pattern = f"{folder}/{{0000000..{count - 1:07d}}}.tar"
    return first_batch(lambda **on: ShardedData(list_shards(pattern), shuffle=2, **on))


def stated(count: int, folder: Path) -> tuple[float, ...]:
    """Measure the first batch from links to one shard, with a configured number of images."""
    one = folder / "one.tar"
    one.write_bytes(shard(2))
    for number in range(count):
        (folder / f"{number:07d}.tar").symlink_to(one)
    pattern = f"{folder}/{{0000000..{count - 1:07d}}}.tar"
    return first_batch(
        lambda **on: ShardedData(list_shards(pattern, num_images=2 * count), shuffle=2, **on)
    )


def counting_rate(images: int, repeats: int) -> float:
    """Return the number of images per second that one core counts in a shard."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.tar"
        path.write_bytes(shard(images))
        turns = take_turns({"count": lambda: count_images(str(path))}, repeats)
    return images / float(np.median(turns["count"]))


SOURCES = {"listed": listed, "in_folders": in_folders, "counted": counted, "stated": stated}


def in_a_process(kind: str, count: int) -> tuple[float, float, float]:
    """Run one of SOURCES in a new process, since a peak of memory never falls."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", kind, str(count)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, grown, fingerprint = map(float, done.stdout.split()[-3:])
    return seconds, grown, fingerprint


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--one", nargs=2, help="measure one source; for the program itself")
    args = options.parse_args()
    if args.one:
        kind, count = args.one
        with tempfile.TemporaryDirectory() as folder:
            print(*SOURCES[kind](int(count), Path(folder)))
        return
    queues = [2**power for power in (range(12, 15) if args.small else range(12, 21, 2))]
    sizes = {
        "listed": [1_000, 10_000] if args.small else [10_000, 100_000, 1_000_000, 10_000_000],
        "in_folders": [1_000, 2_000] if args.small else [10_000, 100_000, 1_000_000],
        "counted": [1, 10] if args.small else [1, 10, 100, 1_000, 10_000],
        "stated": [1, 10] if args.small else [1_000, 10_000, 100_000, 1_000_000],
    }
    steps = [queue_step(size, args.repeats) for size in queues]
    first = {kind: [in_a_process(kind, n) for n in counts] for kind, counts in sizes.items()}
    rate = counting_rate(10 if args.small else 1000, args.repeats)

    def slope(kind: str) -> float:
        """Return the exponent of the two largest sizes. In small ones the start dominates."""
        return exponent(sizes[kind][-2:], [seconds for seconds, _, _ in first[kind][-2:]])

    def per_million(kind: str, number: int) -> float:
        """Return figure 0 (seconds) or 1 (MB) of the largest size, divided by its millions."""
        return first[kind][-1][number] / sizes[kind][-1] * 1e6

    def largest(kind: str, what: str, things: str) -> list[dict[str, Any]]:
        """Return memory and time of the largest size, divided by its number of millions."""
        name = f"{what}, per million of {sizes[kind][-1]:,} {things}"
        return [
            check(f"{name}: memory", per_million(kind, 1), unit="MB"),
            check(f"{name}: time to the first batch", per_million(kind, 0), unit="s"),
        ]

    titles = {
        "listed": ("List file: until the first batch", "images"),
        "in_folders": ("Class folders of a thousand images: until the first batch", "images"),
        "counted": ("Shards of two images, counted: until the first batch", "shards"),
        "stated": ("Shards with MOCO.DATA.SHARD_IMAGES: until the first batch", "shards"),
    }
    hours = 1e9 / rate / 3600
    finish(
        args,
        title="Scale: queue, list of images, class folders, shards",
        checks=[
            check("queue: time ~ K to the power", exponent(queues, steps), unit=""),
            check("list: time to the first batch ~ images to the power", slope("listed"), unit=""),
            *largest("listed", "list", "images"),
            check(
                "folders: time to the first batch ~ images to the power",
                slope("in_folders"),
                unit="",
            ),
            *largest("in_folders", "folders", "images"),
            check(
                "counted shards: time to the first batch ~ shards to the power",
                slope("counted"),
                unit="",
            ),
            check("counting: images per second and core", rate, unit="img/s"),
            *largest("stated", "shards that are not counted", "shards"),
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
            *(
                table(
                    title,
                    [what, "s", "MB", "s to compare processes"],
                    [
                        [n, f"{s:.2f}", f"{m:.0f}", f"{f:.3f}"]
                        for n, (s, m, f) in zip(sizes[kind], first[kind], strict=True)
                    ],
                )
                for kind, (title, what) in titles.items()
            ),
        ],
        notes=[
            "These figures predict the cost of a billion images. A list takes "
            f"{per_million('listed', 1):.0f} GB in every process and "
            f"{per_million('listed', 0) * 1000 / 60:.0f} minutes before the first batch. This "
            "includes the order of an epoch, 8 bytes per image. It is too much, so use shards. A "
            f"million shards of a thousand images take {per_million('stated', 1):.0f} MB and "
            f"{per_million('stated', 0):.0f} s if MOCO.DATA.SHARD_IMAGES gives the number of "
            f"images. If one process counted them, this would take {hours:.0f} hours before the "
            "first step.",
            "Therefore the workers of all processes share the counting, which takes 64 workers "
            f"{60 * hours / 64:.0f} minutes. The names of the shards are in one block of memory, "
            "which forked workers share. Processes compare a hash of this block, not each name "
            "and label.",
        ],
    )


if __name__ == "__main__":
    main()
