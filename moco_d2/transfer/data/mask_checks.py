"""Checks of a dataset's masks before C code decodes them.

For a damaged run-length code (RLE), pycocotools allocates any size that it claims, reads beyond the
end of a truncated one, and returns uninitialized memory for pixels that no run covers.
"""

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from pycocotools import mask as pycocotools_mask
from pycocotools.coco import COCO

from moco_d2.transfer.data.coco_entry_types import coco_problem
from moco_d2.transfer.data.coco_normalization import (
    byte_order_marks_read,
    drop_empty_masks,
    normalize_numbers,
)
from moco_d2.untrusted_images import MAX_PIXELS

#: The largest coordinate of a polygon, as a multiple of the image's longer side. Polygons may leave
#: the image, because some images are crops of larger annotated pictures.
MAX_REACH = 10
#: The longest outline of a polygon in pixels: pycocotools takes 80 bytes for each.
MAX_OUTLINE = 4_000_000

# COCO's compressed RLE: each character is "0" plus six bits. Five bits belong to a number (lowest
# first), the sixth says whether the number continues. Six characters hold any signed run length of
# an image with MAX_PIXELS.
_RUNS = re.compile(rb"(?:[P-o]{0,5}[0-O])+")
_FIRST, _BITS = 48, 5
_MORE, _SIGN, _VALUE = 0b100000, 0b010000, 0b011111
_CHUNK = 20_000  # polygons that are checked together: about 10 million numbers
_SIDE_UNKNOWN = 100_000.0  # assumed longer side of an image without a size
_TRIANGLE = 6  # numbers of three corners


class Size(NamedTuple):
    """The size of an image in pixels."""

    height: float
    width: float


def size_of(sample: Mapping[str, Any]) -> Size | None:
    """Return the size that a dataset dict declares; None if it declares none, as in semantic
    segmentation.

    Raises:
        ValueError: If it is not a size, or has more than MAX_PIXELS. The message is a clause.
    """
    if "width" not in sample and "height" not in sample:
        return None
    height, width = sample.get("height"), sample.get("width")
    if not (_is_side(height) and _is_side(width)):
        raise ValueError(f"has height {height!r:.40} and width {width!r:.40}, which is no size")
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"has height {height} and width {width}, but the limit is {MAX_PIXELS:,} pixels"
        )
    return Size(height, width)


def _is_side(side: Any) -> TypeGuard[float]:
    number = isinstance(side, int | float | np.integer | np.floating) and not isinstance(side, bool)
    return number and 1 <= side <= MAX_PIXELS  # False for NaN


def rle_problem(rle: Mapping[str, Any], image: Size | None) -> str:
    """Return the problem of a run-length code (compressed or not) as a clause, or "".

    Args:
        rle: COCO's ``{"size": [height, width], "counts": ...}``.
        image: The size that the mask must have; None accepts any.
    """
    size = rle.get("size")
    if not _is_size(size):
        return f"has a mask of size {size!r:.60}, which is not a height and a width"
    height, width = size
    if image is not None and (height, width) != tuple(image):
        return (
            f"has a mask of {height} x {width} pixels (height x width), but the image has "
            f"{image.height} x {image.width}"
        )
    if height * width > MAX_PIXELS:
        return f"has a mask of {height} x {width} pixels, but the limit is {MAX_PIXELS:,}"
    return _counts_problem(rle.get("counts"), height * width)


def _counts_problem(counts: Any, pixels: float) -> str:
    try:
        runs = _runs(counts)
    except (TypeError, ValueError, OverflowError):
        return f"has a mask whose counts are damaged ({counts!r:.40})"
    if runs.size == 0 or runs.min() < 0 or runs.max() > pixels:
        return f"has a mask whose counts are not runs within its {pixels} pixels"
    covered = int(runs.sum())
    if covered != pixels:
        return f"has a mask whose counts cover {covered} pixels, but its size has {pixels}"
    return ""


