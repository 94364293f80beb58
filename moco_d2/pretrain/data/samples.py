"""Read the samples of one tar shard: an image, and possibly its class."""

import contextlib
import dataclasses
import signal
import tarfile
from collections.abc import Generator, Iterator
from typing import Any

from moco_d2.config.shard_patterns import is_local
from moco_d2.errors import UserError
from moco_d2.pretrain.data.decompression import BoundedReader
from moco_d2.pretrain.data.sources import MAX_CLASSES
from moco_d2.pretrain.data.tar_members import (
    LABEL,
    MEMBERS,
    is_read,
    open_shard,
    open_stream,
    sample_and_field,
    walk,
)

# Exit status (of a shell, or of the process) of a command whose output is not read to the end.
_BROKEN_PIPE = [128 + signal.SIGPIPE, -signal.SIGPIPE]
# Formats of photographs. With losses, they hold no masks and no depths.
_PHOTOS = frozenset({"jpg", "jpeg", "jpe", "jfif", "webp"})


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An encoded image of a shard.

    Attributes:
        content: Bytes of the image file.
        name: Shard and member.
        index: Index in the dataset, with the shards in the order of the list.
        label: Class index; None without a label that is one.
    """

    content: bytes
    name: str
    index: int
    label: int | None


def read_shard(url: str, first_index: int = 0) -> Generator[EncodedImage, None, None]:
    """Yield the images of a shard from front to back.

    Args:
        url: The shard.
        first_index: Index in the dataset of the shard's first image.

    Raises:
        Exception: If the shard is missing or damaged, or a command fails. Any class is possible.
    """
    members = _contents(url) if is_local(url) else _streamed(url)
    with contextlib.closing(members):
        for index, sample in enumerate(group(members), start=first_index):
            member = images_of(sample)[0]
            yield EncodedImage(
                content=sample[member],
                name=f"{url}/{sample['__key__']}.{member}",
                index=index,
                label=_label(sample),
            )


def _contents(path: str) -> Generator[dict[str, Any], None, None]:
    """Yield members of a local shard in the form of webdataset's tar_file_expander.

    webdataset's own function is slower: it copies every shard in blocks of 10 kB.
    """
    with open_shard(path) as shard:
        yield from _read_members(shard, path)


def _streamed(url: str) -> Generator[dict[str, Any], None, None]:
    """Yield members of a shard that is not a local file."""
    from webdataset.gopen import gopen, set_options

    with contextlib.closing(gopen(url)) as stream:
        set_options(stream, ignore_status=[0, *_BROKEN_PIPE])
        # webdataset's own iterator has no bound on the size of members.
        with open_stream(BoundedReader(stream)) as shard:
            yield from _read_members(shard, url)


def _read_members(shard: tarfile.TarFile, url: str) -> Iterator[dict[str, Any]]:
    for member in walk(shard):
        if is_read(member):
            content = content_of(shard, member)
            yield {"fname": member.name, "data": content, "__url__": url}


def group(members: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Group members of the same name to samples, without those that have no image."""
    from webdataset.tariterators import group_by_keys

    samples = group_by_keys(members, keys=sample_and_field)
    return (sample for sample in samples if images_of(sample))


def images_of(sample: dict[str, Any]) -> list[str]:
    """Return the fields that are images. The first is that of the sample.

    ``x.jpg`` comes before ``x.input.jpg``, which may be a mask or a second view, and before
    ``x.png``, which may be a mask or a depth.

    Raises:
        UserError: If it is not clear which is the image, since no field is ``x.jpg`` alone.
    """
    keys = (key for key in sample if key.rpartition(".")[2] in MEMBERS - {LABEL})
    fields = sorted(keys, key=lambda key: ("." in key, key not in _PHOTOS, key))
    if len(fields) > 1 and "." in fields[0]:
        name = sample["__key__"]
        raise UserError(
            f"shard {sample['__url__']} has the images {name}.{fields[0]} and {name}.{fields[1]}, "
            f"which the first dot in their names makes one sample: rename the image of a sample to "
            f"{name}.jpg, or images of different samples to names without further dots"
        )
    return fields


def content_of(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a member that `walk` has just yielded. tarfile would copy them twice.

    Raises:
        tarfile.ReadError: If the shard ends before.
    """
    file: Any = shard.fileobj
    file.seek(member.offset_data)
    content: bytes = file.read(member.size)
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _label(sample: dict[str, Any]) -> int | None:
    """Return the class of a sample. Where labels are used, counting has checked all of them."""
    try:
        return class_index(sample[LABEL]) if LABEL in sample else None
    except ValueError:
        return None


def class_index(text: bytes) -> int:
    """
    Raises:
        ValueError: If the text is not a number in [0, MAX_CLASSES).
    """
    try:
        index = int(text)
    except ValueError as error:
        raise ValueError(f"a label is {text[:20]!r}, and labels are class indices") from error
    if index < 0:
        raise ValueError(f"a label is {text[:20]!r}, and classes count from 0")
    if index >= MAX_CLASSES:
        raise ValueError(
            f"a label is {text[:20]!r}, and at most {MAX_CLASSES:,} classes are possible"
        )
    return index
