"""Image files and their classes, in little memory."""

import array
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from PIL import Image

from moco_d2.errors import UserError
from moco_d2.pixel_values import ValueRange, check_range
from moco_d2.pretrain.data.images import read_image

_BLOCK = 1 << 20  # bytes


class PathTable(Sequence[str]):
    """File names in one block of memory.

    A list of 10 million str takes over a gigabyte. Every worker process would copy it, because
    reading a str writes its reference count.
    """

    def __init__(self, paths: Iterable[str] = ()):
        self._characters = bytearray()  # each name ends with a zero byte
        self._ends = array.array("q")
        self.extend(paths)

    def extend(self, paths: Iterable[str]) -> None:
        """Append file names.

        Raises:
            ValueError: If a name has a zero byte, or characters that no file name has.
        """
        for path in paths:
            name = os.fsencode(path)
            if b"\0" in name:
                raise ValueError(f"the file name {path!r} has a zero byte")
            self._characters += name + b"\0"
            self._ends.append(len(self._characters))

    def repeated(self) -> int:
        """Return the number of names that are in the table before."""
        names = (name for block in self._blocks() for name in block[:-1].split(b"\0"))
        hashes = np.fromiter(map(hash, names), np.int64, len(self))
        hashes.sort()
        return int((hashes[1:] == hashes[:-1]).sum())

    def digest(self) -> str:
        """Return the SHA-256 of all names, in their order, below the folder that they share."""
        content, folder = hashlib.sha256(), self._shared_folder()
        for block in self._blocks():
            content.update((b"\0" + block).replace(b"\0" + folder, b"\0")[1:])
        return content.hexdigest()

    def _shared_folder(self) -> bytes:
        if not len(self):
            return b""
        # Some names may be relative, which os.path.commonpath refuses.
        some = [os.fsencode(name) for name in (*self[:: len(self) // 16 + 1], self[-1])]
        shared = os.path.commonprefix(some) or b""  # noqa: RUF071
        folder = shared[: shared.rfind(b"/") + 1]
        while folder and any(
            (b"\0" + block).count(b"\0" + folder) < block.count(b"\0") for block in self._blocks()
        ):
            folder = folder[: folder.rfind(b"/", 0, -1) + 1]
        return folder

    def _blocks(self) -> Iterator[bytes]:
        """Yield the names, each with its zero byte, in blocks of a few megabytes."""
        begin = 0
        while begin < len(self._characters):
            end = self._characters.find(b"\0", begin + _BLOCK) + 1 or len(self._characters)
            yield bytes(self._characters[begin:end])
            begin = end

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        end = self._ends[index] - 1  # IndexError ends iteration
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
        label_problem: Why labels that the images have cannot be used, as a clause, or empty.
    """

    paths: PathTable
    labels: Sequence[int] | None
    classes: list[str]
    value_range: ValueRange = ()
    label_problem: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """Return a text that names, order or classes of other images would change."""
        labels = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        labels.update(array.array("i", self.labels or ()))
        return f"{len(self)} images, {self.paths.digest()[:12]}, {labels.hexdigest()[:12]}"

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
