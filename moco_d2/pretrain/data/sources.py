"""List images of class folders, flat folders, list files and registered datasets."""

import array
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from moco_d2.errors import UserError, closest, printable
from moco_d2.files import expand_home
from moco_d2.pretrain.data.folders import find_images, is_image
from moco_d2.pretrain.data.image_list import ImageList, PathTable
from moco_d2.pretrain.data.images import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

LIST_PREFIX = "list:"
#: Maximum number of classes. A wrong label could otherwise mean a billion classes.
MAX_CLASSES = 1_000_000
#: Maximum characters of a line in a list: a path and a label.
MAX_LINE = 10_000
_SAMPLE = 16  # files of a list that are looked for before training
# Labels that are numbers, but no class indices: -1 often means an image without a label.
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_FOLDER = "a folder of images or a folder with one folder per class"
# Classes that Detectron2's readers raise for damaged annotations.
_DAMAGED = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, AssertionError),
    *(OverflowError, RecursionError, SyntaxError),
)


def list_source(name: str) -> ImageList:
    """List the images of one entry of DATASETS.TRAIN.

    Args:
        name: A class folder, a flat folder, ``list:FILE``, or the name of a dataset registered with
            Detectron2 (``coco_2017_train``), whose annotations are not used.

    Raises:
        UserError: If `name` is none of these, or has no images.
    """
    if name.startswith(LIST_PREFIX):
        images = _logged(read_list(name.removeprefix(LIST_PREFIX)), name)
        _check_some_exist(images.paths, name)
        return images
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


def _check_some_exist(paths: PathTable, name: str) -> None:
    """
    Raises:
        UserError: If not even one of a few files of a list exists.
    """
    step = max((len(paths) - 1) // _SAMPLE, 1)
    sample = [*paths[::step], paths[-1]]
    if not any(map(os.path.isfile, sample)):
        raise UserError(
            f"{name}: none of {len(sample)} images exists, first {sample[0]}: paths in a list are "
            "absolute, or relative to the folder of the list"
        )


def _logged(images: ImageList, source: str) -> ImageList:
    logger.info("%s: %d images, %d classes", printable(source), len(images), len(images.classes))
    return images


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
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(map(str.strip, _bounded_lines(lines)), start=1):
            if not line:
                continue
            if "\0" in line:
                raise UserError(f"{file} line {number} has a zero byte: write it as text (UTF-8)")
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
    repeated = paths.repeated()
    if repeated:
        logger.warning("%s", printable(f"{repeated} lines of {file} name an image again"))
    if not words:
        return ImageList(paths, None, [])
    if len(words) != len(paths):
        raise UserError(
            f"{file} has labels on only {len(words)} of {len(paths)} lines: label all or none"
        )
    return _with_labels(paths, words, file)


def _with_labels(paths: PathTable, words: list[str], file: Path) -> ImageList:
    """Return the images of a list with the labels that stand beside them; see `read_list`."""
    different = set(words)
    numbers = (word for word in different if _NUMBER.fullmatch(word) and not word.isdecimal())
    wrong = min(numbers, default=None)
    if wrong is not None:
        problem = f"it has the label {wrong[:20]}, and numeric labels are class indices from 0"
        logger.warning("%s", printable(f"the labels of {file} cannot be used: {problem}"))
        return ImageList(paths, None, [], label_problem=problem)
    if all(word.isdecimal() for word in different):
        largest = max(different, key=lambda word: (len(word.lstrip("0")), word.lstrip("0")))
        if len(largest.lstrip("0")) > len(str(MAX_CLASSES)) or int(largest) >= MAX_CLASSES:
            raise UserError(
                f"{file} has the label {largest[:20]}: numeric labels are class indices, from 0 to "
                f"less than {MAX_CLASSES:,}"
            )
        labels = array.array("i", map(int, words))
        return ImageList(paths, labels, [str(i) for i in range(max(labels) + 1)])
    classes = sorted(different)
    folded = {name.casefold(): name for name in classes}
    if len(folded) < len(classes):
        first = next(name for name in classes if folded[name.casefold()] != name)
        pair = f"{first} and {folded[first.casefold()]}"
        logger.warning("%s", printable(f"{file} has {pair}, which are two classes"))
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
    try:
        paths = PathTable(dict.fromkeys(record["file_name"] for record in records))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"dataset {name!r}: an image has no usable file_name "
            f"({type(error).__name__}: {error}): repair its annotations"
        ) from error
    if not paths:
        raise UserError(f"dataset {name} has no images: change DATASETS.TRAIN")
    return ImageList(paths, None, [])
