"""Annotations of a VOC-format dataset, read once and without trusting their XML."""

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

# Of a split's names, and of an annotation; those of VOC have some 200 kB and 3 kB.
MOST_BYTES, MOST_BYTES_OF_ONE = 256 << 20, 16 << 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VOCObject(NamedTuple):
    """One ``<object>``: its class, its box in pixels counted from 1 with the last one included, and
    whether the annotators found it difficult.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class GroundTruth:
    """Annotated objects of one class, those of an image together.

    Attributes:
        boxes: (G, 4) as VOCObject.box.
        difficult: (G,) bool; such an object is neither to be found nor a mistake.
        start, count: (images,) where each image's objects begin, and how many there are.
        positives: number of objects that are not difficult.
    """

    boxes: np.ndarray
    difficult: np.ndarray
    start: np.ndarray
    count: np.ndarray
    positives: int


def read_split(root: str, split: str) -> Counter[str]:
    """Image names of ROOT/ImageSets/Main/SPLIT.txt, in order, and how often each is listed.

    Raises:
        UserError: there is no such file, or it is no text.
    """
    path = split_file(root, split)
    try:
        text = read_regular_file(PathManager.get_local_path(path), MOST_BYTES).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; give a VOC year's folder") from error
    return Counter(line.strip() for line in text.split("\n") if line.strip())


def split_file(root: str, split: str) -> str:
    """ROOT/ImageSets/Main/SPLIT.txt"""
    return f"{root}/ImageSets/Main/{split}.txt"


def read_ground_truths(root: str, split: Counter[str], class_names: list[str]) -> list[GroundTruth]:
    """The objects of each class in the images of `split`; those of other classes are left out.

    Raises:
        UserError: an annotation is absent or damaged; names the file.
    """
    folder = Path(PathManager.get_local_path(f"{root}/Annotations/"))
    labels = {name: label for label, name in enumerate(class_names)}
    found: list[list[tuple[int, VOCObject]]] = [[] for _ in class_names]
    positives = [0] * len(class_names)
    for image, (name, listed) in enumerate(split.items()):
        for item in read_objects(folder / f"{name}.xml"):
            label = labels.get(item.name)
            if label is not None:
                found[label].append((image, item))
                positives[label] += 0 if item.difficult else listed
    return [
        _collect(objects, len(split), total)
        for objects, total in zip(found, positives, strict=True)
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


def read_objects(path: Path) -> tuple[VOCObject, ...]:
    """The objects of one annotation, in the file's order. Read once for as long as it is unchanged.

    Raises:
        UserError: the file is absent, is no VOC annotation, or declares an XML entity.
    """
    try:
        return _read_objects(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"cannot read annotation {path}: {error.strerror}; put it there or take the image out "
            "of its split"
        ) from error


@cache
def _read_objects(path: Path, modified: int) -> tuple[VOCObject, ...]:
    try:
        return tuple(_object(element) for element in parse_xml(path).findall("object"))
    except (expat.ExpatError, TypeError, ValueError) as error:
        raise UserError(
            f"annotation {path} is damaged ({error}); it must be a VOC annotation, each object "
            "with a name and a bndbox of four numbers"
        ) from error


def _object(element: Element) -> VOCObject:
    name = element.findtext("name")
    if name is None:
        raise ValueError("an object has no name")
    x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{corner}", "")) for corner in _CORNERS)
    return VOCObject(name, (x0, y0, x1, y1), int(element.findtext("difficult", "0")) != 0)


def parse_xml(path: Path) -> Element:
    """The root element of an XML file.

    An entity can stand for gigabytes of text or for another file; one that is declared is refused
    before anything refers to it.

    Raises:
        xml.parsers.expat.ExpatError: not well-formed.
        ValueError: an entity is declared, or it is no regular file of a sound size.
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
    parser.Parse(content, True)
    return builder.close()
