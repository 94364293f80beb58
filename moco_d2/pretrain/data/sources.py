"""Lists of images: class folders, flat folders, list files, Detectron2's registered datasets."""

import array
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, overload

import numpy as np

from moco_d2.config.safe_yaml import expand_home
from moco_d2.errors import UserError, closest
from moco_d2.pretrain.data.images import IMAGE_SUFFIXES

LIST_PREFIX = "list:"
#: The most classes of labels that are numbers, so that a stray one does not ask for a billion.
MAX_CLASSES = 1_000_000
#: The most characters of a line of a list: a path and a label.
MAX_LINE = 10_000
# What Detectron2's readers raise over damaged annotations.
_DAMAGED = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, AssertionError),
    *(OverflowError, RecursionError, SyntaxError),
)


class PathTable(Sequence[str]):
    """File names in one block of memory.

    A list of 10 million str takes over a gigabyte, and every worker process comes to have a copy:
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
        """SHA-256 of all names."""
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
    """Files, and what class each belongs to.

    Attributes:
        paths: image files.
        labels: class index of each, or None without labels.
        classes: names of the classes; empty without labels.
    """

    paths: PathTable
    labels: Sequence[int] | None
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def label(self, index: int) -> int:
        """Return the class index of one image.

        Raises:
            ValueError: the images have no labels.
        """
        if self.labels is None:
            raise ValueError("these images have no labels")
        return self.labels[index]


def take_share(images: ImageList, share: float) -> ImageList:
    """A random part of the images, the same in every run; smaller shares lie within larger ones.

    Args:
        share: in (0, 1]; of all images, not of each class.
    """
    if share == 1:
        return images
    shuffled = np.random.default_rng(0).permutation(len(images))
    taken = np.sort(shuffled[: max(1, round(share * len(images)))])
    labels = None if images.labels is None else array.array("i", (images.labels[i] for i in taken))
    return ImageList(PathTable(images.paths[i] for i in taken), labels, images.classes)


def list_source(name: str) -> ImageList:
    """The images of one entry of DATASETS.TRAIN.

    Args:
        name: a class folder, a flat folder, ``list:FILE``, or the name of a dataset registered with
            Detectron2 (``coco_2017_train``), whose annotations are not used.

    Raises:
        UserError: it is none of these, or has no images.
    """
    if name.startswith(LIST_PREFIX):
        return read_list(name.removeprefix(LIST_PREFIX))
    from detectron2.data import DatasetCatalog

    if not Path(name).expanduser().exists() and name in DatasetCatalog:
        return list_registered(name)
    if os.sep not in name and not Path(name).exists():
        hint = closest(name, DatasetCatalog) or "give a folder of images, or of one folder a class"
        raise UserError(f"{name!r} is neither a folder nor a registered dataset; {hint}")
    return list_images(name)


def list_images(folder: str | Path) -> ImageList:
    """The images of a class folder (``folder/class/**/x.jpg``) or of a flat one (``folder/x.jpg``).

    Raises:
        UserError: no such folder, no image in it, or both kinds at once.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(
            f"dataset folder {folder} does not exist; give a folder of images, or of one folder "
            "a class"
        )
    with os.scandir(root) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    flat = [entry.path for entry in entries if _is_image(entry.name) and entry.is_file()]
    paths = PathTable()
    labels = array.array("i")
    classes: list[str] = []
    for class_folder in (entry for entry in entries if entry.is_dir()):
        inside = sorted(_images_below(class_folder.path))
        if inside:
            paths.extend(inside)
            labels.extend([len(classes)] * len(inside))
            classes.append(class_folder.name)
    if flat and classes:
        raise UserError(
            f"{folder} holds images ({Path(flat[0]).name}) beside class folders ({classes[0]}): "
            "move the ones into a class, or the others out"
        )
    if flat:
        return ImageList(PathTable(flat), None, [])
    if not classes:
        raise UserError(
            f"no images in {folder}; looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and in "
            "its class folders"
        )
    return ImageList(paths, labels, classes)


def share_images(first: str | Path, second: str | Path) -> bool:
    """Whether two folders are one, or one is in the other, links followed."""
    one, other = (Path(os.path.realpath(expand_home(folder))) for folder in (first, second))
    return one.is_relative_to(other) or other.is_relative_to(one)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - for 10 M names


