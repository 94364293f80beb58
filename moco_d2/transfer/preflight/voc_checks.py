"""Checks of a VOC set whose files are sound one by one: what is listed twice, boxes of images of
another size, and classes without objects.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from moco_d2.transfer.data.box_layout import outside_problem
from moco_d2.transfer.data.mask_checks import Size
from moco_d2.transfer.data.voc_annotations import VOCObject, read_objects, split_file
from moco_d2.transfer.preflight.findings import Finding, Refusal, unless_few

logger = logging.getLogger(__name__)


def check_voc(
    key: str, names: tuple[str, ...], name: str, dicts: Sequence[dict[str, Any]]
) -> Iterator[Finding]:
    """Yield findings about a dataset of the evaluator ``pascal_voc``:

    * An image that is listed twice: a Finding, because the evaluation counts its objects twice.
    * The same object twice in an image: a Finding above 1%; up to it a warning.
    * 25% of the boxes, and three, leave their image by more than 5% of its side: a Finding.
    * A test set without an object that is not difficult: a Refusal.
    * Classes without objects: a warning, because their AP is 0 and the mean counts them.

    Args:
        key: "DATASETS.TRAIN" or "DATASETS.TEST".
        names: The value of the key.
        name: The dataset.
        dicts: Its dicts, which annotation_checks has checked.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "pascal_voc":
        return
    value = str(names)
    image, most = Counter(d["image_id"] for d in dicts).most_common(1)[0]
    if most > 1:
        file = split_file(metadata.dirname, metadata.split)
        yield Finding(key, value, f"{file} lists image {image} {most} times; list it once")
    folder = Path(metadata.dirname) / "Annotations"
    samples = {d["image_id"]: d for d in dicts}
    objects = [(image, item) for image in samples for item in read_objects(folder / f"{image}.xml")]
    yield from _objects_twice(key, value, name, folder, objects)
    problem = outside_problem(
        np.array([item.box for _, item in objects], dtype=np.float64).reshape(-1, 4),
        [Size(samples[image]["height"], samples[image]["width"]) for image, _ in objects],
    )
    if problem:
        yield Finding(key, value, f"dataset {name!r}: {problem}")
    tested = key == "DATASETS.TEST"
    counted = {item.name for _, item in objects if not (tested and item.difficult)}
    if not counted:
        yield Refusal(
            key,
            value,
            f"all {len(objects)} objects of dataset {name!r} are difficult, and the evaluation "
            "counts none; set <difficult> to 0 for those that it should count",
        )
    empty = [label for label in metadata.thing_classes if label not in counted]
    if empty and counted:
        effect = "their AP is 0, and the mean counts it" if tested else "no detector can learn them"
        kind = "object that is not difficult" if tested else "object"
        logger.warning(
            "dataset %r has no %s of %d of its %d classes (%s): %s",
            *(name, kind, len(empty), len(metadata.thing_classes), ", ".join(empty), effect),
        )


def _objects_twice(
    key: str, value: str, name: str, folder: Path, objects: list[tuple[str, VOCObject]]
) -> Iterator[Finding]:
    counts = Counter((image, item.name, item.box) for image, item in objects)
    repeated = len(objects) - len(counts)
    if not repeated:
        return
    image, label, box = next(which for which, count in counts.items() if count > 1)
    message = (
        f"dataset {name!r}: {repeated} of its {len(objects)} objects repeat the box and the class "
        f"of another object of their image, first {label!r} {list(box)} in {folder / image}.xml; "
        "remove them"
    )
    yield from unless_few(key, value, message, repeated / len(objects))
