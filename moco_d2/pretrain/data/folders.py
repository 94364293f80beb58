"""Find the images of a folder, and say what was passed over and why.

Folders that are linked into a class are read, each once. Files of operating systems and editors are
passed over: macOS writes ``._x.jpg`` and ``__MACOSX``, Synology ``@eaDir``, Jupyter
``.ipynb_checkpoints``.
"""

import collections
import dataclasses
import itertools
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from moco_d2.errors import UserError, printable
from moco_d2.pretrain.data.images import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

_HIDDEN = "hidden files and folders"
_SYSTEM = "folders of an operating system"
_LINKED_TWICE = "folders that are linked a second time"
_OTHER = "files without the suffix of an image"
_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin"),
        *("system volume information", "lost+found"),
    }
)
_NO_FILES = "links to nothing, pipes and other special files"
# Two folders are splits if one word of their names differs in this way and all others are equal:
# train2017 and val2017, seg_train and seg_test, train_images and val_images.
_TRAIN = frozenset({"train", "training", "trainset", "trainingset", "trainval"})
_HELD_OUT = frozenset(
    {
        *("val", "valid", "validate", "validation", "valset", "test", "testing", "testset"),
        *("dev", "devset", "eval", "evalset", "evaluation", "heldout", "holdout"),
    }
)
# The same for images and their masks, and the folders of VOC and Cityscapes.
_IMAGES = frozenset({"image", "images", "img", "imgs", "rgb"})
_MASKS = frozenset(
    {
        *("mask", "masks", "label", "labels", "annotation", "annotations", "gt", "depth"),
        *("segmentation", "segmentations", "seg", "trimaps"),
    }
)
_IMAGE_FOLDERS = frozenset({"JPEGImages", "leftImg8bit"})
_MASK_FOLDERS = frozenset({"SegmentationClass", "SegmentationObject", "gtFine", "gtCoarse"})
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_OUT = re.compile(r"(held|hold)[-_ ]out", re.I)
_SHOWN = 5  # suffixes in the log


