#!/usr/bin/env python3
"""Compare our image pipeline with the official Pillow pipeline, and shards with files.

The time is that of one core for decoding a JPEG of ImageNet's usual size, making the two views of
MoCo v2 and putting them in a batch of the floats that a network takes. As in a run, our workers put
bytes together, and the process of the network normalizes them; the official workers put floats
together. `workers + device` is the worker's part if the device jitters, blurs and flips
(MOCO.AUGMENTATION.WHERE device). The images are generated with the spectrum of natural images, and
have about 120 kB. tools/shards.py writes the shards: resized once, and the same JPEGs.

    python benchmarks/feeding.py
"""

import argparse
import contextlib
import io
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import numpy as np
import pixel_differences
import torchvision.transforms as T
from harness import check, finish, parser, ratio, take_turns
from PIL import Image, ImageFilter
from torch.utils.data import default_collate

from moco_d2.engine.loader import begin_worker
from moco_d2.engine.malloc import keep_freed_memory
from moco_d2.pretrain.augmentation.normalization import Normalization
from moco_d2.pretrain.augmentation.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_augmentation,
    build_crop,
)
from moco_d2.pretrain.data.images import read_pixels
from moco_d2.pretrain.data.listed_stream import ListedData
from moco_d2.pretrain.data.samples import read_shard
from moco_d2.pretrain.data.sharded_stream import ShardedData
from moco_d2.pretrain.data.shards import list_shards
from moco_d2.pretrain.data.sources import list_images
from moco_d2.pretrain.data.stream import ViewMaker, collate
from moco_d2.pretrain.data.write_shards import write_shards

WIDTH, HEIGHT, QUALITY = 500, 375, 90
BATCH = 16  # images
SHARDS = {"resized": 256, "same": HEIGHT}  # name -> --short-side
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
    """Write a flat folder of JPEGs."""
    rng = np.random.default_rng(0)
    (folder / "flat").mkdir()
    for number in range(count):
        picture(rng).save(folder / "flat" / f"{number:05d}.jpg", quality=QUALITY)


