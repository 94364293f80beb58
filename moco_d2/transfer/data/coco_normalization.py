"""The one form of COCO's values that the training and the evaluation read, whatever a tool wrote.

Some tools write whole numbers as 64.0, wrong counts of keypoints, or a byte order mark.
"""

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

_TRIANGLE = 6  # numbers of three corners


def normalize_numbers(content: Any) -> None:
    """Change a COCO file's content in place; values of a wrong type stay for coco_problem.

    * Whole numbers that are written as floats become integers: the height and width of images, the
      size of run-length codes, iscrowd and num_keypoints.
    * num_keypoints becomes the number of labeled keypoints (visibility above 0), because COCO's
      evaluation ignores an object that has 0.
    """
    for image in _entries(content, "images"):
        _make_whole(image, "height", "width")
    for annotation in _entries(content, "annotations"):
        _make_whole(annotation, "iscrowd", "num_keypoints")
        mask = annotation.get("segmentation")
        if isinstance(mask, dict) and isinstance(mask.get("size"), list):
            mask["size"] = [_whole(side) for side in mask["size"]]
        points = annotation.get("keypoints")
        if type(annotation.get("num_keypoints")) is int and isinstance(points, list) and points:
            visible = points[2::3]
            if len(points) % 3 == 0 and all(isinstance(v, int | float) for v in visible):
                annotation["num_keypoints"] = sum(v > 0 for v in visible)


def drop_empty_masks(content: Any) -> None:
    """Replace each mask whose polygons all have fewer than three corners by [], in place.

    Detectron2's reader would leave out the object, although its box is sound.
    """
    for annotation in _entries(content, "annotations"):
        mask = annotation.get("segmentation")
        if isinstance(mask, list) and all(map(_is_no_polygon, mask)):
            annotation["segmentation"] = []


@contextlib.contextmanager
def byte_order_marks_read() -> Iterator[None]:
    """Let pycocotools read files that begin with a byte order mark."""
    reader = SimpleNamespace(load=lambda file: json.loads(file.read().removeprefix("\ufeff")))
    with mock.patch("pycocotools.coco.json", reader):
        yield


def _entries(content: Any, part: str) -> list[dict[str, Any]]:
    entries = content.get(part) if isinstance(content, dict) else None
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def _make_whole(entry: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if key in entry:
            entry[key] = _whole(entry[key])


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_no_polygon(corners: Any) -> bool:
    return isinstance(corners, list) and (len(corners) < _TRIANGLE or len(corners) % 2 == 1)
