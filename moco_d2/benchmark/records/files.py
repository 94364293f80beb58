"""A reader of JSON records of any kind. It names damaged files and leaves them out.

A record may come from anywhere, so its size, values and form are checked first.
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
MOST_VALUES = 2_000_000  # those 20 evaluations have 50,000; aliases in yaml can make billions
MOST_LEVELS = 32  # a record has about 8; the functions that walk through a config are recursive
LIMITS = Limits(values=MOST_VALUES, levels=MOST_LEVELS, key=300, text=100_000, all_text=MOST_BYTES)
_LONGEST_MESSAGE = 300  # characters; a message may contain text of the record

_logger = logging.getLogger(__name__)

T = TypeVar("T")


def collect(
    paths: Iterable[str | Path], name: str, read: Callable[[Path], T | None]
) -> tuple[list[T], int]:
    """Read all records among files and folders, each file once.

    A file for which `read` raises OSError or ValueError is named in a warning and left out. A file
    for which it returns None is skipped.

    Args:
        paths: Files, and folders that are searched at any depth. Links to folders are not followed.
        name: Name of the files in folders.
        read: Reader of one file.

    Returns:
        The records, and the number of files that were left out.

    Raises:
        UserError: If a path does not exist.
    """
    records, left_out = [], 0
    for file in _find_files(paths, name):
        try:
            record = read(file)
        except (OSError, ValueError) as error:
            _logger.warning("left out %s: %s; make it again or remove the file", file, error)
            left_out += 1
            continue
        if record is not None:
            records.append(record)
    return records, left_out


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged: it is not a JSON object, or see `check_values`.
    """
    if not path.is_file():
        raise ValueError("not a regular file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"a record must be at most {MOST_BYTES >> 20} MiB")
    content = _decoded(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("damaged, not a JSON object")
    check_values(content, LIMITS)
    return content


def _decoded(data: bytes) -> Any:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(data)
    # For NaN the errors of json are clearer. It also accepts half surrogates and numbers that
    # overflow, for which the errors of the later checks are clearer.
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
    """Yield the files `name` in a folder at any depth.

    Path.rglob would skip a link to a missing file, and nobody would notice the missing record.
    """
    for root, folders, files in os.walk(folder):
        folders.sort()
        if name in files or name in folders:
            yield Path(root, name)


def _clipped(text: str) -> str:
    return printable(text[:_LONGEST_MESSAGE])


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float | str:
    """Return a number, or its text if it overflows: infinity would be written as null."""
    number = float(text)
    return number if math.isfinite(number) else text
