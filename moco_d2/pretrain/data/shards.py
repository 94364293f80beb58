"""WebDataset tar shards: which there are, how many images they hold, and reading one."""

import array
import contextlib
import dataclasses
import logging
import os
import stat
import tarfile
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

from detectron2.utils import comm

from moco_d2.config.shard_patterns import expand, is_local
from moco_d2.engine.loader import build_loader
from moco_d2.errors import UserError
from moco_d2.pretrain.data.decompression import BoundedReader
from moco_d2.pretrain.data.sources import MAX_CLASSES, PathTable
from moco_d2.pretrain.data.tar_members import (
    LABEL,
    MEMBERS,
    is_label,
    is_read,
    open_shard,
    open_stream,
    walk,
)

logger = logging.getLogger(__name__)

# Reading stops before a command has written all it has. Its exit status, seen by a shell or not.
_BROKEN_PIPE = [128 + 13, -13]


@dataclasses.dataclass(frozen=True)
class ShardList:
    """Shards and how many images each is taken to hold.

    Attributes:
        urls: paths, ``pipe:COMMAND`` or what else webdataset opens.
        counts: images of each.
        sizes: of each in bytes; 0 where it is no local file.
        num_classes: 0 without labels.
    """

    urls: PathTable
    counts: Sequence[int]
    sizes: Sequence[int]
    num_classes: int = 0


def list_shards(pattern: str, *, num_images: int = 0, num_workers: int = 0) -> ShardList:
    """The shards that a pattern with braces names, ``data/train-{0000..1281}.tar``.

    ``pipe:COMMAND`` reads what a shell command writes: it runs with the rights of this process, so
    give no pattern that you have not read. Images are the members ``*.jpg``, ``*.png``, ``*.webp``
    and so on; a class index in ``*.cls`` is their label if every image has one.

    Args:
        num_images: in the whole set, of which every shard is taken to hold an equal part. The part
            of a shard that is smaller is filled up with images beside it, and what a larger one
            holds beyond is not used. 0: count them in the files, which must be local. The processes
            of the run share that work: all must call.
        num_workers: processes of this one that count.

    Raises:
        UserError: the pattern is damaged, a file is missing, no shard has an image, or there are
            shards that are not local files and no `num_images`.
    """
    try:
        urls = expand(pattern)
    except ValueError as error:
        raise UserError(f"shard pattern {pattern!r} cannot be expanded: {error}") from error
    sizes = array.array("q", (_size(url, pattern) if is_local(url) else 0 for url in urls))
    if num_images:
        part, rest = divmod(num_images, len(urls))
        counts = array.array("q", (part + (i < rest) for i in range(len(urls))))
        return ShardList(PathTable(urls), counts, sizes)
    if not all(map(is_local, urls)):
        raise UserError(
            "shards that are not local files cannot be counted before they are read: set "
            "MOCO.DATA.SHARD_IMAGES to the number of images in them all"
        )
    logger.info("counting the images of %d shards; MOCO.DATA.SHARD_IMAGES would save it", len(urls))
    counted = _count_together(urls, num_workers)
    for problem in filter(None, (shard.problem for shard in counted)):
        logger.warning(problem)
    counts = array.array("q", (shard.images for shard in counted))
    if not sum(counts):
        raise UserError(f"no images in {pattern}: none of its {len(urls)} shards holds any")
    labeled = all(shard.num_classes for shard in counted if shard.images)
    num_classes = max(shard.num_classes for shard in counted) if labeled else 0
    return ShardList(PathTable(urls), counts, sizes, num_classes)


def _size(path: str, pattern: str) -> int:
    """Bytes of a file, in the one call to the file system that a million shards can afford."""
    try:
        found = os.stat(path)  # noqa: PTH116 - for a million shards
    except OSError:
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise UserError(f"shard {path} does not exist; DATASETS.TRAIN asks for {pattern}")
    return found.st_size


class ShardCount(NamedTuple):
    """What a local shard holds.

    Attributes:
        images: that are whole.
        num_classes: 0 unless each of them has its label.
        problem: a sentence on what is wrong with it, or nothing.
    """

    images: int
    num_classes: int
    problem: str = ""


