#!/usr/bin/env python3
"""Compare our image pipeline with the official Pillow pipeline, and shards with files.

The time is that of one core for decoding a JPEG of ImageNet's usual size and making the two views
of MoCo v2. `workers + device` is the worker's part if the device jitters, blurs and flips
(MOCO.AUGMENTATION.WHERE device). The images are generated with the spectrum of natural images, and
have about 110 kB.

    python benchmarks/feeding.py
"""

import os
import random
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import numpy as np
import torch
import torchvision.transforms as T
from harness import check, finish, parser, ratio, take_turns
from PIL import Image, ImageFilter

from moco_d2.pretrain.augmentation.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_augmentation,
    build_crop,
)
from moco_d2.pretrain.data.images import read_image
from moco_d2.pretrain.data.listed import ListedData
from moco_d2.pretrain.data.samples import read_shard
from moco_d2.pretrain.data.sharded import ShardedData
from moco_d2.pretrain.data.shards import list_shards
from moco_d2.pretrain.data.sources import list_images
from moco_d2.pretrain.data.stream import ViewMaker

WIDTH, HEIGHT, QUALITY = 500, 375, 90
ROOT = Path(__file__).parents[1]


def picture(rng: np.random.Generator) -> Image.Image:
    """Return noise whose amplitude falls with frequency, as in photographs."""
    noise = np.fft.rfft2(rng.normal(size=(HEIGHT, WIDTH, 3)), axes=(0, 1))
    frequency = np.hypot(
        np.fft.fftfreq(HEIGHT)[:, None, None], np.fft.rfftfreq(WIDTH)[None, :, None]
    )
    pixels = np.fft.irfft2(noise / np.maximum(frequency, 1 / WIDTH), s=(HEIGHT, WIDTH), axes=(0, 1))
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class _OfficialBlur:
    """The official loader's GaussianBlur: Pillow's blur with a radius from Python's generator."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def official() -> Any:
    """Return the augmentation of --aug-plus in main_moco.py."""
    return T.Compose(
        [
            T.RandomResizedCrop(224, scale=(0.2, 1.0)),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([_OfficialBlur()], p=0.5),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def read_as_official(path: str) -> Image.Image:
    """Read an image as torchvision's pil_loader does, which ImageFolder uses."""
    with Path(path).open("rb") as file:
        return Image.open(file).convert("RGB")


def write_images(folder: Path, count: int) -> None:
    """Write a flat folder of JPEGs, and the same images in two shards beside it."""
    rng = np.random.default_rng(0)
    (folder / "flat").mkdir()
    for number in range(count):
        picture(rng).save(folder / "flat" / f"{number:05d}.jpg", quality=QUALITY)
    files = sorted((folder / "flat").iterdir())
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for file in files[shard * count // 2 : (shard + 1) * count // 2]:
                tar.add(file, arcname=file.name)


def from_disk(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Return the seconds to read all encoded images from the disk, without the page cache.

    Files are read in random order, as in an epoch, and shards from front to back.
    """
    files = sorted((folder / "flat").iterdir())
    order = np.random.default_rng(1).permutation(len(files))
    shards = [folder / "0.tar", folder / "1.tar"]
    os.sync()  # otherwise unwritten pages stay in the cache

    def read_files() -> None:
        _leave_cache(files)
        for number in order:
            files[number].read_bytes()

    def read_shards() -> None:
        _leave_cache(shards)
        for path in shards:
            for _ in read_shard(str(path)):
                pass

    return take_turns({"files": read_files, "shards": read_shards}, repeats)


def _leave_cache(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def stall_percentage(folder: Path, steps: int) -> float:
    """Return the percentage of time that a pretraining run waits for images, from its log."""
    out = folder / "run"
    command = [
        *(sys.executable, ROOT / "tools" / "pretrain.py"),
        *("--config-file", "moco_v2_R50_200ep.yaml"),
        *("DATASETS.TRAIN", f"('{folder / 'flat'}',)", "MOCO.REFERENCE_BATCH", "0"),
        *("SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_ITER", str(steps), "MOCO.EPOCHS", "0"),
        *("MOCO.DICTIONARY.SIZE", "32", "DATALOADER.NUM_WORKERS", "1", "MODEL.DEVICE", "cpu"),
        *("MOCO.ENCODER.ARCH", "resnet18", "SOLVER.AMP.ENABLED", "True"),
        *("OUTPUT_DIR", str(out)),
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    percentages = re.findall(r"waiting for images took ([\d.]+) %", (out / "log.txt").read_text())
    return float(percentages[-1])


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, repeats=31)
    args = options.parse_args()
    torch.set_num_threads(1)
    count = 8 if args.small else 64
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, count)
        paths = [str(path) for path in sorted((folder / "flat").iterdir())]
        by_pillow = official()
        ours = ViewMaker(build_augmentation("v2", size=224), names=("query", "key"), seed=0)
        crops = ViewMaker(build_crop(size=224), names=("query", "key"), seed=0)

        def over_files(read: Any, make: Any) -> Any:
            def run() -> None:
                for position, path in enumerate(paths):
                    make(read(path), position)

            return run

        def through_loader(data: Any) -> Any:
            def run() -> None:
                batches = data.batches()
                for _ in range(data.iterations_per_epoch):
                    next(batches)
                batches.close()

            return run

        stream = {"make_views": crops, "total_batch": 8}
        seconds = take_turns(
            {
                "official": over_files(read_as_official, lambda i, _: (by_pillow(i), by_pillow(i))),
                "all on the CPU": over_files(read_image, ours),
                "workers + device": over_files(read_image, crops),
                "files": through_loader(ListedData(list_images(folder / "flat"), **stream)),
                "shards": through_loader(
                    ShardedData(list_shards(f"{folder}/{{0..1}}.tar"), shuffle=count, **stream)
                ),
            },
            args.repeats,
            clock=time.process_time,
        )
        cold = from_disk(folder, args.repeats)
        stalled = stall_percentage(folder, 4 if args.small else 20)
        size = statistics.mean(path.stat().st_size for path in (folder / "flat").iterdir())
    per_second = {name: count / statistics.median(values) for name, values in seconds.items()}
    finish(
        args,
        title="Feeding: decode and two MoCo v2 views of 224 pixels, images per second and core",
        checks=[
            check(
                "all on the CPU / official Pillow pipeline",
                ratio(seconds["official"], seconds["all on the CPU"]),
                at_least=1.3,
            ),
            check(
                "the workers' part with the rest on the device / official Pillow pipeline",
                ratio(seconds["official"], seconds["workers + device"]),
                at_least=3,
            ),
            check(
                "shards / files, through the data loader, from the page cache",
                ratio(seconds["files"], seconds["shards"]),
                at_least=1.0,
            ),
            check(
                "shards / files, read from the disk, wall-clock time",
                ratio(cold["files"], cold["shards"]),
                at_least=1.0,
            ),
            *(
                check(f"{name}, images per second and core", value, unit="img/s")
                for name, value in per_second.items()
            ),
            check(
                "waiting for images in a real run (R18, 224 pixels, one worker), from the "
                "trainer's log",
                stalled,
                unit="%",
            ),
        ],
        notes=[
            f"The images are {count} JPEGs of {WIDTH} x {HEIGHT} with {size / 1e3:.0f} kB on "
            "average. Unless a line says otherwise, they are in the page cache, and the figures "
            "are CPU time of one thread."
        ],
    )


if __name__ == "__main__":
    main()
