"""Suites: which runs a table, or a figure, consists of.

A suite is a YAML file, a packaged one (moco_d2/benchmark/suites/*.yaml) or your own. Its `kind`
says what its cells are:

* ``transfer`` (the default): fine-tuning, every task x initialization x seed. See
  transfer_suites.py.
* ``pretext``: pretraining and what its features are worth. See pretext_suites.py.
* ``demo``: the demo's whole line on generated images. See moco_d2/demo/cells.py.

A suite is anybody's, as a config is. What it says names settings of our own tools, folders inside
its output folder and data on this machine: no other flag, no other place, no command. The tools are
told that its overrides are of a file (`untrusted_words`), whoever runs them.
"""

import dataclasses
import itertools
import math
import pkgutil
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moco_d2.config.load import DATA_KEYS, check_data, packaged_hint
from moco_d2.config.plain import flatten
from moco_d2.config.safe_yaml import (
    UNREADABLE,
    check_value,
    decode,
    expand_home,
    is_regular_file,
    load_yaml,
    read_config,
)
from moco_d2.errors import UserError, closest, printable

#: In a cell's arguments: the suite's folder, and the cell's own inside it.
FOLDER, CELL_FOLDER = "{folder}", "{cell}"
# Builders of cells; see load_suite.
_KINDS = {
    "transfer": "moco_d2.benchmark.runs.transfer_suites:build_cells",
    "pretext": "moco_d2.benchmark.runs.pretext_suites:build_cells",
    "demo": "moco_d2.demo.cells:build_cells",
}
_PACKAGED = Path(__file__).parents[1] / "suites"
#: Tools that take a config file and KEY VALUE words.
CONFIGURED = ("train_net.py", "pretrain.py")
# A part of a run's name, which is a folder, too; and the longest that file systems and tables bear.
_NAME = re.compile(r"\w[\w.+=,-]*")
_LONGEST_NAME, _LONGEST_PATH = 100, 200
# Keys that suites were written with before, which still work.
_RENAMED_KEYS = {"initialisations": "initializations"}
MOST_RUNS = 2_000  # all tasks and initializations here, with 5 seeds, are 1080
_LONGEST_REASON = 400
_MOST_SEED = 2**31  # Detectron2 adds the process's number, and numpy takes 32 bits
# Beside the runs' folders in the suite's: of transfer_suites.py, cluster.py, measuring.py and
# run_log.py.
_RESERVED = ("configs", "jobs", "timings", "runs.jsonl")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        name: also its folder, relative to the suite's: ``voc_C4/moco/seed1``.
        task, initialization, seed: its place in the grid.
        commands: (file in tools/, arguments), run in this order. In an argument, ``{folder}`` is
            the suite's folder and ``{cell}`` the cell's. They must be restartable: a command that
            was killed is run again with the same words, one that has succeeded is not. The runner
            adds ``--num-gpus N`` in front where a run has several GPUs and the tool takes it.
        record: the JSON file, relative to the cell's folder, that says that the run is done. The
            last command writes it, and last.
        kind: of the record: ``transfer`` (records/results.py reads it), or what its key ``kind``
            says; None: it has no such key.
        needs: names of cells that must be done before.
        settings: what the run is, ``{"SOLVER.MAX_ITER": 24000, ...}``, for telling a run of other
            settings in the same folder; at least what its arguments and config files say.
        iterations: of training, as the config says it, before it is scaled to the hardware; None:
            unknown.
    """

    name: str
    task: str
    initialization: str
    seed: int
    commands: tuple[tuple[str, tuple[str, ...]], ...]
    record: str = "record.json"
    kind: str | None = "transfer"
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    iterations: int | None = None


@dataclasses.dataclass(frozen=True)
class Suite:
    """Runs that belong together.

    Attributes:
        name: file name without ``.yaml``.
        title: what they are for.
        cells: the runs, each after those that it needs.
        settings: overrides that all of them share.
        files: config files that the runner writes before the first run: path relative to the
            suite's folder -> content.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def packaged_suites() -> dict[str, Path]:
    """The packaged suites by name."""
    return {path.stem: path for path in sorted(_PACKAGED.glob("*.yaml"))}