def _images_below(folder: str) -> Iterator[str]:
    for where, _, names in os.walk(folder):
        yield from (f"{where}{os.sep}{name}" for name in names if _is_image(name))


def read_list(file: str | Path) -> ImageList:
    """The images of a list: one path a line, relative to the list's folder, and optionally a label.

    The label is the line's last word, an integer from 0 or a class name. Empty lines are passed
    over. The files are not looked for: one that is missing counts as unreadable when its turn
    comes.

    Raises:
        UserError: no such file, no image in it, a line that names no image or has more than
            MAX_LINE characters, labels on some lines only, or one of MAX_CLASSES and more.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise UserError(f"list of images {file} does not exist; DATASETS.TRAIN names it")
    paths = PathTable()
    words: list[str] = []
    interned: dict[str, str] = {}  # one object a class, not one a line
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(map(str.strip, _bounded_lines(lines)), start=1):
            if not line:
                continue
            path, word = _split_list_line(line)
            if path is None:
                raise UserError(
                    f"{file} line {number} names no image ({line[:80]!r}): write one path a line, "
                    f"then a space and the label if there is one; known are "
                    f"{', '.join(sorted(IMAGE_SUFFIXES))}"
                )
            paths.extend([os.path.join(file.parent, path)])  # noqa: PTH118 - for 10 M names
            if word is not None:
                words.append(interned.setdefault(word, word))
    if not paths:
        raise UserError(f"list of images {file} is empty")
    if not words:
        return ImageList(paths, None, [])
    if len(words) != len(paths):
        raise UserError(
            f"{file} has labels on {len(words)} of its {len(paths)} lines: give all or none"
        )
    if all(word.isdecimal() for word in interned):
        largest = max(interned, key=lambda word: (len(word.lstrip("0")), word.lstrip("0")))
        if len(largest.lstrip("0")) > len(str(MAX_CLASSES)) or int(largest) >= MAX_CLASSES:
            raise UserError(
                f"{file} has the label {largest[:20]}, and labels that are numbers count the "
                f"classes from 0: at most {MAX_CLASSES:,}"
            )
        labels = array.array("i", map(int, words))
        return ImageList(paths, labels, [str(i) for i in range(max(labels) + 1)])
    classes = sorted(interned)
    index = {name: i for i, name in enumerate(classes)}
    return ImageList(paths, array.array("i", (index[word] for word in words)), classes)


def _bounded_lines(file: TextIO) -> Iterator[str]:
    """Lines, of which none is read into memory whole if it takes gigabytes.

    Raises:
        UserError: one has more than MAX_LINE characters.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise UserError(
                f"{file.name} line {number} has more than {MAX_LINE:,} characters: write one path "
                "a line"
            )
        yield line


def _split_list_line(line: str) -> tuple[str | None, str | None]:
    """A line as path and label, either of them None. A path may hold spaces."""
    if _is_image(line):
        return line, None
    path, _, word = line.replace("\t", " ").rpartition(" ")
    path = line[: len(path)].rstrip()
    return (path, word) if _is_image(path) else (None, None)


def list_registered(name: str) -> ImageList:
    """The images of a dataset registered with Detectron2's DatasetCatalog, without labels.

    Raises:
        UserError: its files are not there, are damaged, or are none.
    """
    from detectron2.data import DatasetCatalog

    from moco_d2.engine.annotation_files import check_annotation_files

    check_annotation_files(name)
    try:
        records = DatasetCatalog.get(name)
    except OSError as error:
        raise UserError(
            f"dataset {name} is registered, but {error.filename} cannot be read "
            f"({error.strerror}); DETECTRON2_DATASETS names the folder that holds the datasets"
        ) from error
    except _DAMAGED as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(
            f"dataset {name!r}: its annotations are damaged, and Detectron2's reader finds {what}; "
            "mend the file"
        ) from error
    # A dataset for detection may list an image once for each group of its annotations.
    paths = PathTable(dict.fromkeys(record["file_name"] for record in records))
    if not paths:
        raise UserError(f"dataset {name} has no images")
    return ImageList(paths, None, [])