class PassedOver:
    """Counts what is passed over, by reason, with the first example of each."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, str] = {}
        self._suffixes: collections.Counter[str] = collections.Counter()

    def add(self, reason: str, path: str) -> None:
        """Count a file or folder."""
        self.counts[reason] += 1
        self._examples.setdefault(reason, path)
        if reason == _OTHER:
            self._suffixes[os.path.splitext(path)[1].lower()] += 1  # noqa: PTH122 - for speed

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {reason}{self._detail(reason)} (first {self._examples[reason]})"
            for reason, count in self.counts.items()
        )

    def _detail(self, reason: str) -> str:
        if reason != _OTHER:
            return ""
        return " " + ", ".join(suffix or "none" for suffix, _ in self._suffixes.most_common(_SHOWN))


@dataclasses.dataclass
class Found:
    """The images of a folder.

    Attributes:
        flat: The images in the folder itself.
        by_class: The images below each of its folders that has any, in the order of the names.
        passed_over: Everything else.
    """

    flat: list[str]
    by_class: dict[str, list[str]]
    passed_over: PassedOver


def find_images(root: str) -> Found:
    """Return the images of a folder. Files are sorted by name.

    Raises:
        UserError: If a folder has a training split beside a held-out one, or masks beside images,
            or cannot be read.
    """
    return _Search(root).run()


class _Search:
    def __init__(self, root: str):
        self.root = root
        self.passed_over = PassedOver()
        self.links: list[tuple[str, str]] = []  # linked folders, with their class
        self.masks: list[tuple[str, str, str]] = []  # a folder, its images, and perhaps their masks
        self.read: set[tuple[int, int]] = set()  # device and inode of the folders that were read

    def run(self) -> Found:
        flat: list[str] = []
        by_class: dict[str, list[str]] = collections.defaultdict(list)
        for name, entry in self._entries(self.root, name=None):
            if name is None:
                if entry.is_file():  # a pipe or a loop of links is no image
                    flat.append(entry.path)
                else:
                    self.passed_over.add(_NO_FILES, entry.path)
            elif not entry.is_symlink():
                by_class[name] += self._below(entry.path, name)
        # Afterwards, so that images belong to the class in which they really are.
        for name, path in self.links:
            by_class[name] += self._below(path, name)
        for name in sorted(by_class):
            if not by_class[name]:
                self.passed_over.add("folders without images", os.path.join(self.root, name))  # noqa: PTH118
        self._check_no_masks(by_class)
        found = {name: sorted(by_class[name]) for name in sorted(by_class) if by_class[name]}
        return Found(sorted(flat), found, self.passed_over)

    def _check_no_masks(self, by_class: dict[str, list[str]]) -> None:
        """
        Raises:
            UserError: If there are images in a folder of masks beside the images.
        """
        for folder, images, masks in self.masks:
            inside = os.path.join(folder, masks, "")  # noqa: PTH118
            found = sum(path.startswith(inside) for paths in by_class.values() for path in paths)
            if found:
                raise UserError(
                    f"{folder} has {masks} beside {images}, so its {found} masks would be trained "
                    f"on as images: name {os.path.join(folder, images)}, or pretrain on a "  # noqa: PTH118
                    "list:FILE of the images"
                )

    def _below(self, folder: str, name: str) -> list[str]:
        """Return the images below a folder, in any order, and note the linked folders in it."""
        images: list[str] = []
        folders = [folder]
        while folders:
            for inner, entry in self._entries(folders.pop(), name=name):
                if inner is None:
                    images.append(entry.path)
                elif not entry.is_symlink():
                    folders.append(entry.path)
        return images

    def _entries(
        self, folder: str, name: str | None
    ) -> Iterator[tuple[str | None, "os.DirEntry[str]"]]:
        """Yield the images of a folder with None, and its folders with their class.

        Args:
            folder: The folder.
            name: The class to which it belongs; None if its folders are the classes.
        """
        try:
            status = os.stat(folder)  # noqa: PTH116 - for many folders
        except OSError:
            self.passed_over.add("folders that cannot be read", folder)
            return
        if (status.st_dev, status.st_ino) in self.read:
            self.passed_over.add(_LINKED_TWICE, folder)
            return
        self.read.add((status.st_dev, status.st_ino))
        folders = []
        for entry in _sorted_entries(folder):
            if entry.name.startswith("."):
                self.passed_over.add(_HIDDEN, entry.path)
            elif _is_folder(entry):
                if entry.name.lower() in _SYSTEM_FOLDERS:
                    self.passed_over.add(_SYSTEM, entry.path)
                else:
                    folders.append(entry)
            elif is_image(entry.name):
                yield None, entry
            else:
                self.passed_over.add(_OTHER, entry.path)
        names = [entry.name for entry in folders]
        _check_no_splits(folder, names)
        self.masks += [(folder, *pair) for pair in _images_and_masks(names)]
        for entry in folders:
            inner = entry.name if name is None else name
            if entry.is_symlink():
                self.links.append((inner, entry.path))
            yield inner, entry


def _sorted_entries(folder: str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as scan:
            return sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"folder {folder} cannot be read ({error.strerror}), and without it the images and the "
            "classes would be others: change its permissions, or move it away"
        ) from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _check_no_splits(folder: str, names: list[str]) -> None:
    train, held_out, alike = next(_pairs(names, _TRAIN, _HELD_OUT), ("", "", False))
    if train and held_out:
        if not alike:
            doubt = f"{folder} has {train} and {held_out}: if they are splits, name one of them"
            logger.warning("%s", printable(doubt))
            return
        path = os.path.join(folder, train)  # noqa: PTH118
        raise UserError(
            f"{folder} has the splits {train} and {held_out}, so held-out images would be trained "
            f"on, and the splits would be classes: name {path}, or if they are classes, rename "
            "one of them, or pretrain on a list:FILE of all images"
        )


def _images_and_masks(names: list[str]) -> Iterator[tuple[str, str]]:
    yield from itertools.product(
        _IMAGE_FOLDERS.intersection(names), sorted(_MASK_FOLDERS.intersection(names))
    )
    for images, masks, alike in _pairs(names, _IMAGES, _MASKS):
        if alike:
            yield images, masks


def _pairs(
    names: list[str], first: frozenset[str], second: frozenset[str]
) -> Iterator[tuple[str, str, bool]]:
    """Yield a name with a word of `first`, one with a word of `second`, and whether they are alike.

    They are alike if all of their other words are equal. Without such a pair, one other is yielded.
    """
    found: tuple[dict[Any, list[str]], ...] = ({}, {})
    for name in names:
        words = [word.lower() for word in _WORD.findall(_OUT.sub(r"\1out", name))]
        for kind, by_rest in zip((first, second), found, strict=True):
            rest = tuple(word for word in words if word not in kind)
            if len(rest) < len(words):
                by_rest.setdefault(rest, []).append(name)
    ones, others = found
    alike = [(ones[rest][0], other) for rest in ones for other in others.get(rest, ())]
    yield from ((one, other, True) for one, other in alike)
    if ones and others and not alike:
        yield next(iter(ones.values()))[0], next(iter(others.values()))[0], False


def is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - for 10 M names
