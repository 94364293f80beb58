"""Converts plain values to the structs of records, with errors that name the field."""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from moco_d2.errors import printable

_LONGEST_MESSAGE = 300  # characters; a message may quote text of the record

# msgspec writes ".name", "[2]", or "[...]" for a mapping's value.
_PATH_PART = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
_MISSING = re.compile(r"Object missing required field `(.*)`")

Form = TypeVar("Form", bound=msgspec.Struct)


def parse(content: Any, kind: type[Form], what: str) -> Form:
    """Convert plain values from a JSON file to a struct.

    Args:
        content: Plain values.
        kind: The subclass of msgspec.Struct.
        what: The expected kind of content, for errors: "version 2 record".

    Raises:
        ValueError: If a field is missing or has a wrong value. The message names the field.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        path, problem = _explain(content, kind, error)
        raise ValueError(f"not a {what}: ${_clipped(path)}: {_clipped(problem)}") from error


def _explain(content: Any, kind: type, error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the path of the wrong value, and the problem.

    The path has the mapping's key where msgspec writes [...].
    """
    problem, path = _split(str(error))
    parts: list[str | int] = []
    for name, index in _PATH_PART.findall(path):
        if index != "...":
            parts.append(int(index) if index else name)
            continue
        node = _at(content, parts)
        keys = list(node)
        # Bisection is fast even if a file has very many keys.
        while len(keys) > 1:
            first = keys[: len(keys) // 2]
            half = _with(content, parts, {key: node[key] for key in first})
            keys = first if _split(_error_of(half, kind))[1] == path else keys[len(first) :]
        parts.append(keys[0])
        content = _with(content, parts[:-1], {keys[0]: node[keys[0]]})
    located = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    if error.__cause__:  # the error of a __post_init__ begins with the rest of the path
        rest, _, problem = problem.partition(": ")
        return f"{located}.{rest}", problem
    problem = _MISSING.sub(r'the field "\1" is missing', problem)
    value = _at(content, parts)
    if isinstance(value, str | int | float) and "got" not in problem:
        problem += f", got {value!r:.40}"
    return located, problem


def _split(error: str) -> tuple[str, str]:
    """Split an error of msgspec into problem and path. The path of the root is empty."""
    problem, at, path = error.rpartition(" - at `")
    return (problem, path.removesuffix("`")) if at else (error, "")


def _error_of(content: Any, kind: type) -> str:
    try:
        msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _at(content: Any, parts: Sequence[str | int]) -> Any:
    for part in parts:
        content = content[part]
    return content


def _with(content: Any, parts: Sequence[str | int], value: Any) -> Any:
    """Return a copy of `content` with another value at one path. All other values are shared."""
    if not parts:
        return value
    copied = content.copy()
    copied[parts[0]] = _with(content[parts[0]], parts[1:], value)
    return copied


def _clipped(text: str) -> str:
    return printable(text[:_LONGEST_MESSAGE])
