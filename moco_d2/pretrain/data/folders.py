"""Find the images of a folder, and say what was passed over and why.

Folders that are linked into a class are read, each once. Files of operating systems and editors are
passed over: macOS writes ``._x.jpg`` and ``__MACOSX``, Synology ``@eaDir``, Jupyter
``.ipynb_checkpoints``.
"""

import collections
import dataclasses
import logging
import os
import re
from collections.abc import Iterator

from moco_d2.errors import UserError
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
# Names of splits: train, training, train2017, val, val2017, validation ...
_TRAIN = re.compile(r"train(ing)?(set)?[-_]?\d*", re.I)
_HELD_OUT = re.compile(r"(val|valid|validation|test|testing|dev|eval)(set)?[-_]?\d*", re.I)
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
        UserError: If a folder has a training split beside a held-out one.
    """
    return _Search(root).run()


class _Search:
    def __init__(self, root: str):
        self.root = root
        self.passed_over = PassedOver()
        self.links: list[tuple[str, str]] = []  # linked folders, with their class
        self.read: set[tuple[int, int]] = set()  # device and inode of the folders that were read

    def run(self) -> Found:
        flat: list[str] = []
        by_class: dict[str, list[str]] = collections.defaultdict(list)
        for name, entry in self._entries(self.root, name=None):
            if name is None:
                if entry.is_file():  # a pipe or a loop of links is no image
                    flat.append(entry.path)
            elif not entry.is_symlink():
                by_class[name] += self._below(entry.path, name)
        # Afterwards, so that images belong to the class in which they really are.
        for name, path in self.links:
            by_class[name] += self._below(path, name)
        for name in sorted(by_class):
            if not by_class[name]:
                self.passed_over.add("folders without images", os.path.join(self.root, name))  # noqa: PTH118
        found = {name: sorted(by_class[name]) for name in sorted(by_class) if by_class[name]}
        return Found(sorted(flat), found, self.passed_over)

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
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        folders = []
        for entry in entries:
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
        _check_no_splits(folder, [entry.name for entry in folders])
        for entry in folders:
            inner = entry.name if name is None else name
            if entry.is_symlink():
                self.links.append((inner, entry.path))
            yield inner, entry


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _check_no_splits(folder: str, names: list[str]) -> None:
    train = next(filter(_TRAIN.fullmatch, names), None)
    held_out = next(filter(_HELD_OUT.fullmatch, names), None)
    if train and held_out:
        raise UserError(
            f"{folder} has the splits {train} and {held_out}, so held-out images would be trained "
            f"on, and the splits would be classes: name {os.path.join(folder, train)}, or for all "  # noqa: PTH118
            "images a list:FILE"
        )


def is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - for 10 M names
