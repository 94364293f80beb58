"""What an AP needs of each test image, beside the record of a run.

From these files alone the AP of any weighting of the images follows, without the images, boxes and
annotations. A file is an npz archive of plain arrays, and the reader takes nothing else: the names,
types, sizes and values are checked before they are used, and nothing is unpickled.

Shapes: I images, K classes, D detections, P pairs of an image and a class with objects; 10 IoU
thresholds, 0.5 to 0.95.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moco_d2.files import atomic_write, read_regular_file

#: Of the first test set. The others have their number in the name: per_image_1 and so on.
PER_IMAGE_FILE = "per_image.npz"
THRESHOLDS = 10
#: How precision becomes an AP: at 101 recalls (COCO), at 11 recalls (VOC 2007) or as the area under
#: the curve (VOC 2012). VOC's exact forms have one point of the curve for each distinct score.
METRICS = ("coco", "voc_2007", "voc_2012", "voc_2007_exact", "voc_2012_exact")
OUTPUTS = ("bbox", "segm")
#: A file of COCO val2017 with 100 detections in each image has about 4 MB.
MOST_BYTES = 1 << 28
MOST_UNPACKED = 1 << 30
_MOST_IMAGES, _MOST_CLASSES = 1 << 24, 1 << 16
_MOST_HEADER = 1000  # bytes; NumPy's headers of these arrays have 128
_NAMES = "image_names"  # the array of the sha256 of the names


class PerImage(NamedTuple):
    """The detections and the objects of one kind of output on one test set.

    Attributes:
        about: (3,) I, K and the position of the metric in METRICS.
        start: (K + 1,) where the detections of each class begin, and their number.
        image: (D,) image of each detection. Within a class, detections have the evaluator's order:
            falling scores.
        score: (D,)
        true: (D,) bit t is set if the detection is a true positive at threshold t.
        ignored: (D,) bit t is set if it counts as neither right nor wrong, because it is matched to
            a difficult object or lies in a crowd.
        truth_image, truth_class, truth_count: (P,) number of objects that count.
    """

    about: np.ndarray
    start: np.ndarray
    image: np.ndarray
    score: np.ndarray
    true: np.ndarray
    ignored: np.ndarray
    truth_image: np.ndarray
    truth_class: np.ndarray
    truth_count: np.ndarray

    @property
    def images(self) -> int:
        return int(self.about[0])

    @property
    def classes(self) -> int:
        return int(self.about[1])

    @property
    def metric(self) -> str:
        return METRICS[self.about[2]]


_DTYPES = PerImage(
    *map(np.dtype, ("<i8", "<i8", "<u4", "<f4", "<u2", "<u2", "<u4", "<u2", "<u4"))  # type: ignore[arg-type]
)


def per_image(
    images: int,
    metric: str,
    detections: Sequence[np.ndarray],
    counts: np.ndarray,
) -> PerImage:
    """Return the arrays of a file.

    Args:
        images: I.
        metric: One of METRICS.
        detections: (D,) class, image and score, and (10, D) whether each detection is a true
            positive, and whether it is ignored; in the evaluator's order within each class.
        counts: (K, I) number of objects that count.
    """
    label, image, score, true, ignored = detections
    order = np.argsort(label, kind="stable")
    start = np.searchsorted(label[order], np.arange(len(counts) + 1))
    truth_class, truth_image = np.nonzero(counts)
    bits = 1 << np.arange(THRESHOLDS)[:, None]
    arrays = (
        np.array([images, len(counts), METRICS.index(metric)]),
        start,
        image[order],
        score[order],
        (true * bits).sum(axis=0)[order],
        (ignored * bits).sum(axis=0)[order],
        truth_image,
        truth_class,
        counts[truth_class, truth_image],
    )
    return PerImage(*(a.astype(d) for a, d in zip(arrays, _DTYPES, strict=True)))


def write_per_image(path: Path, outputs: Mapping[str, PerImage], image_names: bytes) -> None:
    """Write the outputs of one test set atomically.

    Args:
        outputs: Name of an output -> its arrays.
        image_names: The sha256 digest of the names of the images in their order.

    Raises:
        OSError: If it cannot be written.
    """
    arrays: dict[str, Any] = {_NAMES: np.frombuffer(image_names, np.uint8)}
    arrays |= {f"{o}/{f}": a for o, of in outputs.items() for f, a in of._asdict().items()}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_per_image(path: Path) -> tuple[dict[str, PerImage], bytes]:
    """Return what write_per_image wrote.

    Raises:
        ValueError: If the file is not such an archive, or its arrays cannot be used.
        OSError: If it cannot be read.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(read_regular_file(path, MOST_BYTES)))
        members = archive.infolist()
        allowed = {f"{o}/{f}.npy": o for o in OUTPUTS for f in PerImage._fields}
        names = [member.filename for member in members]
        for name in names:
            if name not in allowed and name != f"{_NAMES}.npy":
                raise ValueError(f"it has an entry {name[:60]!r}")
        if len(set(names)) < len(names) or sum(m.file_size for m in members) > MOST_UNPACKED:
            raise ValueError("it has an entry twice, or would unpack to too much")
        arrays = {member.filename[:-4]: _array(archive, member) for member in members}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"it is no archive of arrays ({error})") from error
    except (RuntimeError, zlib.error) as error:
        raise ValueError(f"it is encrypted or damaged ({error})") from error
    digest = arrays.pop(_NAMES, np.empty(0, np.uint8))
    if digest.dtype != np.uint8 or len(digest) != 32:
        raise ValueError(f"its {_NAMES} are no digest")
    outputs = {}
    for output in dict.fromkeys(name.partition("/")[0] for name in arrays):
        missing = [f for f in PerImage._fields if f"{output}/{f}" not in arrays]
        if missing:
            raise ValueError(f"{output} lacks {missing[0]}")
        outputs[output] = PerImage(*(arrays[f"{output}/{f}"] for f in PerImage._fields))
        problem = _problem(outputs[output])
        if problem:
            raise ValueError(f"{output}: {problem}")
    return outputs, digest.tobytes()


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Return a flat array. NumPy's own reader would also take pickles and any type."""
    content = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError(f"{member.filename} has an unknown form")
    shape, _, dtype = np.lib.format.read_array_header_1_0(content, max_header_size=_MOST_HEADER)
    expected = getattr(_DTYPES, member.filename[:-4].rpartition("/")[2], np.dtype(np.uint8))
    rest = member.file_size - content.tell()
    if dtype != expected or len(shape) != 1 or shape[0] * dtype.itemsize != rest:
        raise ValueError(f"{member.filename} is no flat array of {expected}")
    return np.frombuffer(content.read(), dtype)


