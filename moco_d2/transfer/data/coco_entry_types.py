"""Checks that the entries of a COCO file have the types that Detectron2's reader and pycocotools
expect, and that images and categories have ids of their own.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Up to this number every whole number is a float, too; programs that write ids as floats merge
# larger ones.
_MAX_ID = 2**53
# pycocotools ignores objects above this number of pixels: COCO's AP counts areas up to 1e5 squared.
_MAX_AREA = 1e10
# No name of a file has these, because they cannot be written in UTF-8.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class _Field(NamedTuple):
    """One field of an entry.

    Attributes:
        name: The key of the field.
        is_valid: Function that returns whether a value has the right type.
        type: Name of the type for error messages.
        required: Whether each entry must have the field.
    """

    name: str
    is_valid: Callable[[Any], bool]
    type: str
    required: bool = True


def is_id(value: Any) -> bool:
    """Return whether images and categories may have this id.

    A bool may not, because True and 1 are the same key. A float and a negative number may not,
    because evaluations in C++ read unsigned integers.
    """
    return type(value) is int and 0 <= value <= _MAX_ID


def _is_annotation_id(value: Any) -> bool:
    """Accept any key, because annotations are numbered again for the evaluation."""
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _NO_TEXT.search(value)


def _is_text_list(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _is_crowd(value: Any) -> bool:
    return type(value) in (int, bool) and value in (0, 1)


def _is_area(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= _MAX_AREA  # False for NaN


def _is_mask(value: Any) -> bool:
    """Check only the type; mask_checks checks the content."""
    if isinstance(value, list):
        return all(isinstance(polygon, list) for polygon in value)
    return not value or isinstance(value, dict)


def _is_flat_list(value: Any) -> bool:
    """Check only the nesting; annotation_checks checks the numbers."""
    return value is None or (
        isinstance(value, list) and not any(isinstance(v, list) for v in value)
    )


def _is_anything(value: Any) -> bool:
    """Accept any value, because annotation_checks checks sizes and names the image."""
    return True


_SIDES = ("height", "width")
_TEXT = "text without null characters and lone surrogates"
_WHOLE = f"a whole number from 0 to {_MAX_ID} (without quotes or decimal point)"
_ID = _Field("id", is_id, _WHOLE)
_FIELDS = {
    "images": (
        _ID,
        _Field("file_name", _is_text, _TEXT),
        _Field("height", _is_anything, "a number of pixels"),
        _Field("width", _is_anything, "a number of pixels"),
    ),
    "annotations": (
        _Field("id", _is_annotation_id, "a number or text"),
        _Field("image_id", is_id, _WHOLE),
        _Field("category_id", is_id, _WHOLE),
        _Field("iscrowd", _is_crowd, "0 or 1", required=False),
        _Field("area", _is_area, f"a number of pixels from 0 to {_MAX_AREA:g}", required=False),
        _Field("segmentation", _is_mask, "a list of polygons or a run-length code", required=False),
        _Field(
            "keypoints",
            _is_flat_list,
            "one list of numbers, x, y, visibility, x, y, visibility, ...",
            required=False,
        ),
        _Field("num_keypoints", _is_count, "a whole number", required=False),
    ),
    "categories": (
        _ID,
        _Field("name", _is_text, _TEXT),
        _Field("keypoints", _is_text_list, "a list of text", required=False),
    ),
}


def coco_problem(content: dict[str, Any], *, lvis: bool = False) -> str:
    """Return the problem of the first invalid entry as a clause, or "".

    Args:
        content: The content of a file; "images", "annotations" and "categories" are checked.
        lvis: Whether it is a file of LVIS, whose images may have an address instead of a name.
    """
    fields_of_part = _FIELDS | ({"images": (_ID,)} if lvis else {})
    for part, fields in fields_of_part.items():
        if part not in content:
            continue
        entries = content[part]
        if not isinstance(entries, list):
            return f"{part!r} is {entries!r:.60}, which is not a list"
        for number, entry in enumerate(entries):
            problem = next(_problems(entry, fields), "")
            if problem:
                return f"entry {number} of {part!r} {problem}"
        if part != "annotations":
            problem = _repeated_id(entries)
            if problem:
                return f"{part!r} {problem}"
    return _unknown_images(content)


def _unknown_images(content: dict[str, Any]) -> str:
    """Accept some annotations of other images, because many subsets of a file have them."""
    annotations = content.get("annotations")
    images = {image["id"] for image in content.get("images", ())}
    if not annotations or not images or any(a["image_id"] in images for a in annotations):
        return ""
    return (
        f"none of its {len(annotations)} annotations is of one of its {len(images)} images, such "
        f"as image_id {annotations[0]['image_id']}, which no entry of 'images' has as its id"
    )


def _repeated_id(entries: list[dict[str, Any]]) -> str:
    seen: dict[int, int] = {}
    for number, entry in enumerate(entries):
        first = seen.setdefault(entry["id"], number)
        if first != number:
            return f"has the id {entry['id']} twice, in its entries {first} and {number}"
    return ""


def _problems(entry: Any, fields: tuple[_Field, ...]) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"is {entry!r:.60}, which is not a mapping"
        return
    for field in fields:
        if field.name not in entry:
            if field.required:
                if field.name in _SIDES:
                    file = entry["file_name"]
                    yield f"({file!r}) has no {field.name!r}, the size of the image in pixels"
                yield f"has no {field.name!r}"
        elif not field.is_valid(entry[field.name]):
            yield f"has the {field.name} {entry[field.name]!r:.60}, which is not {field.type}"