def _count_together(urls: list[str], num_workers: int) -> list[ShardCount]:
    """`count_images` of all, each process of the run and each worker of it a part."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    mine = urls[rank::world_size]
    counts = build_loader(
        mine, batch_size=None, collate_fn=count_images, num_workers=min(num_workers, len(mine))
    )
    counted: list[Any] = [None] * len(urls)
    for first, part in enumerate(comm.all_gather(list(counts))):
        counted[first::world_size] = part
    return counted


def count_images(path: str) -> ShardCount:
    """Count a local shard's images and classes by the members' headers and the labels.

    Damage takes the image before it along, whose members might not be all there.
    """
    images = labeled = num_classes = 0
    try:
        with open_shard(path) as shard:
            for sample in _group(_headers(shard, path)):
                images += 1
                if LABEL in sample:
                    labeled += 1
                    num_classes = max(num_classes, _class_index(sample[LABEL]) + 1)
    # Sizes beyond any file overflow, and names upon names recurse.
    except (
        *(tarfile.TarError, ValueError, EOFError, OSError),
        *(OverflowError, RecursionError),
    ) as error:
        problem = f"shard {path} is damaged after {images} images ({error}): using those"
    else:
        problem = "" if images else f"shard {path} holds no image"
    return ShardCount(images, num_classes if labeled == images else 0, problem)


def _headers(shard: tarfile.TarFile, path: str) -> Iterator[dict[str, Any]]:
    """Members as webdataset's tar_file_expander gives them, the images without their content."""
    before: dict[str, Any] | None = None
    for member in walk(shard):
        # Coming to the next header shows that the member before it is complete.
        if before:
            yield before
        before = None
        if is_read(member):
            content = _content_of(shard, member) if is_label(member.name) else b""
            before = {"fname": member.name, "data": content, "__url__": path}
    if before:
        yield before


def _contents(path: str) -> Generator[dict[str, Any], None, None]:
    """Members of a local shard as webdataset's tar_file_expander gives them.

    That one takes every shard for a stream, and copies it in blocks of 10 kB.
    """
    with open_shard(path) as shard:
        yield from _read_members(shard, path)


def _read_members(shard: tarfile.TarFile, url: str) -> Iterator[dict[str, Any]]:
    for member in walk(shard):
        if is_read(member):
            content = _content_of(shard, member)
            yield {"fname": member.name, "data": content, "__url__": url}


def _content_of(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = shard.extractfile(member)
    if file is None:
        raise tarfile.TarError(f"member {member.name[:80]} is no file")
    return file.read()


def _class_index(text: bytes) -> int:
    """
    Raises:
        ValueError: it is no number from 0, or one of more classes than can be.
    """
    index = int(text)
    if index < 0:
        raise ValueError(f"a label is {text[:20]!r}, and classes count from 0")
    if index >= MAX_CLASSES:
        raise ValueError(f"a label is {text[:20]!r}, and there may be {MAX_CLASSES:,} classes")
    return index


def _group(members: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Members of a common name as one sample; those without an image are left out."""
    from webdataset.tariterators import group_by_keys

    return (sample for sample in group_by_keys(members) if _image_members(sample))


def _image_members(sample: dict[str, Any]) -> list[str]:
    return [key for key in sample if key in MEMBERS and key != LABEL]


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image of a shard as it lies there.

    Attributes:
        content: bytes of the image file.
        name: shard and member.
        index: place in the set, shards in the order of their list.
        label: class index, or None.
    """

    content: bytes
    name: str
    index: int
    label: int | None


def read_shard(url: str, first_index: int = 0) -> Generator[EncodedImage, None, None]:
    """The images of a shard from front to back.

    Args:
        first_index: of the shard's first image in the set.

    Raises:
        Exception: whatever a missing or damaged shard, or a failing command, leads to.
    """
    members = _contents(url) if is_local(url) else _streamed(url)
    with contextlib.closing(members):
        for index, sample in enumerate(_group(members), start=first_index):
            member = _image_members(sample)[0]
            yield EncodedImage(
                content=sample[member],
                name=f"{url}/{sample['__key__']}.{member}",
                index=index,
                label=_class_index(sample[LABEL]) if LABEL in sample else None,
            )


def _streamed(url: str) -> Generator[dict[str, Any], None, None]:
    """Members of a shard that is not a local file."""
    from webdataset.gopen import gopen, set_options

    with contextlib.closing(gopen(url)) as stream:
        set_options(stream, ignore_status=[0, *_BROKEN_PIPE])
        # Webdataset's own iterator reads members of any size.
        with open_stream(BoundedReader(stream)) as shard:
            yield from _read_members(shard, url)