def load_suite(name: str | Path) -> Suite:
    """Read a suite.

    Its cells come from ``build_cells(content, source)`` of its kind: `content` is the YAML file's
    mapping without ``title`` and ``kind``, `source` the file; it returns (cells, files of Suite).

    Args:
        name: of a packaged one, or a YAML file.

    Raises:
        UserError: no such suite; or a key, a kind, a task or an initialization in it that is not
            known, with the closest.
    """
    source = _find(name)
    check_name(source.stem, "file name", source)
    content = read_mapping(source)
    kind = str(content.pop("kind", "transfer"))
    if kind not in _KINDS:
        raise unknown("kind", kind, _KINDS, source)
    for old, new in _RENAMED_KEYS.items():
        if old in content:
            if new in content:
                raise UserError(f"{source}: {old} is the old name of {new}; remove one of the two")
            content[new] = content.pop(old)
    title = printable(str(content.pop("title", source.stem)))
    shared = content.get("overrides") or {}
    cells, files = pkgutil.resolve_name(_KINDS[kind])(content, source)
    _check_cells(cells, source)
    _check_settings(cells, source)
    return Suite(source.stem, title, tuple(cells), shared, files)


def _find(name: str | Path) -> Path:
    path, packaged = expand_home(name), packaged_suites()
    if is_regular_file(path):
        return path
    if str(name) in packaged:
        return packaged[str(name)]
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"no suite file {name}; packaged suites are {', '.join(packaged)}")
    raise UserError(
        f"no suite {str(name)!r}; "
        + (closest(str(name), packaged) or f"there are {', '.join(packaged)}, or give a YAML file")
    )


def _check_cells(cells: Iterable[Cell], source: Path) -> None:
    """Names are unique and lead to folders of their own, and what a cell needs comes before it."""
    seen: set[str] = set()
    within: set[str] = set()  # folders that have a run's inside
    for cell in cells:
        check_name(cell.name, "run", source)
        outer = list(itertools.accumulate(cell.name.split("/"), "{}/{}".format))[:-1]
        inside = next((name for name in outer if name in seen), None)
        if inside is not None or cell.name in within:
            raise UserError(f"{source}: {cell.name} is inside another run's folder; rename one")
        within.update(outer)
        if cell.name in seen:
            raise UserError(f"{source}: two runs are called {cell.name}; rename one")
        if missing := set(cell.needs) - seen:
            raise UserError(
                f"{source}: {cell.name} needs {min(missing)}, which is not there before it"
            )
        seen.add(cell.name)


def _check_settings(cells: Iterable[Cell], source: Path) -> None:
    """What names data names some of this machine, whether a suite or a config of it says so."""
    checked = set()
    for cell in cells:
        for key in DATA_KEYS:
            value = cell.settings.get(key)
            if value is not None and (key, str(value)) not in checked:
                check_data(key, decode(value), str(source), suite=True)
                checked.add((key, str(value)))


def untrusted_words(tool: str, words: Iterable[str]) -> list[str]:
    """The words of a cell's command as they are run: where there are overrides among them, the tool
    is told first that a file says so, and not its user.
    """
    return [*(["--overrides-from-file"] if tool in CONFIGURED else []), *words]


# ---- pieces for builders -------------------------------------------------------------------------


def check_name(name: str, what: str, source: Path) -> None:
    """
    Args:
        name: becomes a folder, ``end_to_end/K32``, or the name of a file.
        what: it is called in the error.

    Raises:
        UserError: `name` is not made of letters, digits, ``_.+=,-`` and single slashes, or begins
            anywhere with another of them than ``_``; so that it stays in its folder and is no flag.
    """
    parts = name.split("/")
    plain = all(_NAME.fullmatch(part) and len(part) <= _LONGEST_NAME for part in parts)
    if not plain or len(name) > _LONGEST_PATH:
        raise UserError(
            f"{source}: the {what} {name!r:.100} must be of letters, digits and _ . + = , -, begin "
            f"with a letter, a digit or _, and have at most {_LONGEST_NAME} of them; rename it"
        )
    if parts[0] in _RESERVED and what != "file name":
        raise UserError(f"{source}: {parts[0]} is a folder of the runner's own; rename {name!r}")


