"""List images of class folders, flat folders, list files and registered datasets."""

import array
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, overload

import numpy as np
from PIL import Image

from moco_d2.config.safe_yaml import expand_home
from moco_d2.errors import UserError, closest, printable
from moco_d2.pixel_values import ValueRange, check_range
from moco_d2.pretrain.data.folders import find_images, is_image
from moco_d2.pretrain.data.images import IMAGE_SUFFIXES, read_image

logger = logging.getLogger(__name__)

LIST_PREFIX = "list:"
#: Maximum number of classes. A wrong label could otherwise mean a billion classes.
MAX_CLASSES = 1_000_000
#: Maximum characters of a line in a list: a path and a label.
MAX_LINE = 10_000
_FOLDER = "a folder of images or a folder with one folder per class"
# Classes that Detectron2's readers raise for damaged annotations.
_DAMAGED = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, AssertionError),
    *(OverflowError, RecursionError, SyntaxError),
)


class PathTable(Sequence[str]):
    """File names in one block of memory.

    A list of 10 million str takes over a gigabyte. Every worker process would copy it, because
    reading a str writes its reference count.
    """

    def __init__(self, paths: Iterable[str] = ()):
        self._characters = bytearray()
        self._ends = array.array("q")
        self.extend(paths)

    def extend(self, paths: Iterable[str]) -> None:
        """Append file names."""
        for path in paths:
            self._characters += os.fsencode(path)
            self._ends.append(len(self._characters))

    def digest(self) -> str:
        """Return the SHA-256 of all names."""
        content = hashlib.sha256(self._characters)
        content.update(self._ends)
        return content.hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        end = self._ends[index]  # IndexError ends iteration
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._characters[start:end]))


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Image files and their classes.

    Attributes:
        paths: The image files.
        labels: Class index of each image; None without labels.
        classes: Names of the classes; empty without labels.
        value_range: MOCO.INPUT.RANGE, with which the files are read.
    """

    paths: PathTable
    labels: Sequence[int] | None
    classes: list[str]
    value_range: ValueRange = ()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """Decode an image to RGB; see images.read_image."""
        return read_image(self.paths[index], self.value_range)

    def label(self, index: int) -> int:
        """Return the class index of one image.

        Raises:
            ValueError: If the images have no labels.
        """
        if self.labels is None:
            raise ValueError("these images have no labels")
        return self.labels[index]


def take_fraction(images: ImageList, fraction: float) -> ImageList:
    """Return a random subset of the images, which is equal in every run.

    A subset of a smaller fraction is a subset of one of a larger fraction.

    Args:
        fraction: Fraction of all images (not of each class), in (0, 1].
    """
    if fraction == 1:
        return images
    shuffled = np.random.default_rng(0).permutation(len(images))
    chosen = np.sort(shuffled[: max(1, round(fraction * len(images)))])
    labels = None if images.labels is None else array.array("i", (images.labels[i] for i in chosen))
    paths = PathTable(images.paths[i] for i in chosen)
    return dataclasses.replace(images, paths=paths, labels=labels)


def with_range(images: ImageList, value_range: ValueRange, *, dataset: str) -> ImageList:
    """Return images that are read with this range.

    Raises:
        UserError: If the range does not fit the images; see `pixel_values.check_range`.
    """
    problem = check_range(images.paths, value_range, dataset=dataset)
    if problem:
        raise UserError(problem)
    return dataclasses.replace(images, value_range=value_range)


def list_source(name: str) -> ImageList:
    """List the images of one entry of DATASETS.TRAIN.

    Args:
        name: A class folder, a flat folder, ``list:FILE``, or the name of a dataset registered with
            Detectron2 (``coco_2017_train``), whose annotations are not used.

    Raises:
        UserError: If `name` is none of these, or has no images.
    """
    if name.startswith(LIST_PREFIX):
        return _logged(read_list(name.removeprefix(LIST_PREFIX)), name)
    from detectron2.data import DatasetCatalog

    if not Path(name).expanduser().exists() and name in DatasetCatalog:
        return _logged(list_registered(name), name)
    if os.sep not in name and not Path(name).exists():
        hint = (
            closest(name, DatasetCatalog)
            or "give a folder of images or a folder with one folder per class"
        )
        raise UserError(f"{name!r} is neither a folder nor a registered dataset; {hint}")
    return list_images(name)


def list_images(folder: str | Path) -> ImageList:
    """List the images of a class folder (``class/**/x.jpg``) or a flat folder (``x.jpg``).

    Raises:
        UserError: If the folder does not exist, has no images, is both a class folder and a flat
            folder, or has a training split beside a held-out one.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"dataset folder {folder} does not exist; give {_FOLDER}")
    found = find_images(str(root))
    flat = found.flat
    paths = PathTable()
    labels = array.array("i")
    classes: list[str] = []
    for name, inside in found.by_class.items():
        paths.extend(inside)
        labels.extend([len(classes)] * len(inside))
        classes.append(name)
    if flat and classes:
        raise UserError(
            f"{folder} holds images ({Path(flat[0]).name}) beside class folders ({classes[0]}): "
            "move the images into class folders, or move the class folders out"
        )
    if not flat and not classes:
        passed_over = f" (passed over: {found.passed_over})" if found.passed_over.counts else ""
        raise UserError(
            f"no images in {folder} and its class folders{passed_over}: give a folder with "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if found.passed_over.counts:
        logger.warning("%s", printable(f"passed over in {folder}: {found.passed_over}"))
    images = ImageList(PathTable(flat), None, []) if flat else ImageList(paths, labels, classes)
    return _logged(images, str(folder))


def _logged(images: ImageList, source: str) -> ImageList:
    logger.info("%s: %d images, %d classes", printable(source), len(images), len(images.classes))
    return images


def same_files(first: ImageList, second: ImageList) -> list[str]:
    """Return the images of `first` that are also in `second`, under any name or link."""
    files = set(filter(None, map(_identity, second.paths)))
    return [path for path in first.paths if _identity(path) in files]


def _identity(path: str) -> tuple[int, int] | None:
    """Return the device and the inode of a file; None if it is missing."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for 10 M names
    except OSError:
        return None
    return status.st_dev, status.st_ino


def share_images(first: str | Path, second: str | Path) -> bool:
    """Return whether two folders are equal, or one contains the other, after following links."""
    one, other = (Path(os.path.realpath(expand_home(folder))) for folder in (first, second))
    return one.is_relative_to(other) or other.is_relative_to(one)


def read_list(file: str | Path) -> ImageList:
    """Read a list of images: one path per line, and optionally a label.

    Paths are relative to the folder of the list. The label is the last word of the line, an integer
    from 0 or a class name. Empty lines are skipped. The images are not opened here. A missing one
    counts as unreadable when training reaches it.

    Raises:
        UserError: If the file does not exist or names no image, a line names no image or has more
            than MAX_LINE characters, only some lines have labels, or a label is MAX_CLASSES or
            greater.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise UserError(f"list of images {file} does not exist: change DATASETS.TRAIN")
    paths = PathTable()
    words: list[str] = []
    interned: dict[str, str] = {}  # one object per class, not per line
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(map(str.strip, _bounded_lines(lines)), start=1):
            if not line:
                continue
            path, word = _split_list_line(line)
            if path is None:
                raise UserError(
                    f"{file} line {number} names no image ({line[:80]!r}): write one path per line "
                    "and, after a space, an optional label; known suffixes are "
                    f"{', '.join(sorted(IMAGE_SUFFIXES))}"
                )
            paths.extend([os.path.join(file.parent, path)])  # noqa: PTH118 - for 10 M names
            if word is not None:
                words.append(interned.setdefault(word, word))
    if not paths:
        raise UserError(f"list of images {file} is empty: write one path per line")
    if not words:
        return ImageList(paths, None, [])
    if len(words) != len(paths):
        raise UserError(
            f"{file} has labels on only {len(words)} of {len(paths)} lines: label all or none"
        )
    if all(word.isdecimal() for word in interned):
        largest = max(interned, key=lambda word: (len(word.lstrip("0")), word.lstrip("0")))
        if len(largest.lstrip("0")) > len(str(MAX_CLASSES)) or int(largest) >= MAX_CLASSES:
            raise UserError(
                f"{file} has the label {largest[:20]}: numeric labels are class indices, from 0 to "
                f"less than {MAX_CLASSES:,}"
            )
        labels = array.array("i", map(int, words))
        return ImageList(paths, labels, [str(i) for i in range(max(labels) + 1)])
    classes = sorted(interned)
    index = {name: i for i, name in enumerate(classes)}
    return ImageList(paths, array.array("i", (index[word] for word in words)), classes)


def _bounded_lines(file: TextIO) -> Iterator[str]:
    """Yield lines, without reading a line of gigabytes into memory.

    Raises:
        UserError: If a line has more than MAX_LINE characters.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise UserError(
                f"{file.name} line {number} has more than {MAX_LINE:,} characters: write one path "
                "per line"
            )
        yield line


def _split_list_line(line: str) -> tuple[str | None, str | None]:
    """Split a line into path and label, which may be None. A path may have spaces."""
    if is_image(line):
        return line, None
    path, _, word = line.replace("\t", " ").rpartition(" ")
    path = line[: len(path)].rstrip()
    return (path, word) if is_image(path) else (None, None)


def list_registered(name: str) -> ImageList:
    """List the images of a dataset registered in Detectron2's DatasetCatalog, without labels.

    Raises:
        UserError: If its files are missing or damaged, or it has no images.
    """
    from detectron2.data import DatasetCatalog

    from moco_d2.engine.annotation_files import check_annotation_files

    check_annotation_files(name)
    try:
        records = DatasetCatalog.get(name)
    except OSError as error:
        raise UserError(
            f"dataset {name} is registered, but {error.filename} cannot be read "
            f"({error.strerror}): set DETECTRON2_DATASETS to the folder of the datasets"
        ) from error
    except _DAMAGED as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(
            f"dataset {name!r}: its annotations are damaged (Detectron2's reader: {reason}): "
            "repair the file"
        ) from error
    # A detection dataset may list an image several times, once per group of annotations.
    paths = PathTable(dict.fromkeys(record["file_name"] for record in records))
    if not paths:
        raise UserError(f"dataset {name} has no images: change DATASETS.TRAIN")
    return ImageList(paths, None, [])