def pack(folder: Path, count: int) -> dict[str, list[Path]]:
    """Write two shards of each kind, as tools/shards.py does, and return their paths."""
    for name, short_side in SHARDS.items():
        args = argparse.Namespace(
            **{"source": str(folder / "flat"), "out": str(folder / name), "range": None},
            **{"short_side": short_side, "images_per_shard": count // 2, "quality": 95},
            **{"workers": 0, "seed": 0},
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            write_shards(args)
    return {name: sorted((folder / name).glob("*.tar")) for name in SHARDS}


def from_disk(folder: Path, packed: dict[str, list[Path]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds to read all encoded images from the disk, without the page cache.

    Files are read in random order, as in an epoch, and shards from front to back.
    """
    files = sorted((folder / "flat").iterdir())
    order = np.random.default_rng(1).permutation(len(files))
    os.sync()  # otherwise unwritten pages stay in the cache

    def read_files() -> None:
        _leave_cache(files)
        for number in order:
            files[number].read_bytes()

    def reader(shards: list[Path]) -> Callable[[], None]:
        def read_shards() -> None:
            _leave_cache(shards)
            for path in shards:
                for _ in read_shard(str(path)):
                    pass

        return read_shards

    of_shards = {name: reader(shards) for name, shards in packed.items()}
    return take_turns({"files": read_files} | of_shards, repeats)


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


def pipelines(folder: Path, packed: dict[str, list[Path]]) -> dict[str, Callable[[], None]]:
    """Return the actions to compare, each of which goes once through all images."""
    paths = [str(path) for path in sorted((folder / "flat").iterdir())]
    by_pillow, normalize = official(), Normalization()
    ours = ViewMaker(build_augmentation("v2", size=224), names=("query", "key"), seed=0)
    crops = ViewMaker(build_crop(size=224), names=("query", "key"), seed=0)

    def over_files(read: Any, make: Any, batch: Any = None) -> Callable[[], None]:
        def run() -> None:
            made = []
            for position, path in enumerate(paths):
                made.append(make(read(path), position))
                if len(made) == BATCH:
                    if batch:
                        batch(made)
                    made.clear()

        return run

    def through_loader(data: Any) -> Callable[[], None]:
        def run() -> None:
            batches = data.batches()
            for _ in range(data.iterations_per_epoch):
                next(batches)
            batches.close()

        return run

    def of_bytes(views: list[dict[str, Any]]) -> Any:
        return collate([{**of_image, "unreadable": []} for of_image in views])

    def complete(views: list[dict[str, Any]]) -> None:
        batch = of_bytes(views)
        for name in ours.names:
            normalize(batch[name])

    stream = {"make_views": crops, "total_batch": 8}
    through_shards = {
        f"shards ({name})": through_loader(
            ShardedData(
                list_shards(f"{shards[0].parent}/{{000000..000001}}.tar"),
                shuffle=len(paths),
                **stream,
            )
        )
        for name, shards in packed.items()
    }
    return {
        "official": over_files(
            read_as_official, lambda i, _: (by_pillow(i), by_pillow(i)), default_collate
        ),
        "all on the CPU": over_files(read_pixels, ours, complete),
        "workers + device": over_files(read_pixels, crops, of_bytes),
        "views": over_files(read_pixels, ours, of_bytes),
        "decoding": over_files(read_pixels, lambda *_: None),
        "files": through_loader(ListedData(list_images(folder / "flat"), **stream)),
        **through_shards,
    }


def _limit_of_the_cpu(spent: dict[str, float]) -> str:
    """Return why a CPU cannot do all much faster, in a few sentences."""
    decoding, by_pillow, ours = (
        1e3 * spent[part] for part in ("decoding", "official", "all on the CPU")
    )
    return (
        "What limits the CPU: both pipelines decode with libjpeg-turbo, which takes "
        f"{decoding:.2f} ms of an image. Decoding at half the size would spare most of it, but "
        f"{WIDTH} x {HEIGHT} pixels are fewer than the 448 x 448 that a view of 224 pixels would "
        f"need. After decoding, two views take the official pipeline {by_pillow - decoding:.2f} "
        f"ms and ours {ours - decoding:.2f} ms, which is "
        f"{(by_pillow - decoding) / (ours - decoding):.2f}x; 3x with decoding leaves "
        f"{by_pillow / 3 - decoding:.2f} ms for them."
    )


def main() -> None:
    """Measure and print."""
    args = parser(__doc__, repeats=31).parse_args()
    begin_worker(0)  # one thread
    keep_freed_memory()  # as a run does on a CPU; workers keep less
    count = 16 if args.small else 64  # at least a batch of the run
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, count)
        packed = pack(folder, count)
        seconds = take_turns(
            pipelines(folder, packed), args.repeats, warmup=2, clock=time.process_time
        )
        cold = from_disk(folder, packed, args.repeats)
        stalled = stall_percentage(folder, 4 if args.small else 20)
        paths = sorted((folder / "flat").iterdir())
        apart = pixel_differences.rows(paths[:8], range(2 if args.small else 16))
        size = statistics.mean(path.stat().st_size for path in paths)
        resized = sum(path.stat().st_size for path in packed["resized"]) / count
    spent = {part: statistics.median(values) / count for part, values in seconds.items()}
    parts = {
        "reading and decoding": spent["decoding"],
        "two random crops in a batch": spent["workers + device"] - spent["decoding"],
        "jitter, grayscale, blur and flip": spent["views"] - spent["workers + device"],
        "normalization": spent["all on the CPU"] - spent["views"],
    }
    finish(
        args,
        title="Feeding: batches of two MoCo v2 views of 224 pixels, images per second and core",
        checks=[
            check(
                "all on the CPU / official Pillow pipeline",
                ratio(seconds["official"], seconds["all on the CPU"]),
                at_least=3,
            ),
            check(
                "the workers' part with the rest on the device / official Pillow pipeline",
                ratio(seconds["official"], seconds["workers + device"]),
                at_least=4,
            ),
            *(
                check(f"{what} / files, {how}", ratio(times["files"], times[name]), at_least=least)
                for what, kind, least in (
                    ("shards of tools/shards.py --short-side 256", "resized", 1.05),
                    ("shards of the same JPEGs", "same", 1.0),
                )
                for how, times, name in (
                    ("through the data loader, from the page cache", seconds, f"shards ({kind})"),
                    ("read from the disk, wall-clock time", cold, kind),
                )
            ),
            *(
                check(f"{name}, images per second and core", 1 / spent[name], unit="img/s")
                for name in spent
                if name not in ("views", "decoding")
            ),
            check(
                "waiting for images in a real run (R18, 224 pixels, one worker), from the "
                "trainer's log",
                stalled,
                unit="%",
            ),
        ],
        tables=[
            {
                "title": "CPU time of an image, all on the CPU",
                "columns": ["part", "ms"],
                "rows": [[part, f"{1e3 * value:.2f}"] for part, value in parts.items()],
            },
            {
                "title": "Differences to Pillow, of 255 levels, with the same random numbers",
                "columns": ["operation", "largest", "mean"],
                "rows": apart,
            },
        ],
        notes=[
            f"The images are {count} JPEGs of {WIDTH} x {HEIGHT} with {size / 1e3:.0f} kB on "
            f"average, and {resized / 1e3:.0f} kB in the resized shards. Unless a line says "
            "otherwise, they are in the page cache, and the figures are CPU time of one thread.",
            _limit_of_the_cpu(spent),
        ],
    )


if __name__ == "__main__":
    main()
