"""One image file to RGB, and what happens to those that cannot be read."""

import io
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from moco_d2.errors import UserError
from moco_d2.untrusted_images import open_image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})

_NAMES_IN_ERROR = 5
# Below this many images, one damaged file is a share that says nothing about the set.
_SHARE_OF_AT_LEAST = 1000


class Skipped(NamedTuple):
    """An image that was skipped.

    Attributes:
        name: of the file, or of what is missing.
        why: as a clause, or nothing where the name says it.
    """

    name: str
    why: str = ""


class UnreadableImageError(UserError):
    """A file does not decode as an image, or is refused: `why`, as a clause."""

    def __init__(self, message: str, why: str = ""):
        super().__init__(message)
        self.why = why


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file to RGB, as `decode_image`."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("it is no file")
            return _decode(file, str(path))
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _without_waiting(name: str, flags: int) -> int:
    """A named pipe would let the run wait for its writer for ever."""
    return os.open(name, flags | os.O_NONBLOCK)


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode the bytes of an image file, called `name` in errors, to RGB.

    As the official code (Pillow's ``convert("RGB")``): transparency is dropped and an EXIF
    orientation is not applied. Where Pillow would cut 16-bit gray off at 255 (white), the upper 8
    bits are taken, which is what it does itself with 16-bit color.

    Raises:
        UnreadableImageError: it does not decode, or is larger than untrusted_images allows; names
            the file.
    """
    return _decode(io.BytesIO(content), name)


def _decode(file: BinaryIO, name: str) -> Image.Image:
    try:
        with open_image(file) as image:
            if image.mode == "I" or image.mode.startswith("I;16"):
                upper_bits = np.asarray(image).clip(0, 65535) >> 8
                return Image.fromarray(upper_bits.astype(np.uint8)).convert("RGB")
            if image.mode == "RGB":
                image.load()
                return image  # converting it would copy it
            return image.convert("RGB")
    # Pillow raises whatever a damaged file's bytes happen to mean: OSError, SyntaxError,
    # struct.error, DecompressionBombError, ...
    except Exception as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UnreadableImageError:
    why = " ".join(str(error).split())
    return UnreadableImageError(f"image {name} cannot be read ({why}); remove or replace it", why)


class UnreadableImages:
    """Counts the images that were skipped, logs each once, and stops a run that has too many."""

    def __init__(self, limit: float, *, num_images: int):
        """
        Args:
            limit: share in [0, 1] of the images that may be unreadable.
            num_images: in the dataset.
        """
        self.limit = limit
        self.num_images = num_images
        self.seen = 0
        self._names: dict[str, None] = {}  # a set that keeps the order

    def __len__(self) -> int:
        return len(self._names)

    def add(self, skipped: Iterable[Skipped], seen: int) -> None:
        """Count the different files among those skipped while `seen` images were read.

        The share is of the images read so far, or of the whole dataset once it was read. It begins
        with 1000 images (or the dataset, where it is smaller): one damaged file in the first batch
        stops no run.

        Raises:
            UserError: their share exceeds the limit; gives count, share and the first names.
        """
        self.seen += seen
        for name, why in skipped:
            if name not in self._names:
                self._names[name] = None
                reason = f" ({why})" if why else ""
                logger.warning("skipped, because it cannot be read: %s%s", name, reason)
        of = min(max(self.seen, _SHARE_OF_AT_LEAST), self.num_images)
        if len(self) > self.limit * of:
            first = ", ".join(list(self._names)[:_NAMES_IN_ERROR])
            raise UserError(
                f"{len(self)} of {of} images cannot be read ({len(self) / of:.1%}, allowed are "
                f"{self.limit:.1%}), among them {first}: replace or remove them, or raise "
                "MOCO.DATA.MAX_UNREADABLE"
            )
