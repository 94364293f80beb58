"""Whether the masks of a dataset are what they say: before C code decodes them.

pycocotools allocates the size that a run-length code (RLE) claims, reads behind the end of one that
breaks off, and leaves pixels that no run covers as they happen to lie in memory.
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

from moco_d2.untrusted_images import MAX_PIXELS

#: How far from its image a polygon may reach, in longer sides of the image. Crops of larger
#: annotated pictures leave some outside.
MAX_REACH = 10
#: The longest outline of a polygon in pixels: pycocotools takes 80 bytes for each.
MAX_OUTLINE = 4_000_000

# Six bits a character, from "0" on: five of a number, lowest first, and whether more follow. Six
# characters hold what an image of MAX_PIXELS can need, with the sign.
_RUNS = re.compile(rb"(?:[P-o]{0,5}[0-O])+")
_FIRST, _BITS = 48, 5
_MORE, _SIGN, _VALUE = 0b100000, 0b010000, 0b011111
_CHUNK = 20_000  # polygons at a time: some 10 million numbers
_SIDE_UNKNOWN = 100_000.0
_THREE = 6  # numbers of three corners


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: float
    width: float


def size_of(sample: Mapping[str, Any]) -> Size | None:
    """The size that a dataset dict declares; None where it does not, as in segmentation of regions.

    Raises:
        ValueError: it is none, or of more than MAX_PIXELS; says what it is.
    """
    if "width" not in sample and "height" not in sample:
        return None
    height, width = sample.get("height"), sample.get("width")
    if not (_is_side(height) and _is_side(width)):
        raise ValueError(f"has height {height!r:.40} and width {width!r:.40}, which is no size")
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"has height {height} and width {width}, and images of at most {MAX_PIXELS:,} pixels "
            "are read"
        )
    return Size(height, width)


def _is_side(side: Any) -> TypeGuard[float]:
    number = isinstance(side, int | float | np.integer | np.floating) and not isinstance(side, bool)
    return number and 1 <= side <= MAX_PIXELS  # NaN is not


def rle_problem(rle: Mapping[str, Any], image: Size | None) -> str:
    """What is wrong with a run-length code, compressed or not, as a clause; or nothing.

    Args:
        rle: COCO's ``{"size": [height, width], "counts": ...}``.
        image: the size that it must have.
    """
    size = rle.get("size")
    if not _is_size(size):
        return f"has a mask of size {size!r:.60}, which is no height and width"
    height, width = size
    if image is not None and (height, width) != tuple(image):
        return (
            f"has a mask of {height} x {width} pixels (height x width), and the image has "
            f"{image.height} x {image.width}"
        )
    if height * width > MAX_PIXELS:
        return f"has a mask of {height} x {width} pixels, and at most {MAX_PIXELS:,} are read"
    return _counts_problem(rle.get("counts"), height * width)


def _counts_problem(counts: Any, pixels: float) -> str:
    try:
        runs = _runs(counts)
    except (TypeError, ValueError, OverflowError):
        return f"has a mask whose counts are damaged ({counts!r:.40})"
    if runs.size == 0 or runs.min() < 0 or runs.max() > pixels:
        return f"has a mask whose counts are no runs within its {pixels} pixels"
    covered = int(runs.sum())
    if covered != pixels:
        return f"has a mask whose counts are of {covered} pixels, and its size of {pixels}"
    return ""


def _is_size(size: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(size, Sequence) and len(size) == 2 and all(map(_is_side, size))


def _runs(counts: Any) -> np.ndarray:
    """The lengths of the runs as int64.

    Raises:
        TypeError, ValueError, OverflowError: there are none.
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
    # From the fourth on, a run is stored as its difference from the one two before.
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