def whole_number(settings: Mapping[str, Any], key: str, source: Path, default: int = 0) -> int:
    """A setting that counts something.

    Raises:
        UserError: it is no whole number >= 0.
    """
    value = decode(settings.get(key, default))
    if type(value) is not int or value < 0:
        raise UserError(f"{source}: {key} must be a whole number >= 0, got {value!r:.80}")
    return value


def check_grid(*sizes: int, source: Path) -> None:
    """
    Args:
        sizes: of the axes.

    Raises:
        UserError: so many runs are no suite.
    """
    if math.prod(sizes) > MOST_RUNS:
        raise UserError(f"{source}: it has more than {MOST_RUNS} runs; split it")


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        UserError: unreadable, not YAML, or not a mapping.
    """
    try:
        content = load_yaml(path)
    except UNREADABLE as error:
        raise UserError(f"cannot read the suite {path}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"the suite {path} is no mapping of keys to values")
    return content


def check_keys(content: Mapping[str, Any], known: Iterable[str], source: Path) -> None:
    """
    Raises:
        UserError: `content` has another key than `known`.
    """
    known = list(known)
    for key in content:
        if key not in known:
            raise unknown("key", str(key), known, source)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{packaged_hint(error)}"
    reason = " ".join(str(error).split())
    return (reason or type(error).__name__)[:_LONGEST_REASON]


def unknown(what: str, name: str, known: Iterable[str], source: Path) -> UserError:
    """The error for a `name` that is none of `known`."""
    known = list(known)
    return UserError(
        f"{source}: unknown {what} {name!r:.200}; "
        + (closest(name, known) or f"there are {', '.join(known)}")
    )


def with_overrides(value: Any, what: str, source: Path) -> dict[str, dict[str, Any]]:
    """A list of names, or a mapping of names to overrides, as the latter.

    Raises:
        UserError: neither, or empty.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    if isinstance(value, dict) and value:
        return {str(name): check_overrides(more, source) for name, more in value.items()}
    raise UserError(
        f"{source}: {what} must be a list of names, or a mapping of names to overrides, as in "
        "`voc_C4: {SOLVER.MAX_ITER: 100}`"
    )


def check_overrides(value: Any, source: Path) -> dict[str, Any]:
    """Overrides KEY: VALUE; None is none.

    Raises:
        UserError: not a mapping of config keys to plain values.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(re.fullmatch(r"[\w.]+", str(k)) for k in value):
        raise UserError(
            f"{source}: overrides are a mapping, as in {{SOLVER.MAX_ITER: 100}}; got {value!r:.80}"
        )
    nested = next((k for k, v in value.items() if isinstance(v, dict)), None)
    if nested is not None:
        raise UserError(
            f"{source}: write overrides with their whole name, {nested}."
            f"{next(iter(value[nested]), 'KEY')!s:.100}: VALUE"
        )
    for key, plain in value.items():
        try:
            check_value(plain)
            if str(decode(str(plain))).startswith("--"):  # never a flag, however it is parsed
                raise ValueError(f"{str(plain)[:40]!r} begins as a flag does")
        except ValueError as error:
            raise UserError(f"{source}: {key!s:.100}: {error}") from error
    return {str(key): plain for key, plain in value.items()}


def check_seeds(value: Any, source: Path) -> list[int]:
    """
    Raises:
        UserError: not a list of different whole numbers, or negative ones, with which Detectron2
            seeds from the clock, or not at all.
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
    """KEY VALUE words for a tool's command line."""
    return tuple(word for key, value in overrides.items() for word in (key, str(value)))


def file_settings(*files: Path) -> dict[str, Any]:
    """What config files say, later ones first: ``{"SOLVER.MAX_ITER": 24000, ...}``.

    Without Detectron2's defaults, which would cost its import.

    Raises:
        UserError: a file cannot be read.
    """
    settings: dict[str, Any] = {}
    for file in files:
        try:
            settings |= flatten(read_config(file))
        except UNREADABLE as error:
            raise UserError(f"cannot read the config {file}: {_reason(error)}") from error
    return settings
