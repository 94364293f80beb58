"""Judges values of a file that are written out again: into provenance, records and reports."""

import json
from collections.abc import Iterator
from typing import Any

# A whole config has under 1000 values, 5 deep. A few hundred bytes may stand for billions.
_MOST_VALUES, _MOST_CHARACTERS, _DEEPEST = 10_000, 1_000_000, 20
_LONGEST_TEXT, _LONGEST_KEY = 10_000, 300  # characters; a record's reader takes no longer key
_LINES = str.maketrans("", "", "\n\t\r")


def is_small(value: Any) -> bool:
    """Whether it unfolds to no more than a config could, with text that a terminal can print."""
    values, characters = 0, 0
    pending = [(value, 0)]
    while pending:
        node, depth = pending.pop()
        parts = list(_parts(node))
        values += 1
        if isinstance(node, str):
            characters += len(node)
            if len(node) > _LONGEST_TEXT or not node.translate(_LINES).isprintable():
                return False
        if isinstance(node, dict) and any(len(str(key)) > _LONGEST_KEY for key in node):
            return False
        if (
            values + len(pending) + len(parts) > _MOST_VALUES
            or characters > _MOST_CHARACTERS
            or depth > _DEEPEST
        ):
            return False
        pending += ((part, depth + 1) for part in parts)
    return True


def _parts(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.keys()
        yield from node.values()
    elif isinstance(node, list | tuple):
        yield from node


def as_report(value: Any) -> dict[str, Any] | None:
    """A dict as JSON has it; None for anything else, and for more than a report could hold."""
    if not isinstance(value, dict) or not is_small(value):
        return None
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None
