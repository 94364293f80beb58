"""Reading JSON records of any kind: found, bounded, checked against their form; what is damaged
is named and left out.

A record may come from anywhere, so that nothing in it may be believed before it is checked.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from moco_d2.errors import UserError, printable
from moco_d2.records.plain_values import Limits, check_values

MOST_BYTES = 64 << 20  # 20 evaluations of LVIS, class by class, take 4 MB
MOST_VALUES = 2_000_000  # those 20 evaluations have 50,000; yaml's aliases can stand for billions
MOST_LEVELS = 32  # a record has some 8; what walks through a config does so recursively
LIMITS = Limits(values=MOST_VALUES, levels=MOST_LEVELS, key=300, text=100_000, all_text=MOST_BYTES)
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
            _logger.warning("left out %s: %s; make it again or remove the file", file, error)
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
    content = _decoded(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("damaged, no JSON object")
    check_values(content, LIMITS)
    return content


def _decoded(data: bytes) -> Any:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(data)
    # json has better words for NaN, and takes half surrogates and numbers that overflow, for which
    # the checks to come have better words.
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged, not JSON ({_clipped(str(error))})") from error


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


def _finite(text: str) -> float | str:
    """A number; as text if it overflows, since infinity would be written, and hashed, as null."""
    number = float(text)
    return number if math.isfinite(number) else text