def _is_size(size: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(size, Sequence) and len(size) == 2 and all(map(_is_side, size))


def _runs(counts: Any) -> np.ndarray:
    """Return the lengths of the runs as int64.

    Raises:
        TypeError, ValueError, OverflowError: If `counts` cannot be decoded.
    """
    if not isinstance(counts, str | bytes):
        runs = np.array(counts)
        if runs.dtype.kind not in "iu" or runs.ndim != 1:
            raise TypeError
        return runs.astype(np.int64)
    code = counts.encode("ascii") if isinstance(counts, str) else counts
    if not _RUNS.fullmatch(code):
        raise ValueError
    characters = np.frombuffer(code, np.uint8).astype(np.int64) - _FIRST
    ends = np.flatnonzero((characters & _MORE) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    place = np.arange(len(code)) - np.repeat(starts, lengths)
    values = np.add.reduceat((characters & _VALUE) << (_BITS * place), starts)
    values -= ((characters[ends] & _SIGN) != 0) * (1 << (_BITS * lengths))
    # From the fourth run on, COCO stores the difference from the run two places before.
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


@contextlib.contextmanager
def guarded_reading(*, lvis: bool = False) -> Iterator[None]:
    """Add three checks to Detectron2's reader of COCO files that its result no longer allows.

    Every entry must have the types of coco_problem, after coco_normalization. A damaged
    uncompressed RLE is not packed but left for rle_problem, because pycocotools would write beyond
    its memory. Polygons of fewer than three corners are checked, because Detectron2 drops them but
    pycocotools' evaluation draws them; an object that has no others has no mask.

    Args:
        lvis: Whether a file of LVIS is read, which another package does.

    Raises:
        ValueError: If an entry or such a polygon is damaged.
        ModuleNotFoundError: If `lvis` is set, and the package is not installed.
    """
    pack = pycocotools_mask.frPyObjects

    def pack_valid(objects: Any, height: Any, width: Any) -> Any:
        if isinstance(objects, Mapping) and rle_problem(objects, None):
            return objects
        return pack(objects, height, width)

    with contextlib.ExitStack() as stack:
        stack.enter_context(byte_order_marks_read())
        stack.enter_context(_replaced(pycocotools_mask, "frPyObjects", pack_valid))
        stack.enter_context(_checked_index(COCO, "createIndex", lvis=False))
        if lvis:
            from lvis import LVIS

            stack.enter_context(_checked_index(LVIS, "_create_index", lvis=True))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _checked_index(
    api: type, method: str, *, lvis: bool
) -> contextlib.AbstractContextManager[None]:
    index = getattr(api, method)

    def check_and_index(self: Any) -> None:
        normalize_numbers(self.dataset)
        problem = coco_problem(self.dataset, lvis=lvis)
        if problem:
            raise ValueError(problem)
        _check_short_polygons(self.dataset.get("annotations", ()))
        if not lvis:
            drop_empty_masks(self.dataset)
        index(self)

    return _replaced(api, method, check_and_index)


def _check_short_polygons(annotations: Sequence[dict[str, Any]]) -> None:
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        for corners in segmentation if isinstance(segmentation, list) else ():
            if not isinstance(corners, list):
                continue
            if len(corners) >= _TRIANGLE and len(corners) % 2 == 0:
                continue
            numbers = corners[: len(corners) // 2 * 2]
            problem = numbers and _polygon_problem(Polygon(None, numbers, None))
            if problem:
                raise ValueError(f"that annotation {annotation.get('id')!r:.20} {problem}")


class Polygon(NamedTuple):
    """One polygon of an annotated object.

    Attributes:
        owner: Any object that identifies the polygon; it is returned with a problem.
        corners: x, y, x, y, ..., or any other value that the annotation file has instead.
        image: Size of the image, if it is known.
    """

    owner: Any
    corners: Any
    image: Size | None


def polygon_problems(polygons: Iterator[Polygon]) -> Iterator[tuple[Any, str]]:
    """Yield the owner of each damaged polygon and the problem as a clause."""
    while chunk := list(itertools.islice(polygons, _CHUNK)):
        if not _all_valid(chunk):
            for polygon in chunk:
                problem = _polygon_problem(polygon)
                if problem:
                    yield polygon.owner, problem


def _all_valid(polygons: list[Polygon]) -> bool:
    """Return whether _polygon_problem is "" for all polygons, in a hundredth of its time."""
    try:
        numbers = np.array(list(itertools.chain.from_iterable(p.corners for p in polygons)))
        lengths = np.array([len(p.corners) for p in polygons])
    except (TypeError, ValueError):
        return False
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 1 or (lengths < 2).any():
        return False
    if (lengths % 2).any():
        return False
    starts = np.concatenate(([0], lengths.cumsum()[:-1]))
    numbers = numbers.astype(np.float64, copy=False)
    reach = np.maximum.reduceat(np.abs(numbers), starts)
    if not (reach <= [_max_reach(p.image) for p in polygons]).all():  # False for NaN
        return False
    corners, firsts = numbers.reshape(-1, 2), starts // 2
    following = np.roll(corners, -1, axis=0)
    following[np.concatenate((firsts[1:], [len(corners)])) - 1] = corners[firsts]
    steps = np.abs(following - corners).max(axis=1)
    return bool((np.add.reduceat(steps, firsts) <= MAX_OUTLINE).all())


def _max_reach(image: Size | None) -> float:
    return MAX_REACH * (_SIDE_UNKNOWN if image is None else max(image))


def _polygon_problem(polygon: Polygon) -> str:
    corners = polygon.corners
    if isinstance(corners, str) or not isinstance(corners, Sequence | np.ndarray):
        return f"has the polygon {corners!r:.60}, which is not a list of numbers"
    for value in corners:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            return f"has a polygon with {value!r:.40}, which is not a number"
        if not -math.inf < value < math.inf:
            return f"has a polygon that is not finite ({value})"
    if len(corners) < 2 or len(corners) % 2:
        return f"has a polygon of {len(corners)} numbers, which are not x, y pairs"
    return _extent_problem(polygon)


def _extent_problem(polygon: Polygon) -> str:
    corners = polygon.corners
    farthest, limit = max(corners, key=abs), _max_reach(polygon.image)
    if abs(farthest) > limit:
        return (
            f"has a polygon with the coordinate {_rounded(farthest)}, but the limit is {limit:.0f} "
            f"pixels, {MAX_REACH} times the image's longer side"
        )
    points = np.array(corners, dtype=np.float64).reshape(-1, 2)
    outline = np.abs(np.roll(points, -1, axis=0) - points).max(axis=1).sum()
    if outline > MAX_OUTLINE:
        return (
            f"has a polygon with an outline of {outline:.0f} pixels, but the limit is "
            f"{MAX_OUTLINE:,}"
        )
    return ""


def _rounded(number: float) -> str:
    try:
        return f"{float(number):g}"
    except OverflowError:
        return "more than 1e308"