@contextlib.contextmanager
def guarded_reading() -> Iterator[None]:
    """Hold Detectron2's reading of annotations to two things that cannot be seen in its result.

    An uncompressed code that is damaged stays as it is, for rle_problem to find: pycocotools would
    write behind its memory. And the polygons of less than three corners, which Detectron2 leaves
    out but pycocotools' evaluation draws, are looked at.

    Raises:
        ValueError: there is such a polygon, and it is damaged.
    """
    pack, index = pycocotools_mask.frPyObjects, COCO.createIndex

    def pack_sound(objects: Any, height: Any, width: Any) -> Any:
        if isinstance(objects, Mapping) and rle_problem(objects, None):
            return objects
        return pack(objects, height, width)

    def index_sound(api: COCO) -> None:
        _check_short_polygons(api.dataset.get("annotations", ()))
        index(api)

    pycocotools_mask.frPyObjects, COCO.createIndex = pack_sound, index_sound
    try:
        yield
    finally:
        pycocotools_mask.frPyObjects, COCO.createIndex = pack, index


def _check_short_polygons(annotations: Sequence[dict[str, Any]]) -> None:
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        for corners in segmentation if isinstance(segmentation, list) else ():
            if not isinstance(corners, list) or (len(corners) >= _THREE and len(corners) % 2 == 0):
                continue
            numbers = corners[: len(corners) // 2 * 2]
            problem = numbers and _polygon_problem(Polygon(None, numbers, None))
            if problem:
                raise ValueError(f"that annotation {annotation.get('id')!r:.20} {problem}")


class Polygon(NamedTuple):
    """One of an object's.

    Attributes:
        owner: what it is of, given back with a problem.
        corners: x, y, x, y, ..., or whatever else the annotations have in this place.
        image: its size.
    """

    owner: Any
    corners: Any
    image: Size | None


def polygon_problems(polygons: Iterator[Polygon]) -> Iterator[tuple[Any, str]]:
    """Owners of damaged polygons, and what is wrong, as a clause."""
    while chunk := list(itertools.islice(polygons, _CHUNK)):
        if not _all_sound(chunk):
            for polygon in chunk:
                problem = _polygon_problem(polygon)
                if problem:
                    yield polygon.owner, problem


def _all_sound(polygons: list[Polygon]) -> bool:
    """As _polygon_problem says of each, at a hundredth of the time."""
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
    if not (reach <= [_most_reach(p.image) for p in polygons]).all():  # NaN is not
        return False
    corners, firsts = numbers.reshape(-1, 2), starts // 2
    following = np.roll(corners, -1, axis=0)
    following[np.concatenate((firsts[1:], [len(corners)])) - 1] = corners[firsts]
    steps = np.abs(following - corners).max(axis=1)
    return bool((np.add.reduceat(steps, firsts) <= MAX_OUTLINE).all())


def _most_reach(image: Size | None) -> float:
    return MAX_REACH * (_SIDE_UNKNOWN if image is None else max(image))


def _polygon_problem(polygon: Polygon) -> str:
    corners = polygon.corners
    if isinstance(corners, str) or not isinstance(corners, Sequence | np.ndarray):
        return f"has the polygon {corners!r:.60}, which is no list of numbers"
    for value in corners:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            return f"has a polygon with {value!r:.40}, which is no number"
        if not -math.inf < value < math.inf:
            return f"has a polygon that is not finite ({value})"
    if len(corners) < 2 or len(corners) % 2:
        return f"has a polygon of {len(corners)} numbers, which are no pairs"
    return _extent_problem(polygon)


def _extent_problem(polygon: Polygon) -> str:
    corners = polygon.corners
    reach, limit = max(map(abs, corners)), _most_reach(polygon.image)
    if reach > limit:
        return (
            f"has a polygon that reaches to {_rounded(reach)} pixels, and at most {limit:.0f}, "
            f"{MAX_REACH} times the image, is taken for one"
        )
    points = np.array(corners, dtype=np.float64).reshape(-1, 2)
    outline = np.abs(np.roll(points, -1, axis=0) - points).max(axis=1).sum()
    if outline > MAX_OUTLINE:
        return (
            f"has a polygon with an outline of {outline:.0f} pixels, and at most {MAX_OUTLINE:,} "
            "are drawn"
        )
    return ""


def _rounded(number: float) -> str:
    try:
        return f"{float(number):g}"
    except OverflowError:
        return "more than 1e308"
