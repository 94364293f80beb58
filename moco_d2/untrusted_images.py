"""Opens untrusted image files, with checks of format, pixels, bytes and kind of file.

Pillow tries about 40 readers on a file, whatever its name. Some readers start other programs
(Ghostscript for PostScript), and Pillow's limit of pixels lets one file take gigabytes. This module
opens every image of this package and of Detectron2.
"""

import functools
import io
import os
import re
import stat
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image, ImageFile, UnidentifiedImageError

#: Pillow's names of the accepted formats. All are raster formats that Pillow or a library decodes
#: in this process. JPEG includes MPO files.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
#: The suffixes of their files, in lower case.
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
#: The most pixels of an image, by its header. A decoded pixel takes 4 bytes, and at most 16 during
#: a conversion (32-bit gray, alpha, Detectron2's rotated copy), which gives 1.6 GB.
MAX_PIXELS = 100_000_000
#: The most bytes of an image file, 4 per pixel. Pillow reads whole chunks and tags into memory.
MAX_FILE_BYTES = 4 * MAX_PIXELS
#: The most scans of a JPEG. A progressive JPEG has about 10 scans. Each scan covers all pixels, so
#: a scan of 140 bytes can cost 0.1 s.
MAX_SCANS = 100
#: The most EXIF segments of a JPEG. One is normal. For each new one Pillow copies all before it.
MAX_EXIF = 100
#: The most strips or tiles of a TIFF. Pillow takes about 10 microseconds for each.
MAX_STRIPS = 500_000

# Packages whose calls of Pillow are checked too: Detectron2 and its evaluators.
_READERS = frozenset({"detectron2", "densepose", "cityscapesscripts", "panopticapi", "lvis"})
# The attribute of our ``PIL.Image.open`` that holds Pillow's function.
_ORIGINAL = "for_others"
_JPEG_START, _EXIF = b"\xff\xd8", b"Exif\0\0"
# A JPEG's marker. Stuffed bytes and restart codes inside a scan's data are no markers.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_END_CODE, _SCAN_CODE, _EXIF_CODE = 0xD9, 0xDA, 0xE1
# Markers of frames, of which C0 and C1 are baseline.
_FRAME_CODES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE_CODES = frozenset({0xC0, 0xC1})
# Markers without a length, as in Pillow and libjpeg.
_WITHOUT_LENGTH = frozenset({0x01, 0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)})
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_HEADER_BYTES = 1 << 16
_ORIENTATION, _TRANSPOSED = 0x0112, frozenset({5, 6, 7, 8})


