"""WebDataset tar shards: which there are, how many images they hold, and reading one."""

import array
import dataclasses
import itertools
import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError
from moco_d2.pretrain.images import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

SHARDS_PREFIX = "shards:"

_LABEL = "cls"  # WebDataset's name of the member that holds the class index as text
_MEMBERS = {suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES} | {_LABEL}
# Reading stops before a command has written all it has. Its exit status, seen by a shell or not.
_BROKEN_PIPE = [128 + 13, -13]


@dataclasses.dataclass(frozen=True)
class ShardList:
    """Shards and how many images each is taken to hold.

    Attributes:
        urls: paths, ``pipe:COMMAND`` or what else webdataset opens.
        counts: images of each.
        num_classes: 0 without labels.
    """

    urls: list[str]
    counts: Sequence[int]
    num_classes: int = 0


def list_shards(pattern: str, *, num_images: int = 0) -> ShardList:
    """The shards that a pattern with braces names, ``data/train-{0000..1281}.tar``.

    ``pipe:COMMAND`` reads what a shell command writes: it runs with the rights of this process, so
    give no pattern that you have not read. Images are the members ``*.jpg``, ``*.png``, ``*.webp``
    and so on; a class index in ``*.cls`` is their label if every image has one.

    Args:
        num_images: in the whole set, of which every shard is taken to hold an equal part. The part
            of a shard that is smaller is filled up with images beside it, and what a larger one
            holds beyond is not used. 0: count them in the files, which must be local; every process
            does so at its start, a minute for a million images.

    Raises:
        UserError: the pattern is damaged, a file is missing, no shard has an image, or there are
            shards that are not local files and no `num_images`.
    """
    from webdataset.shardlists import expand_urls

    try:
        urls = expand_urls(pattern)
    except (ValueError, AssertionError) as error:
        raise UserError(f"shard pattern {pattern!r} cannot be expanded: {error}") from error
    local = [url for url in urls if not re.match(r"\w+:", url)]
    for path in local:
        if not Path(path).is_file():
            raise UserError(f"shard {path} does not exist; DATASETS.TRAIN asks for {pattern}")
    if num_images:
        part, rest = divmod(num_images, len(urls))
        return ShardList(urls, array.array("q", [part + (i < rest) for i in range(len(urls))]))
    if len(local) < len(urls):
        raise UserError(
            "shards that are not local files cannot be counted before they are read: set "
            "MOCO.DATA.SHARD_IMAGES to the number of images in them all"
        )
    logger.info("counting the images of %d shards; MOCO.DATA.SHARD_IMAGES would save it", len(urls))
    counted = [count_images(path) for path in urls]
    counts = array.array("q", (count for count, _ in counted))
    if not sum(counts):
        raise UserError(f"no images in {pattern}: none of its {len(urls)} shards holds any")
    labelled = all(classes for count, classes in counted if count)
    return ShardList(urls, counts, max(classes for _, classes in counted) if labelled else 0)


def count_images(path: str) -> tuple[int, int]:
    """Images in a local shard, and the number of classes (0 unless each image has its label).

    Reads the members' headers and labels only. Warns of a shard that is empty or damaged; damage
    takes the image before it along, whose members might not be all there.
    """
    images = labelled = num_classes = 0
    try:
        with tarfile.open(path) as shard:
            for sample in _group(_headers(shard, path)):
                images += 1
                if _LABEL in sample:
                    labelled += 1
                    num_classes = max(num_classes, int(sample[_LABEL]) + 1)
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        logger.warning("shard %s is damaged after %d images (%s): using those", path, images, error)
    else:
        if not images:
            logger.warning("shard %s holds no image", path)
    return images, num_classes if labelled == images else 0


def _headers(shard: tarfile.TarFile, path: str) -> Iterator[dict[str, Any]]:
    """Members as webdataset's tar_file_expander gives them, the images without their content."""
    # Coming to the next header shows that the member before it is complete.
    for member, _ in itertools.zip_longest(shard, itertools.islice(shard, 1, None)):
        if member.isreg() and _is_wanted(member.name):
            is_label = member.name.endswith(f".{_LABEL}")
            content = shard.extractfile(member).read() if is_label else b""
            yield {"fname": member.name, "data": content, "__url__": path}


def _group(members: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Members of a common name as one sample; those without an image are left out."""
    from webdataset.tariterators import group_by_keys

    return (sample for sample in group_by_keys(members) if _image_member(sample))


def _is_wanted(name: str) -> bool:
    from webdataset.tariterators import base_plus_ext

    _, extension = base_plus_ext(name)
    return extension is not None and extension.lower() in _MEMBERS


def _image_member(sample: dict[str, Any]) -> str | None:
    return next((key for key in sample if key in _MEMBERS and key != _LABEL), None)


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


def read_shard(url: str, first_index: int = 0) -> Iterator[EncodedImage]:
    """The images of a shard from front to back.

    Args:
        first_index: of the shard's first image in the set.

    Raises:
        Exception: whatever a missing or damaged shard, or a failing command, leads to.
    """
    from webdataset.gopen import gopen, set_options
    from webdataset.tariterators import tar_file_expander

    stream = gopen(url)
    set_options(stream, ignore_status=[0, *_BROKEN_PIPE])
    try:
        members = tar_file_expander([{"url": url, "stream": stream}], select_files=_is_wanted)
        for index, sample in enumerate(_group(members), start=first_index):
            member = _image_member(sample)
            yield EncodedImage(
                content=sample[member],
                name=f"{url}/{sample['__key__']}.{member}",
                index=index,
                label=int(sample[_LABEL]) if _LABEL in sample else None,
            )
    finally:
        stream.close()
