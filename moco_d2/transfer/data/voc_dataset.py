"""Detectron2's dataset dicts of a VOC-format folder.

Detectron2's own reader cannot read names with spaces, UTF-8 with a byte order mark, annotations
without a size, or images other than ``*.jpg``.
"""

import os
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from moco_d2.errors import UserError
from moco_d2.transfer.data.voc_annotations import read_annotation, read_split
from moco_d2.untrusted_images import SUFFIXES, image_size, is_unreadable


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


def _size_of(file: str) -> tuple[int, int]:
    try:
        return image_size(file)[0]
    except Exception as error:
        if not is_unreadable(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"the size of image {file} cannot be read ({reason}); replace the file, or remove it "
            "from its split"
        ) from error
