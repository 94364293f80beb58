"""Checks that the images of a dataset can be opened and have their annotated sizes.

Only headers are read, so damage behind the header is found when the image is used.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from moco_d2.errors import UserError
from moco_d2.untrusted_images import check_regular, is_unreadable, open_image

# Bytes from which nearly all headers can be read: a tenth of a photo.
_HEADER_BYTES = 1 << 14
_ORIENTATION = 274  # EXIF tag
_TURNED = range(5, 9)  # its values for images that are shown with width and height exchanged


def check_images(name: str, dicts: Sequence[dict[str, Any]]) -> None:
    """Check the images of a dataset. The processes of a machine share the work, so all must call
    this function. Missing files are accepted.

    Args:
        name: The name of the dataset.
        dicts: Detectron2's dataset dicts. Only the format is checked if they have no size.

    Raises:
        UserError: If an image cannot be opened, or has another size. The message names the first
            one in all processes.
    """
    mine = dicts[comm.get_local_rank() :: comm.get_local_size()]
    problems = [(d["file_name"], problem) for d in mine if (problem := _problem(d))]
    unusable = dict(pair for part in comm.all_gather(problems) for pair in part)
    if unusable:
        file = min(unusable)
        raise UserError(
            f"dataset {name!r}: {len(unusable)} of its {len(dicts)} images cannot be used, first "
            f"{file} ({unusable[file]}); repair them or remove their annotations"
        )


def _problem(sample: dict[str, Any]) -> str:
    try:
        width, height = _shown_size(sample["file_name"])
    except FileNotFoundError:
        return ""
    except Exception as error:
        if not is_unreadable(error):
            raise
        return " ".join(str(error).split())
    declared = sample.get("width", width), sample.get("height", height)
    if declared == (width, height):
        return ""
    return (
        f"it has width {width} and height {height}, but its annotations say width {declared[0]} "
        f"and height {declared[1]}"
    )


def _shown_size(file: str) -> tuple[int, int]:
    """Return width and height of an image as Detectron2 reads it: turned as EXIF says."""
    check_regular(file)
    with Path(file).open("rb") as opened:
        header = opened.read(_HEADER_BYTES)
    if len(header) == _HEADER_BYTES:
        try:
            return _size_of(io.BytesIO(header))
        except Exception as error:
            if not is_unreadable(error):
                raise
    return _size_of(file)


def _size_of(file: str | io.BytesIO) -> tuple[int, int]:
    with open_image(file) as image:
        width, height = image.size
        # For a PNG without EXIF, Pillow decodes the pixels to look for it behind them.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        return (height, width) if exif.get(_ORIENTATION) in _TURNED else (width, height)
