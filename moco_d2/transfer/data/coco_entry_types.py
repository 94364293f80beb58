"""Checks that the entries of a COCO file have the types that Detectron2's reader expects."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


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


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or _is_whole(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_text_list(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _is_crowd(value: Any) -> bool:
    return type(value) in (int, bool) and value in (0, 1)


def _is_area(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_mask(value: Any) -> bool:
    """Check only the type; mask_checks checks the content."""
    if isinstance(value, list):
        return all(isinstance(polygon, list) for polygon in value)
    return not value or isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return value is None or isinstance(value, list)


_ID = _Field("id", _is_id, "a whole number or text")
_FIELDS = {
    "images": (_ID, _Field("file_name", _is_text, "text")),
    "annotations": (
        _ID,
        _Field("image_id", _is_id, "a whole number or text"),
        _Field("category_id", _is_whole, "a whole number"),
        _Field("iscrowd", _is_crowd, "0 or 1", required=False),
        _Field("area", _is_area, "a number", required=False),
        _Field("segmentation", _is_mask, "a list of polygons or a run-length code", required=False),
        _Field("keypoints", _is_list, "a list of numbers", required=False),
    ),
    "categories": (
        _Field("id", _is_whole, "a whole number"),
        _Field("name", _is_text, "text"),
        _Field("keypoints", _is_text_list, "a list of text", required=False),
    ),
}


def coco_problem(content: dict[str, Any]) -> str:
    """Return the problem of the first invalid entry as a clause, or "".

    Args:
        content: The content of a file, with "images", "annotations" and "categories".
    """
    for part, fields in _FIELDS.items():
        entries = content[part]
        if not isinstance(entries, list):
            return f"{part!r} is {entries!r:.60}, which is not a list"
        for number, entry in enumerate(entries):
            problem = next(_problems(entry, fields), "")
            if problem:
                return f"entry {number} of {part!r} {problem}"
    return ""


def _problems(entry: Any, fields: tuple[_Field, ...]) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"is {entry!r:.60}, which is not a mapping"
        return
    for field in fields:
        if field.name not in entry:
            if field.required:
                yield f"has no {field.name!r}"
        elif not field.is_valid(entry[field.name]):
            yield f"has the {field.name} {entry[field.name]!r:.60}, which is not {field.type}"
