"""Annotations of a VOC-format dataset, with a cache and a reader for untrusted XML."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from detectron2.utils.file_io import PathManager

from moco_d2.errors import UserError
from moco_d2.files import read_regular_file
from moco_d2.untrusted_images import SUFFIXES

# Size limits of a split's list and of an annotation. VOC's have about 200 kB and 3 kB.
MOST_BYTES, MOST_BYTES_OF_ONE = 256 << 20, 16 << 20
# A line of VOC's lists for one class: 1 means that the image has it, -1 that it has not, and 0 that
# all its objects are difficult.
_OF_ONE_CLASS = re.compile(r"\S.*\s(-1|0|1)")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VOCObject(NamedTuple):
    """One ``<object>``: its class, its box, and whether the annotators marked it as difficult. Box
    coordinates are pixels counted from 1, and the last pixel belongs to the box.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class VOCAnnotation(NamedTuple):
    """The objects of an image in the order of the file, and its size (width, height) in pixels,
    which is None if the file does not give it.
    """

    objects: tuple[VOCObject, ...]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class GroundTruth:
    """Annotated objects of one class, ordered by image.

    Attributes:
        boxes: (G, 4), each like VOCObject.box.
        difficult: (G,) bool. A difficult object counts neither if detected nor if missed.
        start, count: (images,) index of each image's first object, and number of its objects.
        positives: Number of objects that are not difficult.
    """

    boxes: np.ndarray
    difficult: np.ndarray
    start: np.ndarray
    count: np.ndarray
    positives: int


def read_split(root: str, split: str) -> Counter[str]:
    """Return the image names of ROOT/ImageSets/Main/SPLIT.txt, in order, with their counts.

    A line may be the path of an image, as in JPEGImages/NAME.jpg.

    Raises:
        UserError: If the file does not exist, is not UTF-8, or lists images with and without an
            object of one class, as VOC's files ``aeroplane_train.txt`` do.
    """
    path = split_file(root, split)
    try:
        text = read_regular_file(PathManager.get_local_path(path), MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}): write it in UTF-8, and give the images and "
            "annotations the same names"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; use a VOC folder") from error
    names = [line.strip() for line in re.split("[\r\n]", text) if line.strip()]
    annotations = Path(PathManager.get_local_path(f"{root}/Annotations/"))
    if (
        names
        and all(map(_OF_ONE_CLASS.fullmatch, names))
        and not (annotations / f"{names[0]}.xml").is_file()
    ):
        raise UserError(
            f"{path} lists whether each image has an object of one class (first line "
            f"{names[0]!r}), but a split has only the names of images: name another split, or "
            "write a file with the first column"
        )
    return Counter(_image_name(name, annotations) for name in names)


def _image_name(line: str, annotations: Path) -> str:
    """Return the name in a line that may be the path of the image."""
    name = without_suffix(line.rpartition("/")[2])
    return line if name == line or (annotations / f"{line}.xml").is_file() else name


