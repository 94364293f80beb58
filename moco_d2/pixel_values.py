"""Reduces images of more than 8 bits per channel to 8 bits, by the same rule in every command.

The range of the values is divided into 256 equal steps, so relative intensities are kept between
the images of a dataset. Without a stated range, integers have the range of unsigned 16-bit numbers
(of 12-bit numbers, if a TIFF says so). Other integers and float values have no known range, and are
refused.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from moco_d2.errors import UserError
from moco_d2.untrusted_images import check_regular, is_unreadable, open_image

#: The values (low, high) that become black and white; () if none are stated.
ValueRange = Sequence[float]

#: A dataset whose 16-bit values stay below this fraction of their range, except for hot pixels, has
#: at most 64 gray levels after the reduction. This is so for cameras and scanners of 14 bits or
#: fewer.
DARKEST = 1 / 4
_BRIGHT = 0.999  # quantile that counts as the maximum, because sensors have single hot pixels
_SAMPLED = 64  # files that `check_range` opens
_ROWS = 1 << 20  # pixels that are converted at once, in 64-bit floats
_STEPS = 256
_FULL = 65535
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_FIX = (
    "state the values of black and white: MOCO.INPUT.RANGE '(LOW, HIGH)', or --range LOW HIGH for "
    "linear_eval"
)
_RANGE: ContextVar[ValueRange] = ContextVar("value range", default=())


class _Scale(NamedTuple):
    """The range of an image, whether its low values are white, and whether values outside the range
    are refused.
    """

    low: float
    high: float
    inverted: bool = False
    strict: bool = False


def reduce_to_8_bits(image: Image.Image, value_range: ValueRange, name: str) -> Image.Image:
    """Return a gray image of more than 8 bits as an image of mode "L", any other as it is.

    Args:
        image: An opened image, with its header.
        value_range: The values that become black and white. Values outside become black or white.
        name: The name of the file in errors.

    Raises:
        UserError: If no range is stated and the values are float or outside of 0 to 65535, a value
            is not finite, or a range is stated for 16-bit color, of which Pillow reads only the
            upper 8 bits.
    """
    scale = _scale_of(image, value_range, name)
    return image if scale is None else _reduced(image, scale, name)


def _scale_of(image: Image.Image, value_range: ValueRange, name: str) -> _Scale | None:
    if not _is_deep(image):
        if value_range and _is_deep_color(image):
            raise UserError(
                f"image {name} has 16-bit color, which is read by its upper 8 bits, but "
                f"MOCO.INPUT.RANGE is {tuple(value_range)}: convert it to 8 bits with this range"
            )
        return None
    tags: Any = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if value_range:
        low, high = value_range
        return _Scale(low, high, inverted)
    if image.mode == "F":
        raise UserError(f"image {name} has float values, whose range is not known: {_FIX}")
    bits = max(tags.get(_BITS_PER_SAMPLE, (16,)))
    unsigned = set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) == {_UNSIGNED}
    return _Scale(0, 2 ** min(bits, 16) - 1, inverted, strict=bits > 16 or not unsigned)


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_deep_color(image: Image.Image) -> bool:
    """Return whether Pillow drops the lower 8 bits of 16-bit channels (PNG, TIFF)."""
    tiles = getattr(image, "tile", ())[:1]
    raw_modes = [tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in tiles if tile[3]]
    return any(";16" in str(raw_mode) for raw_mode in raw_modes)


def _reduced(image: Image.Image, scale: _Scale, name: str) -> Image.Image:
    values = np.asarray(image)
    reduced = np.empty(values.shape, np.uint8)
    rows = max(_ROWS // max(image.width, 1), 1)
    for start in range(0, len(values), rows):
        reduced[start : start + rows] = _steps(values[start : start + rows], scale, name)
    return Image.fromarray(reduced)


def _steps(values: np.ndarray, scale: _Scale, name: str) -> np.ndarray:
    low, high, inverted, strict = scale
    if strict and not (low <= values.min() and values.max() <= high):
        raise UserError(
            f"image {name} has values from {values.min()} to {values.max()}, whose range is not "
            f"known: {_FIX}"
        )
    if low == 0 and high == _FULL and values.dtype.itemsize == 2:
        steps = values >> 8  # the same numbers, in a tenth of the time
    else:
        if not np.isfinite(values).all():
            raise UserError(f"image {name} has a value that is not finite: repair or remove it")
        distances = values.astype(np.float64) - low
        steps = np.floor(distances * _STEPS / (high - low)).clip(0, _STEPS - 1)
    return (_STEPS - 1 - steps if inverted else steps).astype(np.uint8)


def stated_range(values: Sequence[float] | None) -> ValueRange:
    """Return the values of --range LOW HIGH, or () without.

    Raises:
        UserError: If they are not two finite numbers, the smaller first.
    """
    if not values:
        return ()
    low, high = values
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--range must name two finite values, the smaller first: {low:g} {high:g}")
    return low, high


def check_range(files: Iterable[Any], value_range: ValueRange, *, dataset: str) -> str:
    """Return why the range does not fit a dataset, or "" if nothing is known against it.

    Files that cannot be read are passed over, because their readers report them.

    Args:
        files: The dataset's image files (paths or open files). Some of them are opened, evenly
            spread over a sequence.
        value_range: The stated range, or ().
        dataset: The name of the dataset in the sentence.
    """
    if isinstance(files, Sequence):
        files = files[:: max(len(files) // _SAMPLED, 1)][:_SAMPLED]
    fractions = []
    for file in files:
        try:
            with open_image(file) as image:
                name = str(file) if isinstance(file, str) else dataset
                scale = _scale_of(image, value_range, name)
                if scale is not None and not value_range:
                    _reduced(image, scale, name)
                    brightest = np.quantile(np.asarray(image), _BRIGHT, method="lower")
                    fractions.append(float(brightest) / scale.high)
        except UserError as error:
            return f"{dataset}: {error}"
        except Exception as error:
            if not is_unreadable(error):
                raise
    if fractions and max(fractions) < DARKEST:
        return (
            f"{dataset}: the 16-bit values of {len(fractions)} images that were opened reach only "
            f"{max(fractions):.1%} of their range, so at most 64 gray levels would be left; {_FIX} "
            "(12-bit values: '(0, 4095)'; '(0, 65535)' if few pixels are bright)"
        )
    return ""


@contextlib.contextmanager
def reading(value_range: ValueRange) -> Iterator[None]:
    """Let Detectron2's ``read_image`` use this range for the length of a block."""
    before = _RANGE.set(value_range)
    try:
        yield
    finally:
        _RANGE.reset(before)


def teach_detectron2() -> None:
    """Make Detectron2's ``read_image`` reduce images as `reduce_to_8_bits` does, with the range of
    `reading`. It refuses pipes before it opens them. A second call does nothing.

    Pillow would set all values above 255 to white. Label files (format "L") are read as before.
    """
    from detectron2.data import detection_utils
    from detectron2.utils.file_io import PathManager

    if hasattr(detection_utils.read_image, "__wrapped__"):
        return
    read_any = detection_utils.read_image
    turn, to_numpy = detection_utils._apply_exif_orientation, detection_utils.convert_PIL_to_numpy

    @functools.wraps(read_any)
    def read_image(file_name: Any, format: str | None = None) -> Any:
        check_regular(file_name)
        if format in (None, "L"):
            return read_any(file_name, format)
        with PathManager.open(file_name, "rb") as file:
            image: Image.Image = open_image(file)
            scale = _scale_of(image, _RANGE.get(), str(file_name))
            image = turn(image)  # which frees the memory of the image before
            if scale is not None:
                image = _reduced(image, scale, str(file_name))
            return to_numpy(image, format)

    detection_utils.read_image = read_image
