"""Checks that the images of a dataset can be opened and have their annotated sizes.

Only headers are read, so damage behind the header is found when the image is used.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data.detection_utils import read_image
from detectron2.utils import comm

from moco_d2.errors import UserError
from moco_d2.untrusted_images import image_size, is_unreadable

logger = logging.getLogger(__name__)


def check_images(name: str, dicts: Sequence[dict[str, Any]]) -> None:
    """Check the images of a dataset, and the label files of semantic segmentation. The processes of
    a machine share the work, so all must call this function. Missing files are accepted.

    Args:
        name: The name of the dataset.
        dicts: Detectron2's dataset dicts. Only the format is checked if they have no size.

    A warning has the number of images that an EXIF orientation turns or mirrors.

    Raises:
        UserError: If an image cannot be opened, or has another size. The message names the first
            one in all processes.
    """
    mine = dicts[comm.get_local_rank() :: comm.get_local_size()]
    turned: list[str] = []
    problems = [(d["file_name"], problem) for d in mine if (problem := _problem(d, turned))]
    parts = comm.all_gather((problems, turned))
    unusable = dict(pair for problems, _ in parts for pair in problems)
    if unusable:
        file = min(unusable)
        raise UserError(
            f"dataset {name!r}: {len(unusable)} of its {len(dicts)} images cannot be used, first "
            f"{file} ({unusable[file]}); repair them or remove their annotations"
        )
    files = set().union(*(turned for _, turned in parts))
    if files:  # an orientation that keeps the size may contradict the annotations unseen
        logger.warning(
            "dataset %r: EXIF orientations turn or mirror %d of its %d images, first %s; their "
            "annotations must be those of the turned images",
            *(name, len(files), len(dicts), min(files)),
        )


def _problem(sample: dict[str, Any], turned: list[str]) -> str:
    """Return why an image cannot be used, or ""; add it to `turned` if EXIF turns it."""
    file, labels = sample["file_name"], sample.get("sem_seg_file_name")
    try:
        size, orientation = image_size(file)
        if orientation > 1:
            turned.append(file)
        declared = sample.get("width", size[0]), sample.get("height", size[1])
        if declared != size and Path(file).suffix.lower() == ".png":
            # In a PNG, the orientation may follow the pixels.
            height, width = read_image(file).shape[:2]
            size = width, height
        label_size = size if labels is None else image_size(labels)[0]
    except FileNotFoundError:
        return ""
    except Exception as error:
        if not is_unreadable(error):
            raise
        return " ".join(str(error).split())
    shown = f"it has width {size[0]} and height {size[1]}"
    if declared != size:
        shown += f", but its annotations say width {declared[0]} and height {declared[1]}"
        if orientation > 1 and declared == size[::-1]:
            # Detectron2 turns an image before it uses the boxes.
            shown += (
                f", its size before its EXIF orientation ({orientation}) turns it; annotate the "
                "turned image, or remove the orientation with exiftool -Orientation= FILE"
            )
        return shown
    if label_size != size:
        return f"{shown}, but {labels} has width {label_size[0]} and height {label_size[1]}"
    return ""
