"""Reads untrusted YAML files: plain values only, within limits, and each file once.

A safe loader builds no objects, but a few hundred bytes of aliases can unfold to billions of
values, endless brackets overflow the stack, and ``_BASE_`` can name a pipe, a device, or files that
include each other many times. The checked values are the values in use: `read_config` returns them,
and no code opens the files again.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from moco_d2.config.literals import DEEPEST, LONGEST, check_value, decode
from moco_d2.files import expand_home, read_regular_file

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Detectron2's whole config has 10 kB, under 1000 values and 5 levels. A packaged config has at most
# 6 files and a chain of 4 bases.
MOST_BYTES = 1 << 20  # per file, and per config with all its bases
MOST_VALUES = 100_000
MOST_FILES = 100
DEEPEST_BASE = 20
# Limit of keys that are no text: numbers can be chosen so that building their dict takes minutes.
MOST_ODD_KEYS = 1000

_BASE = "_BASE_"
#: Errors of reading a YAML file here, or of merging its values in Detectron2.
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, OverflowError),
    *(RecursionError, MemoryError, yaml.YAMLError),
)


def read_text(path: str | Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a regular file. A pipe would block, and a device might never end.

    Raises:
        ValueError: If it is a pipe, a device or a folder, too large, or not UTF-8.
        OSError: If it cannot be read.
    """
    return read_regular_file(path, most_bytes).decode("utf-8")


def load_yaml(path: str | Path) -> Any:
    """Return the content of a YAML file in plain types.

    Raises:
        ValueError: If it unfolds to too many values, nests too deep, has a key twice, a value that
            is too long or too many keys that are no text, or is no text of a regular file.
        OverflowError: If it has a number or a date that is too large for Python.
        yaml.YAMLError: If it is no YAML, or a tag in it would build an object.
        OSError: If it cannot be read.
    """
    return _parse(read_text(path))[0]


def _parse(text: str, where: str = "") -> tuple[Any, int]:
    """Return the content of YAML text and its number of values; see load_yaml.

    Args:
        text: The text.
        where: A prefix for errors, e.g. ``in its _BASE_ b.yaml, ``.
    """
    try:
        values = check_size(text)
        return yaml.load(text, Loader=_LOADER), values  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise yaml.YAMLError(where + _explain(error, text)) from error


_TUPLE = re.compile(r"!!python/tuple\s*[\[(]([^\[\]()\n]{1,80})[\])]")
_TAG = re.compile(r"constructor for the tag '(?:tag:yaml\.org,2002:)?(.{0,80})")


