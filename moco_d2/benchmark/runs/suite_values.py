"""Checks and readers of the values in a suite, for the builders of its cells."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moco_d2.config.literals import check_value, decode
from moco_d2.config.load import packaged_hint
from moco_d2.config.plain import flatten
from moco_d2.config.safe_yaml import UNREADABLE, load_yaml, read_config
from moco_d2.errors import UserError, closest
from moco_d2.records.names import name_problem

# One part of the name of a run, which is also the name of a folder.
_NAME = re.compile(r"\w[\w.+=,-]*")
_LONGEST_NAME, _LONGEST_PATH = 100, 200  # characters; file systems and tables limit them
MOST_RUNS = 2_000  # the largest packaged suite has a tenth of them
_LONGEST_REASON = 400
_MOST_SEED = 2**31  # Detectron2 adds the rank of the process, and numpy takes 32 bits
# The suite sets these keys for each run, so an override would be another run under its name.
_OWN = {
    "SEED": "each run has one of the seeds; write seeds: [1, 2]",
    "OUTPUT_DIR": "each run has its own folder; give that of the suite with --folder",
    "MOCO.TASK": "the task names the runs; write it into tasks",
}
_WEIGHTS = "MODEL.WEIGHTS"
_BY_INIT = (
    "all initializations would start from the same weights; write it below one of the "
    "initializations, as in `moco: {MODEL.WEIGHTS: mine.pth}`"
)
# These names stand beside the folders of the runs. They belong to transfer_suites.py, cluster.py,
# measuring.py and run_log.py.
_RESERVED = ("configs", "jobs", "timings", "runs.jsonl")


def check_name(name: str, what: str, source: Path) -> None:
    """Check a name that becomes a folder, ``end_to_end/K32``, or a file.

    A valid name cannot leave its folder and cannot be taken for a flag.

    Args:
        name: The name.
        what: Noun for the error, "run".
        source: The suite, for the error.

    Raises:
        UserError: If a part of `name` between slashes has other characters than letters, digits
            and ``_.+=,-``, does not begin with a letter, a digit or ``_``, or has letters that look
            like others.
    """
    parts = name.split("/")
    plain = all(_NAME.fullmatch(part) and len(part) <= _LONGEST_NAME for part in parts)
    if not plain or len(name) > _LONGEST_PATH:
        raise UserError(
            f"{source}: the {what} {name!r:.100} must have only letters, digits and _ . + = , -, "
            f"begin with a letter, a digit or _, and have at most {_LONGEST_NAME} characters; "
            "rename it"
        )
    problem = name_problem([name])
    if problem:
        raise UserError(f"{source}: as the {what}, {problem}; or rename it")
    if parts[0] in _RESERVED and what != "file name":
        raise UserError(f"{source}: the runner uses the name {parts[0]}; rename {name!r}")


def whole_number(settings: Mapping[str, Any], key: str, source: Path, default: int = 0) -> int:
    """Return a setting that counts something.

    Raises:
        UserError: If it is not a whole number >= 0.
    """
    value = decode(settings.get(key, default))
    if type(value) is not int or value < 0:
        raise UserError(f"{source}: {key} must be a whole number >= 0, got {value!r:.80}")
    return value


def check_grid(*sizes: int, source: Path) -> None:
    """Check the number of runs of a grid.

    Args:
        sizes: Lengths of the axes.
        source: The suite, for the error.

    Raises:
        UserError: If the grid has more than MOST_RUNS runs.
    """
    if math.prod(sizes) > MOST_RUNS:
        raise UserError(f"{source}: a suite must have at most {MOST_RUNS} runs; split it")


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: If the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        content = load_yaml(path)
    except UNREADABLE as error:
        raise UserError(f"cannot read the suite {path}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"the suite {path} must be a mapping of keys to values")
    return content


def check_keys(content: Mapping[str, Any], known: Iterable[str], source: Path) -> None:
    """Check the keys of a suite.

    Raises:
        UserError: If `content` has a key that is not in `known`.
    """
    known = list(dict.fromkeys(known))
    for key in content:
        if key not in known:
            raise unknown("key", str(key), known, source)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{packaged_hint(error)}"
    reason = " ".join(str(error).split())
    return (reason or type(error).__name__)[:_LONGEST_REASON]


def unknown(what: str, name: str, known: Iterable[str], source: Path) -> UserError:
    """Return the error for a `name` that is not in `known`, with the closest name."""
    known = list(known)
    return UserError(
        f"{source}: unknown {what} {name!r:.200}; "
        + (closest(name, known) or f"there are {', '.join(known)}")
    )


def with_overrides(
    value: Any, what: str, source: Path, *, weights: bool = True
) -> dict[str, dict[str, Any]]:
    """Return a mapping of names to overrides from such a mapping or from a list of names.

    `weights` is that of `check_overrides`.

    Raises:
        UserError: If `value` is neither of them, or is empty.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    if isinstance(value, dict) and value:
        return {
            str(name): check_overrides(more, source, weights=weights)
            for name, more in value.items()
        }
    raise UserError(
        f"{source}: {what} must be a list of names, or a mapping of names to overrides, as in "
        "`voc_C4: {SOLVER.MAX_ITER: 100}`"
    )


