"""List WebDataset tar shards, and count their images."""

import array
import contextlib
import dataclasses
import io
import itertools
import logging
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from detectron2.utils import comm

from moco_d2.config.shard_patterns import expand, is_local
from moco_d2.engine.loader import build_loader
from moco_d2.errors import UserError, as_raised
from moco_d2.pretrain.data.image_list import PathTable
from moco_d2.pretrain.data.samples import class_index, content_of, group, images_of, read_shard
from moco_d2.pretrain.data.tar_members import (
    LABEL,
    is_archive,
    is_label,
    is_read,
    open_shard,
    walk,
)

logger = logging.getLogger(__name__)

# Reasons why members of a shard are passed over.
_ARCHIVES = "archives inside of shards"
_FURTHER = "further images of a sample (x.seg.png beside x.jpg)"
_LINKS = "links and other special members"
_SPARSE = "sparse members"
_OTHER = "members without an image or a class"


@dataclasses.dataclass(frozen=True)
class ShardList:
    """Shards and their numbers of images.

    Attributes:
        urls: Paths, ``pipe:COMMAND`` or other URLs of webdataset.
        counts: Number of images of each shard.
        sizes: Bytes of each shard; 0 if it is not a local file.
        num_classes: Number of classes; 0 without labels.
        label_problem: Why the labels cannot be used, as a clause, or empty.
    """

    urls: PathTable
    counts: Sequence[int]
    sizes: Sequence[int]
    num_classes: int = 0
    label_problem: str = ""


def list_shards(pattern: str, *, num_images: int = 0, num_workers: int = 0) -> ShardList:
    """List the shards of a pattern with braces, such as ``data/train-{0000..1281}.tar``.

    ``pipe:COMMAND`` reads the output of a shell command. It runs with the rights of this process,
    so never use a pattern that you have not read. Images are the members ``*.jpg``, ``*.png``,
    ``*.webp`` and so on; tar_members.py says what further dots in their names mean. A class index
    in ``*.cls`` is the label, if every image has one. Other text there is no damage: most pretexts
    need no labels.

    Args:
        pattern: The pattern.
        num_images: Number of images in all shards, divided equally among them. Missing images of a
            smaller shard are replaced by others, and further images of a larger shard are not used.
            With 0, the images are counted. The files must be local then, and all processes of the
            run must call this, because they divide the work.
        num_workers: Number of workers of this process that count.

    Raises:
        UserError: If the pattern is damaged, a file is missing, no shard has an image, a shard has
            archives instead, `num_images` is 0 and a shard is not a local file, or it is not clear
            which member is the image of a sample.
    """
    try:
        urls = expand(pattern)
    except ValueError as error:
        raise UserError(f"shard pattern {pattern!r} cannot be expanded: {error}") from error
    sizes = array.array("q", (_size(url, pattern) if is_local(url) else 0 for url in urls))
    if num_images:
        part, rest = divmod(num_images, len(urls))
        counts = array.array("q", (part + (i < rest) for i in range(len(urls))))
        _compare_first(urls[0], counts[0], num_images)
        return ShardList(PathTable(urls), counts, sizes)
    if not all(map(is_local, urls)):
        raise UserError(
            f"the images of {pattern} cannot be counted, because some shards are not local files: "
            "set MOCO.DATA.SHARD_IMAGES to the number of images in all shards"
        )
    logger.info("counting the images of %d shards; set MOCO.DATA.SHARD_IMAGES to skip", len(urls))
    counted = _count_together(urls, num_workers)
    problems = [shard.problem for shard in counted if shard.problem]
    for problem in problems:
        logger.warning(problem)
    label_problem = next((shard.label_problem for shard in counted if shard.label_problem), "")
    if label_problem:
        logger.warning("the labels of %s cannot be used: %s", pattern, label_problem)
    passed_over = sum((Counter(shard.passed_over) for shard in counted), Counter())
    if passed_over:
        reasons = "; ".join(f"{number} {reason}" for reason, number in passed_over.items())
        logger.warning("passed over in %s: %s", pattern, reasons)
    counts = array.array("q", (shard.images for shard in counted))
    if not sum(counts):
        raise UserError(
            f"none of the {len(urls)} shards of {pattern} has an image ({problems[0]}): repair the "
            "shards, or change DATASETS.TRAIN"
        )
    logger.info("%s: %d images in %d shards", pattern, sum(counts), len(urls))
    labeled = all(shard.num_classes for shard in counted if shard.images)
    num_classes = max(shard.num_classes for shard in counted) if labeled else 0
    return ShardList(PathTable(urls), counts, sizes, num_classes, label_problem)


def _compare_first(url: str, part: int, num_images: int) -> None:
    """Log it if the first shard has not the images that MOCO.DATA.SHARD_IMAGES gives it."""
    if not is_local(url):
        return
    first = count_images(url)
    if first.images != part:
        logger.warning(
            "MOCO.DATA.SHARD_IMAGES %d means %d images in the first shard, but %s has %d%s: "
            "missing images are replaced by others, and further ones are not used; set it to the "
            "number of images in all shards, or to 0 to count them",
            num_images,
            part,
            url,
            first.images,
            f" ({first.problem})" if first.problem else "",
        )