def _problem(part: PerImage) -> str:
    """Return what is wrong with the values, as a clause, or ""."""
    return _problem_of_form(part) or _problem_of_values(part)


def _problem_of_form(part: PerImage) -> str:
    D, P = len(part.image), len(part.truth_image)
    if len(part.about) != 3 or not (
        0 < part.about[0] <= _MOST_IMAGES
        and 0 < part.about[1] <= _MOST_CLASSES
        and 0 <= part.about[2] < len(METRICS)
    ):
        return "the numbers of images and classes or the metric are out of range"
    if {len(part.score), len(part.true), len(part.ignored)} != {D}:
        return "its detections differ in length"
    if {len(part.truth_class), len(part.truth_count)} != {P}:
        return "its objects differ in length"
    start = part.start
    divided = len(start) == part.classes + 1 and start[0] == 0 and start[-1] == D
    if not divided or (np.diff(start) < 0).any():
        return "its classes do not divide its detections"
    return ""


def _problem_of_values(part: PerImage) -> str:
    D = len(part.image)
    if (part.image >= part.images).any() or (part.truth_image >= part.images).any():
        return "an image is out of range"
    pairs = part.truth_class.astype(np.int64) * part.images + part.truth_image
    sound = (part.truth_class < part.classes).all() and (part.truth_count <= _MOST_IMAGES).all()
    if not sound or (np.diff(pairs) <= 0).any():
        return "its numbers of objects are out of order or range"
    if (part.true & part.ignored).any() or ((part.true | part.ignored) >> THRESHOLDS).any():
        return "its matches contradict one another"
    rising = np.diff(part.score) > 0
    rising[part.start[(part.start > 0) & (part.start < D)] - 1] = False
    if not np.isfinite(part.score).all() or rising.any():
        return "its scores do not fall within a class"
    found = np.bincount(_classes_of(part)[(part.true & 1) > 0], minlength=part.classes)
    objects = np.bincount(part.truth_class, weights=part.truth_count, minlength=part.classes)
    return "it has more true positives than objects" if (found > objects).any() else ""


def _classes_of(part: PerImage) -> np.ndarray:
    return np.repeat(np.arange(part.classes), np.diff(part.start))
