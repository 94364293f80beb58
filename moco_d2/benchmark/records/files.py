"""Reading JSON records of any kind: found, bounded, checked against a schema; what is damaged is
named and left out.

A record may come from anywhere, so that nothing in it may be believed before it is checked.
"""

import itertools
import json
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jsonschema_rs

from moco_d2.errors import UserError, printable

MOST_BYTES = 64 << 20  # 20 evaluations of LVIS, class by class, take 4 MB
MOST_VALUES = 2_000_000  # those 20 evaluations have 50,000; yaml's aliases can stand for billions
MOST_LEVELS = 32  # a record has some 8; what walks through a config does so recursively
_LONGEST_TEXT, _LONGEST_KEY = 100_000, 300  # characters
_LONGEST_MESSAGE = 300  # characters; a record's own text may be in it

_logger = logging.getLogger(__name__)

T = TypeVar("T")


def collect(
    paths: Iterable[str | Path], name: str, read: Callable[[Path], T | None]
) -> tuple[list[T], int]:
    """All that `read` makes of the files among `paths`, and of those called `name` in its folders
    at any depth, links to other folders not followed; each file once.

    A file for which `read` raises OSError or ValueError is named in a warning and left out as a
    whole; one for which it gives None is passed over.

    Returns:
        what was read, and the number of files that were left out.

    Raises:
        UserError: a path does not exist.
    """
    found, left_out = [], 0
    for file in _find_files(paths, name):
        try:
            one = read(file)
        except (OSError, ValueError) as error:
            _logger.warning("left out %s: %s", file, error)
            left_out += 1
            continue
        if one is not None:
            found.append(one)
    return found, left_out


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged: no JSON object, or see `check_values`.
    """
    if not path.is_file():
        raise ValueError("not a regular file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES >> 20} MiB, which no record is")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged, not JSON ({_clipped(str(error))})") from error
    if not isinstance(content, dict):
        raise ValueError("damaged, no JSON object")
    check_values(content)
    return content


def check_values(content: Any) -> None:
    """Raise ValueError for what no record has: too many values, levels or characters, control
    characters, which a terminal would obey, or half a surrogate pair, which cannot be written.
    """
    keys: list[str] = []
    texts: list[str] = []
    level, seen = [content], 0
    for _ in range(MOST_LEVELS):
        below: list[Any] = []
        for node in level:
            kind = type(node)
            if kind is dict:
                keys.extend(map(str, node))  # yaml has other keys, too
                below.extend(node.values())
            elif kind is list:
                below.extend(node)
            elif kind is str:
                texts.append(node)
            if len(below) > MOST_VALUES - seen:
                raise ValueError(f"damaged, more than {MOST_VALUES} values")
        if not below:
            break
        seen += len(below)
        level = below
    else:
        raise ValueError(f"damaged, nested deeper than {MOST_LEVELS} levels")
    for found, longest in ((keys, _LONGEST_KEY), (texts, _LONGEST_TEXT)):
        if max(map(len, found), default=0) > longest:
            raise ValueError(f"damaged, {_clipped(max(found, key=len))[:40]}... is too long")
    for text in itertools.filterfalse(str.isprintable, itertools.chain(keys, texts)):
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in text if c not in "\t\n\r"):
            raise ValueError(f"damaged, a character that is no text in {_clipped(text)}")


def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """To be made once a schema and given to `check`."""
    return jsonschema_rs.Draft202012Validator(schema)


def check(content: dict[str, Any], against: jsonschema_rs.Draft202012Validator, what: str) -> None:
    """Raise ValueError unless `content` is valid; names the error that is least deep in it.

    Args:
        content: from `read_json`, or what else JSON can write.
        against: from `validator`.
        what: it should be, "version 2 record".
    """
    errors = against.iter_errors(content)
    error = min(errors, key=lambda error: len(error.instance_path), default=None)
    if error is not None:
        where = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path
        )
        raise ValueError(f"not a {what}: ${_clipped(where)}: {_clipped(error.message)}")


def _find_files(paths: Iterable[str | Path], name: str) -> list[Path]:
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist; give output folders, or files in them")
        for file in _under(path, name) if path.is_dir() else [path]:
            files.setdefault(os.path.realpath(file), file)  # Path.resolve fails on a loop of links
    return list(files.values())


def _under(folder: Path, name: str) -> Iterator[Path]:
    """Not Path.rglob: it passes over a link that leads nowhere, which is then missed by nobody."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        if name in files or name in folders:
            yield Path(root, name)


def _clipped(text: str) -> str:
    return printable(text[:_LONGEST_MESSAGE])


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
