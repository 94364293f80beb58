"""Detectron2's dataset dicts of a VOC-format folder, and the check of their image sizes.

Detectron2's own reader cannot read names with spaces, UTF-8 with a byte order mark, annotations
without a size, or images other than ``*.jpg``.
"""

import logging
import os
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from moco_d2.errors import UserError
from moco_d2.transfer.data.voc_annotations import read_annotation, read_split
from moco_d2.untrusted_images import SUFFIXES, image_size, is_unreadable

logger = logging.getLogger(__name__)


def load_voc(root: Path, split: str, classes: list[str]) -> list[dict[str, Any]]:
    """Return the dataset dicts of a split, in its order, as Detectron2's load_voc_instances.

    Boxes are in pixels from 0. An annotation without a size gets that of the image.

    Raises:
        UserError: If the split, an annotation, or an image whose size is needed cannot be read.
    """
    images = _image_files(root / "JPEGImages")
    labels = {name: label for label, name in enumerate(classes)}
    dicts = []
    for name in read_split(str(root), split).elements():
        annotation = read_annotation(root / "Annotations" / f"{name}.xml")
        file = images.get(name, str(root / "JPEGImages" / f"{name}.jpg"))
        width, height = annotation.size or _size_of(file)
        dicts.append(
            {
                "file_name": file,
                "image_id": name,
                "height": height,
                "width": width,
                "annotations": [
                    {
                        "category_id": labels[item.name],
                        # VOC counts pixels from 1, and the last pixel belongs to the box.
                        "bbox": [item.box[0] - 1.0, item.box[1] - 1.0, *item.box[2:]],
                        "bbox_mode": BoxMode.XYXY_ABS,
                    }
                    for item in annotation.objects
                ],
            }
        )
    return dicts


def _image_files(folder: Path) -> dict[str, str]:
    """Return the image file of each name. A JPEG is preferred to a file of another format."""
    files: dict[str, str] = {}
    names = sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208 - only names
    for file in sorted(names, key=lambda name: name.endswith(".jpg")):
        name, suffix = os.path.splitext(file)  # noqa: PTH122 - for 100,000 names
        if suffix.lower() in SUFFIXES and not file.startswith("."):
            files[name] = str(folder / file)
    return files


def check_sizes(name: str, dicts: list[dict[str, Any]]) -> None:
    """Compare the annotated sizes with the images, whose headers are read.

    Detectron2 turns an image as its EXIF orientation says before it uses the boxes. Missing images
    are passed over.

    Raises:
        UserError: If an image is unreadable, or has another size than its annotation says.
    """
    turned = []
    for sample in dicts:
        file, annotated = sample["file_name"], (sample["width"], sample["height"])
        if not Path(file).is_file():
            continue
        size, orientation = _size_and_orientation(file)
        if size != annotated:
            raise UserError(_mismatch(name, file, size, annotated, orientation))
        if orientation > 1:
            turned.append(file)
    if turned:
        logger.warning(
            "dataset %r: %d images have an EXIF orientation, first %s; they are turned as it says, "
            "so their boxes must be those of the turned image",
            name,
            len(turned),
            turned[0],
        )


def _mismatch(
    name: str, file: str, size: tuple[int, int], annotated: tuple[int, int], orientation: int
) -> str:
    width, height = annotated
    problem = (
        f"dataset {name!r}: {file} has {size[0]} x {size[1]} pixels, but its annotation says "
        f"{width} x {height}"
    )
    if size != (height, width) or orientation <= 1:
        return f"{problem}; correct its <size> and its boxes"
    return (
        f"{problem}, its size before its EXIF orientation ({orientation}) turns it; remove the "
        "orientation from the file (exiftool -Orientation= FILE), or annotate the turned image"
    )


def _size_of(file: str) -> tuple[int, int]:
    return _size_and_orientation(file)[0]


def _size_and_orientation(file: str) -> tuple[tuple[int, int], int]:
    try:
        return image_size(file)
    except Exception as error:
        if not is_unreadable(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"the size of image {file} cannot be read ({reason}); replace the file, or remove it "
            "from its split"
        ) from error