def _explain(error: yaml.YAMLError, text: str) -> str:
    """Return a YAML error as a clause with its line and the fix."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"its character {error.position} is not allowed in text; remove it"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be read"
    if mark is None:
        return f"{problem}; check its syntax"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    where = f"line {mark.line + 1}"
    if tag := _TAG.search(problem):
        name = tag[1].partition("'")[0]
        advice = "remove the tag, and write a plain value"
        if name == "python/tuple":
            inside = values[1].strip() if (values := _TUPLE.search(line)) else "32, 64"
            advice = f"write ({inside}) or [{inside}]"
        return f"{where} has the tag {name}, which could build any object; {advice}"
    if "\t" in line[: len(line) - len(line.lstrip())] or "\t" in line[mark.column :][:1]:
        return f"{where} has a tab, which YAML does not allow there; indent with spaces"
    context = getattr(error, "context", None)
    problem = f"{context}, {problem}" if context else problem
    return f"{where}: {problem}; check its colons and indentation"


class _Node:
    """A mapping or a sequence that is still open."""

    def __init__(self, event: Any):
        self.anchor = event.anchor
        self.values = 1
        self.keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
        self.at_key = self.keys is not None

    def add(self, values: int, scalar: str | None, odd: bool, line: int) -> bool:
        """Count a node inside this one.

        Args:
            values: The number of values that the inner node unfolds to.
            scalar: Its characters; None for a mapping or a sequence.
            odd: Whether it is a scalar that is no text, e.g. a number.
            line: Its line, for errors.

        Returns:
            Whether it is a key that is no text.

        Raises:
            ValueError: If it is a key that this node already has.
        """
        self.values += values
        if self.keys is None:
            return False
        odd_key = self.at_key and odd
        if self.at_key and scalar is not None:
            if scalar in self.keys:
                raise ValueError(f"line {line} repeats the key {scalar!r:.100}; keep one of them")
            self.keys.add(scalar)
        self.at_key = not self.at_key
        return odd_key


def check_size(text: str) -> int:
    """Check the size of YAML text, and that no key is repeated, without building any value.

    Returns:
        The number of values with unfolded aliases.

    Raises:
        ValueError: If it unfolds to too many values, nests too deep, has a key twice, a value that
            is too long, or too many keys that are no text.
        yaml.YAMLError: If it is no YAML.
    """
    # For each anchor: its number of values with unfolded aliases, its scalar, and whether that is
    # no text.
    anchors: dict[str, tuple[int, str | None, bool]] = {}
    open_nodes: list[_Node] = []
    total = odd_keys = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            open_nodes.append(_Node(event))
            if event.anchor is not None:  # an alias inside its own anchor would unfold forever
                anchors[event.anchor] = MOST_VALUES, None, False
            if len(open_nodes) > DEEPEST:
                raise ValueError(f"it nests deeper than {DEEPEST} levels")
            continue
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        node: tuple[int, str | None, bool]
        if isinstance(event, yaml.ScalarEvent):
            anchor, node = event.anchor, (1, _short(event.value, line), not _is_text(event))
        elif isinstance(event, yaml.AliasEvent):
            anchor, node = None, anchors.get(str(event.anchor), (0, None, False))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, node = open_nodes[-1].anchor, (open_nodes.pop().values, None, False)
        else:
            continue
        if anchor is not None:
            anchors[anchor] = node
        if node[0] >= MOST_VALUES:
            raise ValueError(f"it unfolds to more than {MOST_VALUES} values")
        if open_nodes:
            odd_keys += open_nodes[-1].add(*node, line)
            _check_odd_keys(odd_keys, line)
        else:
            total = node[0]
    return total


def _check_odd_keys(number: int, line: int) -> None:
    if number > MOST_ODD_KEYS:
        raise ValueError(f"line {line}: more than {MOST_ODD_KEYS} keys are no text; quote them")


def _is_text(event: Any) -> bool:
    """Return whether a scalar is text, and no number, date, truth value or null."""
    if event.tag not in (None, "!"):
        return event.tag == "tag:yaml.org,2002:str"
    if not event.implicit[0]:  # quoted
        return True
    resolvers = _LOADER.yaml_implicit_resolvers
    rules = [*resolvers.get(event.value[:1], ()), *resolvers.get(None, ())]
    return not any(rule.match(event.value) for _, rule in rules)


def _short(scalar: str, line: int) -> str:
    if len(scalar) > LONGEST:
        raise ValueError(f"line {line} has a value of more than {LONGEST} characters")
    return scalar


def _check_values(node: Mapping[Any, Any], path: Path) -> None:
    for key, value in node.items():
        if not isinstance(key, str):
            raise ValueError(f"{path} has the key {str(key)[:40]!r}, which is no text; quote it")
        if isinstance(value, dict):
            _check_values(value, path)
            continue
        try:
            check_value(value)
            decode(value)
        except ValueError as error:
            raise ValueError(f"{key[:100]} in {path}: {error}") from error


# ---- configs -------------------------------------------------------------------------------------


def read_config(path: str | Path) -> dict[str, Any]:
    """Return a config file merged with its ``_BASE_`` files, as fvcore's load_yaml_with_base does.

    Each file is read once, and nothing is downloaded.

    Raises:
        ValueError: If load_yaml raises it; if a file is no mapping of text to plain values; or if a
            file is its own base, has too many bases, or has a base on another machine.
        OverflowError, yaml.YAMLError, OSError: If load_yaml raises them.
    """
    return _Reader().read(Path(path), ())


class _Reader:
    """Reads one config, and counts its files, bytes and values."""

    def __init__(self) -> None:
        self.files, self.bytes, self.values = 0, 0, 0

    def read(self, path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
        resolved = Path(os.path.realpath(path))  # resolve() raises for circular links
        if resolved in including:
            raise ValueError(f"{resolved} is its own {_BASE}")
        if len(including) >= DEEPEST_BASE:
            raise ValueError(f"{path} is the {_BASE} of more than {DEEPEST_BASE} files in a row")
        content = self._content(path, f"in its {_BASE} {path}, " if including else "")
        if _BASE not in content:
            return content
        bases = content.pop(_BASE)
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, str):
                raise ValueError(f"{_BASE} in {path} must be a file or a list of files")
            if "://" in base:
                raise ValueError(
                    f"its {_BASE} {base} is not on this machine; fetch and read it first"
                )
            # Relative to the folder of the name, not of a link's target, as in fvcore.
            _merge(self.read(path.parent / expand_home(base), (*including, resolved)), merged)
        _merge(content, merged)
        return merged

    def _content(self, path: Path, where: str) -> dict[str, Any]:
        self.files += 1
        if self.files > MOST_FILES:
            raise ValueError(f"it reads more than {MOST_FILES} files through {_BASE}")
        text = read_text(path)
        self.bytes += len(text)
        content, values = _parse(text, where)
        self.values += values
        if self.bytes > MOST_BYTES or self.values > MOST_VALUES:
            raise ValueError(
                f"with its {_BASE}, it has more than {MOST_VALUES} values or {MOST_BYTES} bytes"
            )
        if not isinstance(content, dict):
            raise ValueError(f"{path} is empty or no mapping of keys to values")
        bases = content.pop(_BASE, None)
        _check_values(content, path)
        return content if bases is None else {**content, _BASE: bases}


def _merge(new: dict[str, Any], into: dict[str, Any]) -> None:
    """Merge as fvcore's merge_a_into_b does: `new` overrides `into`."""
    for key, value in new.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ValueError(f"Cannot inherit key '{key}' from base!")
            _merge(value, into[key])
        else:
            into[key] = value
