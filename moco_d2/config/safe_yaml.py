"""YAML of strangers: plain values only, no more of them than a config has room for, read once.

A safe loader builds no objects, but a few hundred bytes of aliases can still stand for billions of
values, brackets without end for a stack without one, and a name under ``_BASE_`` for a pipe, a
device or a file that names the next one twice. What is checked here is what is used: `read_config`
returns the values, and nothing opens the files again.
"""

import ast
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from moco_d2.files import read_regular_file

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Detectron2's whole config, written out, has 10 kB and under 1000 values, 5 deep; a packaged one
# has 6 files, 4 of them behind each other.
MOST_BYTES = 1 << 20  # of a file, and of a config with all its bases
MOST_VALUES = 100_000
DEEPEST = 50
LONGEST = 10_000  # characters of a value; Linux has paths of up to 4096
MOST_FILES = 100
DEEPEST_BASE = 20
# Keys that are no text, of a file: numbers can be chosen so that a dict of them takes minutes.
MOST_ODD_KEYS = 1000
_MOST_BITS = 63  # of a whole number, as in torch and numpy

_BASE = "_BASE_"
#: What reading a YAML file here, or a value of one in Detectron2, may raise.
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, OverflowError),
    *(RecursionError, MemoryError, yaml.YAMLError),
)


def is_regular_file(path: str | Path) -> bool:
    """Whether there is such a file, and no folder, pipe or device. False for a name that none can
    have.
    """
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder. False for a name that none can have."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def expand_home(name: str | Path) -> Path:
    """`name` with ``~`` replaced, where there is such a user."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's raises where there is none


def read_text(path: str | Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a regular file. Nothing else is opened: a pipe would wait, a device never end.

    Raises:
        ValueError: it is a pipe, a device or a folder, too large, or not UTF-8.
        OSError: it cannot be read.
    """
    return read_regular_file(path, most_bytes).decode("utf-8")


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file, of plain types.

    Raises:
        ValueError: it unfolds to too many values, nests too deep, names a key twice, has a value
            that is too long or too many keys that are no text, or is no text of a regular file.
        OverflowError: it has a number or a date that Python has no room for.
        yaml.YAMLError: it is no YAML, or a tag in it would build an object.
        OSError: it cannot be read.
    """
    return _parse(read_text(path))[0]


def _parse(text: str, where: str = "") -> tuple[Any, int]:
    """The content, and its number of values; see load_yaml.

    Args:
        where: for errors: ``in its _BASE_ b.yaml, ``.
    """
    try:
        values = check_size(text)
        return yaml.load(text, Loader=_LOADER), values  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        raise yaml.YAMLError(where + _explain(error, text)) from error


_TUPLE = re.compile(r"!!python/tuple\s*[\[(]([^\[\]()\n]{1,80})[\])]")
_TAG = re.compile(r"constructor for the tag '(?:tag:yaml\.org,2002:)?(.{0,80})")


def _explain(error: yaml.YAMLError, text: str) -> str:
    """A YAML error as a clause with its line and what to do."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"its character {error.position} is none of a text; remove it"
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
        return f"{where} has a tab where YAML has none; indent with spaces"
    context = getattr(error, "context", None)
    problem = f"{context}, {problem}" if context else problem
    return f"{where}: {problem}; check its colons and indentation"


class _Node:
    """A mapping or a sequence whose end has not been met."""

    def __init__(self, event: Any):
        self.anchor = event.anchor
        self.values = 1
        self.keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
        self.at_key = self.keys is not None

    def add(self, values: int, scalar: str | None, odd: bool, line: int) -> bool:
        """Count a node inside; `scalar` is its text, if it is one, and `odd`, that it stands for
        something else.

        Returns:
            whether it is a key that is no text.

        Raises:
            ValueError: it is a key that is there already.
        """
        self.values += values
        if self.keys is None:
            return False
        odd_key = self.at_key and odd
        if self.at_key and scalar is not None:
            if scalar in self.keys:
                raise ValueError(f"line {line} names the key {scalar!r:.100} again; keep one")
            self.keys.add(scalar)
        self.at_key = not self.at_key
        return odd_key