def check_overrides(value: Any, source: Path, *, weights: bool = True) -> dict[str, Any]:
    """Return overrides KEY: VALUE with keys as text; None stands for no overrides.

    Args:
        value: The overrides.
        source: The suite, for the error.
        weights: Whether MODEL.WEIGHTS may be overridden.

    Raises:
        UserError: If `value` is not a mapping of config keys to plain values, or sets a key that
            the suite sets for each run.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(re.fullmatch(r"[\w.]+", str(k)) for k in value):
        raise UserError(
            f"{source}: overrides must be a mapping, as in {{SOLVER.MAX_ITER: 100}}, "
            f"got {value!r:.80}"
        )
    own = next((str(k) for k in value if str(k) in _OWN), None)
    if own is None and not weights and _WEIGHTS in value:
        own = _WEIGHTS
    if own is not None:
        raise UserError(f"{source}: {own} must not be an override: {_OWN.get(own, _BY_INIT)}")
    nested = next((k for k, v in value.items() if isinstance(v, dict)), None)
    if nested is not None:
        raise UserError(
            f"{source}: write the key of an override in full, {nested}."
            f"{next(iter(value[nested]), 'KEY')!s:.100}: VALUE"
        )
    for key, plain in value.items():
        try:
            check_value(plain)
            if str(decode(str(plain))).startswith("--"):  # never a flag, however it is parsed
                raise ValueError(f"a value must not begin with --, got {str(plain)[:40]!r}")
        except ValueError as error:
            raise UserError(f"{source}: {key!s:.100}: {error}") from error
    return {str(key): plain for key, plain in value.items()}


def check_seeds(value: Any, source: Path) -> list[int]:
    """Return the seeds of a suite.

    Raises:
        UserError: If `value` is not a list of different whole numbers in [0, 2**31). Detectron2
            takes a negative seed from the clock, so no run could be repeated.
    """
    whole = isinstance(value, list) and all(
        type(seed) is int and 0 <= seed < _MOST_SEED for seed in value
    )
    if not whole or not value or len(set(value)) != len(value):
        raise UserError(
            f"{source}: seeds must be a list of different numbers >= 0 and below {_MOST_SEED}, as "
            "in [1, 2]"
        )
    return value


def arguments_of(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """Return KEY VALUE words for the command line of a tool."""
    return tuple(word for key, value in overrides.items() for word in (key, str(value)))


def file_settings(*files: Path) -> dict[str, Any]:
    """Return the settings in config files, ``{"SOLVER.MAX_ITER": 24000, ...}``.

    A later file overrides an earlier one. The defaults of Detectron2 are not included, because
    they would need its import.

    Raises:
        UserError: If a file cannot be read.
    """
    settings: dict[str, Any] = {}
    for file in files:
        try:
            settings |= flatten(read_config(file))
        except UNREADABLE as error:
            raise UserError(f"cannot read the config {file}: {_reason(error)}") from error
    return settings
