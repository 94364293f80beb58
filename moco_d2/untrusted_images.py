"""How an image file of a stranger is opened: formats, size in pixels, size in bytes, kind of file.

Pillow asks some 40 readers in turn what a file is, whatever it is called. Some of them start other
programs (PostScript is handed to Ghostscript), and its own limit on pixels lets one file take
gigabytes. Every image that this package or Detectron2 opens is opened here instead.
"""

import functools
import io
import os
import re
import stat
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

from PIL import Image

#: Pillow's names of the formats that are read. All are rasters that Pillow or a library in its
#: process decodes. JPEG is that of MPO files, too.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
#: The most pixels of an image, by its header. A decoded pixel takes 4 bytes, and for a moment 16 at
#: the most where it is converted (32-bit grey; alpha; Detectron2's turned copy): 1.6 GB.
MAX_PIXELS = 100_000_000
#: The most bytes of an image file: 4 a pixel. Pillow reads whole chunks and tags into memory.
MAX_FILE_BYTES = 4 * MAX_PIXELS

# Whose calls of Pillow are held to the same: Detectron2 and what it evaluates with.
_READERS = frozenset({"detectron2", "densepose", "cityscapesscripts", "panopticapi", "lvis"})
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """Open an image as ``PIL.Image.open`` does: the header is read, the pixels are not.

    Args:
        file: a path, or an open file that can seek.

    Raises:
        PIL.UnidentifiedImageError: the content has none of FORMATS.
        PIL.Image.DecompressionBombError: the image has more than MAX_PIXELS.
        OSError: the file has more than MAX_FILE_BYTES, or is no regular file.
        Exception: whatever Pillow's readers raise over damaged bytes, see `is_unreadable`.
    """
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    name = os.fspath(name) if isinstance(name, str | os.PathLike) else "it"
    if isinstance(file, str | os.PathLike):
        check_regular(file)
        size = os.stat(file).st_size  # noqa: PTH116 - as fast as it can be
    else:
        size = _bytes_in(file)
    if size > MAX_FILE_BYTES:
        raise OSError(f"{name} has {size:,} bytes, and at most {MAX_FILE_BYTES:,} are read")
    image = Image.open(file, formats=FORMATS)
    try:
        _check_pixels(image, name)
    except BaseException:
        image.close()
        raise
    return image


def check_regular(file: str | Path) -> None:
    """Refuse what would block or never end: a pipe, a device, a socket; also a folder.

    A file that does not exist is left to its reader.

    Raises:
        OSError: it is none.
    """
    try:
        mode = os.stat(file).st_mode  # noqa: PTH116 - called for every image
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        raise OSError(f"{os.fspath(file)} is no regular file")


def _bytes_in(file: BinaryIO) -> int:
    try:
        return os.fstat(file.fileno()).st_size
    except (AttributeError, OSError):  # in memory
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return size


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(
            f"{name} has {image.width} x {image.height} pixels, and at most {MAX_PIXELS:,} are read"
        )
    if image.format == "TIFF":
        # A tile is decoded whole, however little of it is in the image.
        width, height = (image.tag_v2.get(tag) for tag in (_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH))
        if isinstance(width, int) and isinstance(height, int) and width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(
                f"{name} has tiles of {width} x {height} pixels, and at most {MAX_PIXELS:,} are "
                "read"
            )


def is_unreadable(error: Exception) -> bool:
    """Whether an error says that an image file is damaged, refused or absent.

    Pillow's readers raise whatever damaged bytes happen to mean: SyntaxError, ValueError,
    struct.error ...
    """
    if isinstance(error, OSError | Image.DecompressionBombError):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    modules = (frame.f_globals.get("__name__", "") for frame, _ in frames)
    return any(re.fullmatch(r"PIL\.(ImageFile|\w+ImagePlugin)", name) for name in modules)


def guard_detectron2() -> None:
    """Let Detectron2, and what it evaluates with, open images by `open_image`. Idempotent.

    ``PIL.Image.open`` is replaced by a function that looks at who calls: for others it is Pillow's
    own. ``detection_utils.read_image`` refuses pipes before it opens them.
    """
    from detectron2.data import detection_utils

    if hasattr(Image.open, "for_others"):
        return
    open_any, read_any = Image.open, detection_utils.read_image

    @functools.wraps(open_any)
    def open_for_caller(fp, mode="r", formats=None):
        caller = sys._getframe(1).f_globals.get("__name__") or ""
        if formats is None and caller.partition(".")[0] in _READERS:
            return open_image(fp)
        return open_any(fp, mode, formats)

    @functools.wraps(read_any)
    def read_image(file_name, format=None):
        check_regular(file_name)
        return read_any(file_name, format)

    open_for_caller.for_others = open_any
    Image.open = open_for_caller
    detection_utils.read_image = read_image