def _size(path: str, pattern: str) -> int:
    """Return the bytes of a file, with a single system call, for a million shards."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for a million shards
    except OSError:
        status = None
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise UserError(
            f"{path} is a folder: name its shards in DATASETS.TRAIN, as in "
            f"\"('shards:{path}/{{000000..000009}}.tar',)\""
        )
    if status is None or not stat.S_ISREG(status.st_mode):
        raise UserError(f"shard {path} does not exist; DATASETS.TRAIN names {pattern}")
    return status.st_size


class ShardCount(NamedTuple):
    """The counts of a local shard.

    Attributes:
        images: Number of intact images.
        num_classes: Number of classes; 0 unless every image has a label.
        problem: A sentence about damage, or empty.
        passed_over: Number of members without an image or a label, by reason.
        label_problem: Why a label cannot be used, as a clause, or empty.
    """

    images: int
    num_classes: int
    problem: str = ""
    passed_over: Mapping[str, int] = MappingProxyType({})
    label_problem: str = ""


def _count_together(urls: list[str], num_workers: int) -> list[ShardCount]:
    """Count all shards. The processes of the run and their workers divide the work."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    local = urls[rank::world_size]
    counts = build_loader(
        local, batch_size=None, collate_fn=count_images, num_workers=min(num_workers, len(local))
    )
    counted: list[Any] = [None] * len(urls)
    mine: list[ShardCount] | UserError
    try:
        mine = list(counts)
    except UserError as error:  # which all processes must raise, or they would wait for this one
        mine = as_raised(error)
    parts = comm.all_gather(mine)
    for refusal in parts:
        if isinstance(refusal, UserError):
            raise refusal
    for first, part in enumerate(parts):
        counted[first::world_size] = part
    return counted


def count_images(path: str) -> ShardCount:
    """Count images and classes of a local shard, by the members' headers and the labels.

    The image before a damaged part is not counted, because a member of it may be missing.
    """
    images = labeled = num_classes = 0
    label_problem = ""
    passed_over: Counter[str] = Counter()
    try:
        with open_shard(path) as shard:
            for sample in group(_headers(shard, path, passed_over)):
                images += 1
                used, *others = images_of(sample)
                passed_over.update(_further(used, other) for other in others)
                if LABEL in sample and not label_problem:
                    try:
                        num_classes = max(num_classes, class_index(sample[LABEL]) + 1)
                        labeled += 1
                    except ValueError as error:
                        label_problem = f"in shard {path} {error}"
    # Huge sizes raise OverflowError, and nested long names RecursionError.
    except (
        *(tarfile.TarError, ValueError, EOFError, OSError),
        *(OverflowError, RecursionError),
    ) as error:
        # webdataset adds objects to its errors.
        known = isinstance(error, ValueError) and error.args
        reason = str(error.args[0] if known else error).partition(" dict_keys(")[0]
        problem = f"shard {path} is damaged after {images} images ({reason}): only these are used"
    else:
        problem = "" if images else f"shard {path} has no image"
    if passed_over[_ARCHIVES] and not images:
        raise UserError(
            f"shard {path} holds {passed_over[_ARCHIVES]} archives and no image, as the download "
            "of ImageNet does: unpack it, unpack each archive into a folder of its own, and set "
            "DATASETS.TRAIN to the folder of these folders"
        )
    classes = num_classes if labeled == images else 0
    return ShardCount(images, classes, problem, dict(+passed_over), label_problem)


def _headers(
    shard: tarfile.TarFile, path: str, passed_over: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield members in the form of webdataset's tar_file_expander, images without content."""
    before: dict[str, Any] | None = None
    for member in walk(shard):
        # Only the next header shows that the member before it is complete.
        if before:
            yield before
        before = None
        if is_read(member):
            content = content_of(shard, member) if is_label(member.name) else b""
            before = {"fname": member.name, "data": content, "__url__": path}
        elif not member.isdir():
            passed_over[_reason(member)] += 1
    if before:
        yield before


def _further(used: str, other: str) -> str:
    return _FURTHER if "." in other else f"images .{other} beside .{used}, which is used"


def _reason(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return _SPARSE
    if not member.isreg():
        return _LINKS
    return _ARCHIVES if is_archive(member.name) else _OTHER


def first_files(shards: ShardList, number: int = 16) -> Iterator[BinaryIO]:
    """Yield the first images of the first shard as open files, if it is a local file.

    A shard that cannot be read yields fewer, because training reports it.
    """
    if is_local(shards.urls[0]):
        with contextlib.suppress(Exception), contextlib.closing(read_shard(shards.urls[0])) as all_:
            for image in itertools.islice(all_, number):
                yield io.BytesIO(image.content)