def without_suffix(name: str) -> str:
    """Return a name of a split without the suffix of an image file; other dots are part of it."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in SUFFIXES else name


def split_file(root: str, split: str) -> str:
    """Return ROOT/ImageSets/Main/SPLIT.txt."""
    return f"{root}/ImageSets/Main/{split}.txt"


def read_ground_truths(root: str, split: Counter[str], class_names: list[str]) -> list[GroundTruth]:
    """Return the objects of each class in the images of `split`; other classes are left out.

    Raises:
        UserError: If an annotation is missing or damaged. The message names the file.
    """
    folder = Path(PathManager.get_local_path(f"{root}/Annotations/"))
    labels = {name: label for label, name in enumerate(class_names)}
    by_class: list[list[tuple[int, VOCObject]]] = [[] for _ in class_names]
    positives = [0] * len(class_names)
    for image, (name, listed) in enumerate(split.items()):
        for item in read_objects(os.path.join(folder, f"{name}.xml")):  # noqa: PTH118 - for speed
            label = labels.get(item.name)
            if label is not None:
                by_class[label].append((image, item))
                positives[label] += 0 if item.difficult else listed
    return [
        _collect(objects, len(split), total)
        for objects, total in zip(by_class, positives, strict=True)
    ]


def _collect(objects: list[tuple[int, VOCObject]], images: int, positives: int) -> GroundTruth:
    count = np.bincount(np.array([image for image, _ in objects], dtype=np.int64), minlength=images)
    return GroundTruth(
        boxes=np.array([item.box for _, item in objects], dtype=np.float64).reshape(-1, 4),
        difficult=np.array([item.difficult for _, item in objects], dtype=bool),
        start=np.cumsum(count) - count,
        count=count,
        positives=positives,
    )


def read_objects(path: str | Path) -> tuple[VOCObject, ...]:
    """Return the objects of `read_annotation`."""
    return read_annotation(path).objects


def read_annotation(path: str | Path) -> VOCAnnotation:
    """Return the annotation of one image. The result is cached until the file changes.

    Raises:
        UserError: If the file is missing, is not a VOC annotation, or declares an XML entity.
    """
    try:
        modified = os.stat(path).st_mtime_ns  # noqa: PTH116 - for speed
        return _read_annotation(str(path), modified)
    except OSError as error:
        raise UserError(
            f"cannot read annotation {path}: {error.strerror}; add the file or remove the image "
            "from its split"
        ) from error


@cache
def _read_annotation(path: str, modified: int) -> VOCAnnotation:
    try:
        root = parse_xml(Path(path))
        objects = root.findall("object")
        if len(objects) < sum(element.tag.lower() == "object" for element in root.iter()):
            raise ValueError(
                f"an object is not an <object> directly in <{root.tag}>; write it so, because no "
                "other is read"
            )
        return VOCAnnotation(tuple(map(_object, objects)), _size(root))
    except (expat.ExpatError, TypeError, ValueError) as error:
        raise UserError(
            f"annotation {path} is damaged ({error}); each object of a VOC annotation must have a "
            "name and a bndbox of four numbers, and difficult must be 0 or 1"
        ) from error


def _object(element: Element) -> VOCObject:
    name = class_name(element)
    if not name:
        raise ValueError("an object has no name")
    x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{corner}", "")) for corner in _CORNERS)
    difficult = element.findtext("difficult", "").strip() or "0"
    if difficult not in ("0", "1"):
        raise ValueError(f"an object has difficult {difficult[:20]!r}")
    return VOCObject(name, (x0, y0, x1, y1), difficult == "1")


def class_name(element: Element) -> str:
    """Return the name of an ``<object>``, with single spaces between its words; "" without one.

    Editors and programs that indent XML add spaces and line breaks, which are not part of a name.
    """
    return " ".join(element.findtext("name", "").split())


def _size(root: Element) -> tuple[int, int] | None:
    """Return (width, height), or None if they are missing, empty or 0."""
    width, height = (root.findtext(f"size/{side}", "").strip() for side in ("width", "height"))
    size = int(float(width or 0)), int(float(height or 0))
    return size if min(size) > 0 else None


def parse_xml(path: Path) -> Element:
    """Return the root element of an XML file.

    An entity can expand to gigabytes of text or to another file, so a declaration of one is
    refused.

    Raises:
        xml.parsers.expat.ExpatError: If the file is not well-formed.
        ValueError: If it declares an entity, is in another encoding than UTF-8, is not a regular
            file or is too large.
    """
    content = read_regular_file(path, MOST_BYTES_OF_ONE)

    def refuse(name: str, *declaration: object) -> None:
        raise ValueError(f"it declares the XML entity {name!r}, which an annotation never needs")

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError) as error:
        if "encoding" in str(error) or not _is_utf_8(content):
            raise ValueError(
                f"it is not UTF-8 ({error}); save it and its first line in UTF-8"
            ) from error
        raise
    return builder.close()


def _is_utf_8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