def check_size(text: str) -> int:
    """Refuse what would not fit into memory or the stack, and keys of which one would be lost,
    without building anything.

    Returns:
        the number of values, aliases unfolded.

    Raises:
        ValueError: it unfolds to too many values, nests too deep, names a key twice, has a value
            that is too long, or too many keys that are no text.
        yaml.YAMLError: it is no YAML.
    """
    # What an anchor stands for: the number of values, its aliases unfolded, its text, and whether
    # that stands for something else.
    anchors: dict[str, tuple[int, str | None, bool]] = {}
    open_nodes: list[_Node] = []
    total = odd_keys = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            open_nodes.append(_Node(event))
            if event.anchor is not None:  # inside itself, it stands for no end of values
                anchors[event.anchor] = MOST_VALUES, None, False
            if len(open_nodes) > DEEPEST:
                raise ValueError(f"it nests deeper than {DEEPEST} levels")
            continue
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        found: tuple[int, str | None, bool]
        if isinstance(event, yaml.ScalarEvent):
            anchor, found = event.anchor, (1, _short(event.value, line), not _is_text(event))
        elif isinstance(event, yaml.AliasEvent):
            anchor, found = None, anchors.get(str(event.anchor), (0, None, False))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, found = open_nodes[-1].anchor, (open_nodes.pop().values, None, False)
        else:
            continue
        if anchor is not None:
            anchors[anchor] = found
        if found[0] >= MOST_VALUES:
            raise ValueError(f"it unfolds to more than {MOST_VALUES} values")
        if open_nodes:
            odd_keys += open_nodes[-1].add(*found, line)
            _check_odd_keys(odd_keys, line)
        else:
            total = found[0]
    return total


def _check_odd_keys(number: int, line: int) -> None:
    if number > MOST_ODD_KEYS:
        raise ValueError(f"line {line}: more than {MOST_ODD_KEYS} keys are no text; quote them")


def _is_text(event: Any) -> bool:
    """Whether a scalar is text, and no number, date, truth value or nothing."""
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


# ---- values --------------------------------------------------------------------------------------


def decode(value: Any) -> Any:
    """A value as yacs takes it: text that is a Python literal is what it stands for.

    Raises:
        ValueError: the text is too long, nests too deep for Python, or stands for something that no
            config key holds.
    """
    if not isinstance(value, str):
        return value
    if len(value) > LONGEST:
        raise ValueError(f"{value[:40]!r}... has more than {LONGEST} characters")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    except (RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"{value[:40]!r} cannot be evaluated; write a plain value") from error
    check_value(literal)
    return literal


def check_value(value: Any, deep: int = 0) -> None:
    """
    Raises:
        ValueError: it is not made of text, numbers, truth values and lists alone, or a whole number
            in it has more than 64 bits.
    """
    if isinstance(value, list | tuple):
        if deep > DEEPEST:
            raise ValueError(f"a value nests deeper than {DEEPEST} levels")
        for part in value:
            check_value(part, deep + 1)
    elif type(value) is int and value.bit_length() > _MOST_BITS:
        raise ValueError(f"{hex(value)[:20]}... has more than 64 bits")
    elif not (value is None or type(value) in (str, int, float, bool)):
        raise ValueError(f"{str(value)[:40]!r} is no text, number, truth value or list of these")


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
    """A config file merged into those it names under ``_BASE_``, as fvcore's load_yaml_with_base
    does, each read once and nothing fetched.

    Raises:
        ValueError: as load_yaml; a file is no mapping of texts to plain values, is its own base or
            has too many, or one is not on this machine.
        OverflowError, yaml.YAMLError, OSError: as load_yaml.
    """
    return _Reader().read(Path(path), ())


class _Reader:
    """Reads one config, with what is left of the limits."""

    def __init__(self) -> None:
        self.files, self.bytes, self.values = 0, 0, 0

    def read(self, path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
        resolved = Path(os.path.realpath(path))  # resolve() raises for links in a circle
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
            # Beside the name, not beside what a link of this name leads to: as fvcore looks.
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
    """fvcore's merge_a_into_b: `new` counts."""
    for key, value in new.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ValueError(f"Cannot inherit key '{key}' from base!")
            _merge(value, into[key])
        else:
            into[key] = value
