"""Write images as tar shards, each resized once: tools/shards.py.

The output folder has ``000000.tar``, ``000001.tar``, ... in WebDataset's form (``000000017.jpg``
and, for images with classes, ``000000017.cls``), and ``shards.json`` with the settings, the names
of the classes and the images that cannot be read. A shard has its name when it is complete, so an
interrupted command is continued by the same command.
"""

import argparse
import io
import itertools
import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from moco_d2.engine.loader import build_loader
from moco_d2.errors import UserError
from moco_d2.files import atomic_write, read_plain_json, write_json
from moco_d2.pixel_values import stated_range
from moco_d2.pretrain.data.image_list import ImageList, with_range
from moco_d2.pretrain.data.images import UnreadableImageError
from moco_d2.pretrain.data.sources import list_source

SETTINGS = "shards.json"
_MOST_SETTINGS = 2**30  # bytes of shards.json; a million classes or unreadable images have less
_QUOTED = re.compile(r"[\"'`{}$\\\n]")  # would end or change the printed DATASETS.TRAIN
_DIGITS = 6  # of the number of a shard
_LOSSY = (".jpg", ".jpeg", ".webp")  # files that are kept as they are if they are small enough

logger = logging.getLogger(__name__)


def write_shards(args: argparse.Namespace) -> None:
    """Write the shards, and print the value of DATASETS.TRAIN that reads them.

    Args:
        args: The flags; see tools/shards.py --help.

    Raises:
        UserError: If the source has no images, a number is too small, the output folder has files
            of something else, or no image can be read.
    """
    for flag, least in (("short_side", 1), ("images_per_shard", 1), ("workers", 0), ("seed", 0)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag.replace('_', '-')} must be at least {least}")
    if _QUOTED.search(args.out):
        raise UserError(f"{args.out!r}: choose a folder without quotes, braces, $ and backslashes")
    if not 1 <= args.quality <= 100:
        raise UserError(f"--quality must be in [1, 100], got {args.quality}")
    images = with_range(list_source(args.source), stated_range(args.range), dataset=args.source)
    folder = Path(args.out)
    settings = {
        "source": args.source,
        "images": images.fingerprint(),
        "short_side": args.short_side,
        "images_per_shard": args.images_per_shard,
        "quality": args.quality,
        "range": args.range,
        "seed": args.seed,
        "classes": images.classes,
    }
    unreadable = _begin(folder, settings)
    # Shuffled once: a run reads a shard from front to back.
    order = np.random.default_rng(args.seed).permutation(len(images))
    size = args.images_per_shard
    count = math.ceil(len(images) / size)
    paths = [folder / f"{number:0{_DIGITS}d}.tar" for number in range(count)]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    if len(todo) < count:
        print(f"{count - len(todo)} of {count} shards are there and stay")
    parts = {number: range(number * size, min((number + 1) * size, len(images))) for number in todo}
    encoded = build_loader(
        _Encoded(images, order, list(itertools.chain(*parts.values())), args),
        num_workers=args.workers,
        batch_size=None,
    )
    samples = iter(tqdm(encoded, unit=" images"))
    for number, positions in parts.items():
        with atomic_write(paths[number]) as part:
            unreadable |= _write(part, itertools.islice(samples, len(positions)))
            write_json(folder / SETTINGS, {**settings, "unreadable": sorted(unreadable)})
    if len(unreadable) == len(images):
        raise UserError(f"none of the images of {args.source} can be read: see {folder / SETTINGS}")
    if unreadable:
        logger.warning(
            "%d of %d images cannot be read and were left out: %s names them",
            *(len(unreadable), len(images), folder / SETTINGS),
        )
    last = f"{count - 1:0{_DIGITS}d}"
    print("the settings of a pretraining on these shards:")
    print(f"DATASETS.TRAIN \"('shards:{folder}/{{{0:0{_DIGITS}d}..{last}}}.tar',)\"")
    print(f"MOCO.DATA.SHARD_IMAGES {0 if unreadable else len(images)}")


def _begin(folder: Path, settings: dict[str, Any]) -> set[str]:
    """Create the folder and its settings, or compare them, and return the unreadable images that
    an interrupted command has found.
    """
    file = folder / SETTINGS
    try:
        if not file.exists():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(f"{folder} exists and is not a folder of shards; choose another")
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, {**settings, "unreadable": []})
            return set()
        found = read_plain_json(file, _MOST_SETTINGS)
        unreadable = found.pop("unreadable")
        wanted = json.loads(json.dumps(settings))
        different = next((key for key in wanted if found[key] != wanted[key]), None)
        if different:
            raise UserError(
                f"{folder} has shards with {different} {found[different]!r:.80}, not "
                f"{wanted[different]!r:.80}: choose another folder, or remove it"
            )
        return set(map(str, unreadable))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {file}: {error}; choose another folder") from error


class _Encoded(Dataset[dict[str, Any]]):
    """The images as the members of their samples, or with the reason why one cannot be read."""

    def __init__(
        self, images: ImageList, order: np.ndarray, positions: list[int], args: argparse.Namespace
    ):
        self.images, self.order, self.positions = images, order, positions
        self.short_side, self.quality = args.short_side, args.quality

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        position = self.positions[index]
        chosen = int(self.order[position])
        sample: dict[str, Any] = {"__key__": f"{position:09d}"}
        path = Path(self.images.paths[chosen])
        try:
            suffix, content = self._encode(path, self.images.read(chosen))
        except UnreadableImageError as error:
            return {"unreadable": str(error)}
        except (OSError, ValueError) as error:  # JPEG has at most 65,500 pixels a side
            return {"unreadable": f"image {path} cannot be written as JPEG ({error})"}
        sample[suffix] = content
        if self.images.labels is not None:
            sample["cls"] = str(self.images.label(chosen)).encode()
        return sample

    def _encode(self, path: Path, image: Image.Image) -> tuple[str, bytes]:
        """Return suffix and bytes. Photographs that are small enough keep theirs."""
        scale = self.short_side / min(image.size)
        if scale >= 1 and path.suffix.lower() in _LOSSY and not self.images.value_range:
            return path.suffix.lower()[1:], path.read_bytes()
        if scale < 1:
            width, height = (max(self.short_side, round(scale * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=self.quality)
        return "jpg", buffer.getvalue()


def _write(path: Path, samples: Iterator[dict[str, Any]]) -> set[str]:
    """Write a shard, and return why images are not in it."""
    unreadable = set()
    with path.open("wb") as file:
        writer = webdataset.TarWriter(file, encoder=False, mtime=0)
        for sample in samples:
            if "unreadable" in sample:
                unreadable.add(sample["unreadable"])
            else:
                writer.write(sample)
        writer.close()
    return unreadable