def open_image(file: str | Path | BinaryIO) -> ImageFile.ImageFile:
    """Open an image as ``PIL.Image.open`` does: it reads the header, but not the pixels.

    Args:
        file: A path, or an open file that can seek.

    Raises:
        PIL.UnidentifiedImageError: If the file has none of FORMATS.
        PIL.Image.DecompressionBombError: If the image has more than MAX_PIXELS, or a JPEG has more
            than MAX_SCANS or MAX_EXIF.
        OSError: If the file has more than MAX_FILE_BYTES, or is not a regular file.
        Exception: Any error of Pillow's readers for damaged bytes, see `is_unreadable`.
    """
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    name = os.fspath(name) if isinstance(name, str | os.PathLike) else "it"
    if isinstance(file, str | os.PathLike):
        check_regular(file)
        size = os.stat(file).st_size  # noqa: PTH116 - for speed
    else:
        size = _bytes_in(file)
    if size > MAX_FILE_BYTES:
        raise OSError(f"{name} has {size:,} bytes, and at most {MAX_FILE_BYTES:,} are read")
    _check_jpeg(file, name)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(
            f"{name} has none of the formats that are read, {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        # Pillow checks its own, different limit first.
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        if pixels is None or int(pixels[1]) <= MAX_PIXELS:
            raise
        raise Image.DecompressionBombError(
            f"{name} has {int(pixels[1]):,} pixels, and at most {MAX_PIXELS:,} are read"
        ) from error
    try:
        _check_pixels(image, name)
    except BaseException:
        image.close()
        raise
    return image


def image_size(file: str | Path) -> tuple[tuple[int, int], int]:
    """Return the size (width, height) of an image after its EXIF orientation turns it, and this
    orientation (1: not turned). Usually only the first _HEADER_BYTES are read.

    Raises:
        Exception: As in `open_image`.
    """
    check_regular(file)
    with Path(file).open("rb") as opened:
        start = opened.read(_HEADER_BYTES)
    if Path(file).stat().st_size <= MAX_FILE_BYTES:
        try:
            return _turned_size(open_image(io.BytesIO(start)))
        except Exception as error:  # the header may be longer
            if not is_unreadable(error):
                raise
    with open_image(file) as image:
        return _turned_size(image)


def _turned_size(image: Image.Image) -> tuple[tuple[int, int], int]:
    # Pillow would decode a PNG to look for EXIF behind its pixels.
    has_exif = image.format != "PNG" or "exif" in image.info
    try:
        orientation = image.getexif().get(_ORIENTATION, 1) if has_exif else 1
    except Exception:  # Detectron2 reads an image with damaged EXIF as it is
        orientation = 1
    width, height = image.size
    return ((height, width) if orientation in _TRANSPOSED else (width, height)), orientation


def check_regular(file: str | Path) -> None:
    """Refuse a pipe, a device, a socket or a folder. Reading the first three could block forever.

    A missing file is accepted, so that its reader reports it.

    Raises:
        OSError: If the file exists and is not a regular file.
    """
    try:
        mode = os.stat(file).st_mode  # noqa: PTH116 - called for every image
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        raise OSError(f"{os.fspath(file)} is not a regular file")


def _bytes_in(file: BinaryIO) -> int:
    try:
        return os.fstat(file.fileno()).st_size
    except (AttributeError, OSError):  # a file in memory
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return size


def _check_jpeg(file: str | Path | BinaryIO, name: str) -> None:
    """Refuse a JPEG that takes far more time than its size suggests.

    Raises:
        PIL.Image.DecompressionBombError: If it has more than MAX_SCANS or MAX_EXIF.
    """
    if isinstance(file, str | os.PathLike):
        with Path(file).open("rb") as opened:
            _check_jpeg(opened, name)
        return
    file.seek(0)
    if file.read(len(_JPEG_START)) == _JPEG_START:
        file.seek(0)
        content = file.getvalue() if isinstance(file, io.BytesIO) else file.read()
        if not _is_one_scan(content, name) and _scans(content) > MAX_SCANS:
            raise Image.DecompressionBombError(
                f"{name} has more than {MAX_SCANS} scans, and no more are read"
            )
    file.seek(0)


def _is_one_scan(content: bytes, name: str) -> bool:
    """Return whether a JPEG has a single scan. For most files this takes microseconds.

    Raises:
        PIL.Image.DecompressionBombError: If it has more than MAX_EXIF.
    """
    exifs, position, components = 0, 0, b""
    while marker := _MARKER.search(content, position):
        code, position = marker[1][0], marker.end()
        if code == _SCAN_CODE:  # the number of its components follows the length
            return bool(components) and components == content[position + 2 : position + 3]
        if code in _WITHOUT_LENGTH:
            continue
        if code == _EXIF_CODE and content.startswith(_EXIF, position + 2):
            exifs += 1
            if exifs > MAX_EXIF:
                raise Image.DecompressionBombError(
                    f"{name} has more than {MAX_EXIF} EXIF segments, and no more are read"
                )
        if code in _FRAME_CODES:  # the number follows length, precision, height and width
            components = content[position + 7 : position + 8] if code in _BASELINE_CODES else b""
        position += _length(content, position)
    return False


def _scans(content: bytes) -> int:
    """Return the number of scans of a JPEG. The count stops above MAX_SCANS."""
    scans, position = 0, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(content, position)):
        code, position = marker[1][0], marker.end()
        if code == _END_CODE and scans:
            break
        scans += code == _SCAN_CODE
        if code not in _WITHOUT_LENGTH:
            position += _length(content, position)
    return scans


def _length(content: bytes, position: int) -> int:
    """Return the bytes of a segment, including the two bytes of the length itself."""
    return max(int.from_bytes(content[position : position + 2], "big"), 2)


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(
            f"{name} has {image.width} x {image.height} pixels, and at most {MAX_PIXELS:,} are read"
        )
    if image.format == "TIFF":
        from PIL.TiffImagePlugin import TiffImageFile  # which Pillow has imported for this image

        if not isinstance(image, TiffImageFile):
            raise TypeError(f"{name} has the format TIFF but the type {type(image).__name__}")
        if len(image.tile) > MAX_STRIPS:
            raise Image.DecompressionBombError(
                f"{name} has {len(image.tile):,} strips, and at most {MAX_STRIPS:,} are read"
            )
        # A tile is decoded completely, even if little of it is in the image.
        width, height = (image.tag_v2.get(tag) for tag in (_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH))
        if isinstance(width, int) and isinstance(height, int) and width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(
                f"{name} has tiles of {width} x {height} pixels, and at most {MAX_PIXELS:,} are "
                "read"
            )


def is_unreadable(error: Exception) -> bool:
    """Return whether an error means that an image file is damaged, refused or absent.

    For damaged bytes Pillow's readers raise many types: SyntaxError, ValueError, struct.error ...
    """
    if isinstance(error, OSError | Image.DecompressionBombError):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    modules = (frame.f_globals.get("__name__", "") for frame, _ in frames)
    return any(re.fullmatch(r"PIL\.(ImageFile|\w+ImagePlugin)", name) for name in modules)


def guard_detectron2() -> None:
    """Make Detectron2 and its evaluators open images with `open_image`. A second call does nothing.

    The new ``PIL.Image.open`` checks images for these callers only, and calls Pillow's function for
    all others.
    """
    if hasattr(Image.open, _ORIGINAL):
        return
    open_any = Image.open

    @functools.wraps(open_any)
    def open_for_caller(
        fp: Any, mode: Literal["r"] = "r", formats: list[str] | tuple[str, ...] | None = None
    ) -> ImageFile.ImageFile:
        caller = sys._getframe(1).f_globals.get("__name__") or ""
        if formats is None and caller.partition(".")[0] in _READERS:
            return open_image(fp)
        return open_any(fp, mode, formats)

    setattr(open_for_caller, _ORIGINAL, open_any)
    Image.open = open_for_caller
