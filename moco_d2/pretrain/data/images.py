"""Decode image files to RGB, and count the unreadable ones.

Training takes tensors, evaluation takes Pillow's images. The pixels of complete files are equal.
"""

import contextlib
import io
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
from PIL import Image, ImageFile

from moco_d2.errors import UserError, printable
from moco_d2.pixel_values import ValueRange, reduce_to_8_bits
from moco_d2.untrusted_images import SUFFIXES, open_image

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_Decoded = TypeVar("_Decoded")

IMAGE_SUFFIXES = SUFFIXES

# Bytes. Checks and decoders read a file in many parts, and each would be a call of the system.
_READ_AT_ONCE = 16 << 20
_NAMES_IN_ERROR = 5
# Of other subsamplings of the colors, the pixels of torchvision and Pillow differ.
_EQUAL_SUBSAMPLINGS = {(1, 1), (2, 1), (2, 2)}
# With fewer images, the fraction of one damaged file says nothing about the dataset.
_LEAST_DENOMINATOR = 1000


class _Content(io.BytesIO):
    """The bytes of a file, with its name for errors."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


class Skipped(NamedTuple):
    """A skipped image.

    Attributes:
        name: The file, or a description of the missing images.
        why: The reason as a clause; empty if the name says it.
        unread: Whether an image cannot be read. If not, there merely are fewer images than stated.
    """

    name: str
    why: str = ""
    unread: bool = True


class UnreadableImageError(UserError):
    """A file cannot be decoded as an image, or is refused. `why` is the reason, as a clause."""

    def __init__(self, message: str, why: str = ""):
        super().__init__(message)
        self.why = why


def read_image(path: str | Path, value_range: ValueRange = ()) -> Image.Image:
    """Decode an image file to RGB; see `decode_image`."""
    return _read(path, value_range, _to_image)


def read_pixels(path: str | Path, value_range: ValueRange = ()) -> "torch.Tensor":
    """Decode an image file to RGB, uint8 (3, H, W); see `decode_image`."""
    return _read(path, value_range, _to_pixels)


def decode_image(content: bytes, name: str, value_range: ValueRange = ()) -> Image.Image:
    """Decode the bytes of an image file to RGB.

    As in the official code (Pillow's ``convert("RGB")``), transparency is dropped and an EXIF
    orientation is not applied. Values of more than 8 bits are reduced as in pixel_values.py; Pillow
    would cut them off at 255.

    Args:
        content: The bytes of the file.
        name: The name of the file in errors.
        value_range: MOCO.INPUT.RANGE.

    Raises:
        UnreadableImageError: If the image cannot be decoded, is larger than untrusted_images
            allows, or has values of an unknown range (see `reduce_to_8_bits`). The message names
            the file.
    """
    return _decode(io.BytesIO(content), name, value_range, _to_image)


def decode_pixels(content: bytes, name: str, value_range: ValueRange = ()) -> "torch.Tensor":
    """Decode the bytes of an image file to RGB, uint8 (3, H, W); see `decode_image`.

    The memory format is channels_last.
    """
    return _decode(io.BytesIO(content), name, value_range, _to_pixels)


def _read(
    path: str | Path,
    value_range: ValueRange,
    convert: Callable[[ImageFile.ImageFile, ValueRange, str], _Decoded],
) -> _Decoded:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is not a regular file")
            source: BinaryIO = file
            if status.st_size <= _READ_AT_ONCE:
                source = _Content(file.read(), str(path))
            return _decode(source, str(path), value_range, convert)
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _without_waiting(name: str, flags: int) -> int:
    """Open a file without waiting: a named pipe without a writer would block the run forever."""
    return os.open(name, flags | os.O_NONBLOCK)


def _decode(
    file: BinaryIO,
    name: str,
    value_range: ValueRange,
    convert: Callable[[ImageFile.ImageFile, ValueRange, str], _Decoded],
) -> _Decoded:
    try:
        with open_image(file) as image:
            return convert(image, value_range, name)
    except UserError as error:  # the range of its values is not known
        raise UnreadableImageError(str(error), str(error)) from error
    # Pillow raises many classes for damaged files: OSError, SyntaxError, struct.error,
    # DecompressionBombError, ...
    except Exception as error:
        raise _unreadable(name, error) from error


def _to_image(image: ImageFile.ImageFile, value_range: ValueRange, name: str) -> Image.Image:
    if image.mode == "RGB" and not value_range:
        image.load()
        return image  # `convert` would copy it
    return reduce_to_8_bits(image, value_range, name).convert("RGB")


def _to_pixels(image: ImageFile.ImageFile, value_range: ValueRange, name: str) -> "torch.Tensor":
    import torch

    if image.format == "JPEG" and image.mode == "RGB" and image.fp:
        # A component is (name, horizontal factor, vertical factor, table).
        factors = {component[1:3] for component in getattr(image, "layer", ())[:1]}
        if factors <= _EQUAL_SUBSAMPLINGS:
            pixels = _decoded_jpeg(image.fp, image.size)
            if pixels is not None:
                return pixels
    return torch.from_numpy(np.array(_to_image(image, value_range, name))).permute(2, 0, 1)


def _decoded_jpeg(file: IO[bytes], size: tuple[int, int]) -> "torch.Tensor | None":
    """Return the pixels of a JPEG without Pillow's fourth byte per pixel.

    For None, Pillow decodes the file, or says what is wrong with it: torchvision cannot, or has
    been built without libjpeg.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    file.seek(0)
    encoded = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    try:
        with _silent_in_workers():
            pixels = cast("torch.Tensor", decode_jpeg(encoded, mode=ImageReadMode.RGB))
    except RuntimeError:
        return None
    return pixels if pixels.shape[:0:-1] == size else None


@contextlib.contextmanager
def _silent_in_workers() -> Iterator[None]:
    """Discard what libjpeg writes to stderr: a line for each flaw that both decoders pass over.

    The lines have no name of a file. Only a worker of a loader has a stderr that no other thread
    can write to meanwhile.
    """
    from torch.utils.data import get_worker_info

    if get_worker_info() is None:
        yield
        return
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _unreadable(name: str, error: Exception) -> UnreadableImageError:
    why = " ".join(str(error).split())
    return UnreadableImageError(f"image {name} cannot be read ({why}); remove or replace it", why)


class UnreadableImages:
    """Counts skipped images, logs each file once, and stops a run that has too many."""

    def __init__(self, limit: float, *, num_images: int):
        """
        Args:
            limit: Allowed fraction of unreadable images, in [0, 1].
            num_images: Number of images in the dataset.
        """
        self.limit = limit
        self.num_images = num_images
        self.seen = 0
        self._names: dict[str, None] = {}  # an ordered set
        self._noted = False

    def __len__(self) -> int:
        return len(self._names)

    def add(self, skipped: Iterable[Skipped], seen: int) -> None:
        """Count the skipped files of a batch.

        The denominator of the fraction is the number of images that were read, at least 1000, and
        at most the size of the dataset. So one damaged file in the first batch does not stop a run.

        Args:
            skipped: The skipped images.
            seen: Number of images of the batch.

        Raises:
            UserError: If the fraction exceeds the limit. The message has count, fraction and the
                first names.
        """
        self.seen += seen
        for name, why, unread in skipped:
            if not unread:
                if not self._noted:
                    self._noted = True
                    logger.warning("%s", printable(why))
            elif name not in self._names:
                self._names[name] = None
                reason = f" ({why})" if why else ""
                # A log is UTF-8, but the name of a file may have any bytes.
                skipped_image = printable(f"{name}{reason}")
                logger.warning("skipped, because it cannot be read: %s", skipped_image)
        total = min(max(self.seen, _LEAST_DENOMINATOR), self.num_images)
        if len(self) > self.limit * total:
            first = ", ".join(list(self._names)[:_NAMES_IN_ERROR])
            raise UserError(
                f"{len(self)} of {total} images cannot be read ({len(self) / total:.1%}, allowed: "
                f"{self.limit:.1%}), among them {first}: replace or remove them, or raise "
                "MOCO.DATA.MAX_UNREADABLE"
            )
