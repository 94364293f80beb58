"""A suite lists the runs behind a table or a figure.

It is a YAML file: a packaged one (moco_d2/benchmark/suites/*.yaml) or a file of the user. Its
`kind` says what its cells are:

* ``transfer`` (default): every task x initialization x seed is fine-tuned. See transfer_suites.py.
* ``pretext``: every point x seed is pretrained and evaluated. See pretext_suites.py.
* ``demo``: all steps of the demo run on generated images. See moco_d2/demo/cells.py.

Anybody may have written a suite. It can set config keys of our own tools, and name folders inside
its output folder and data on this machine: no other flag, no other location, no command. The tools
learn from a flag that its overrides come from a file, whoever runs them (`untrusted_words`).
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

#: Placeholders in the arguments of a cell: the folder of the suite, and the folder of the cell.
FOLDER, CELL_FOLDER = "{folder}", "{cell}"
# Functions that build the cells; see load_suite.
_KINDS = {
    "transfer": "moco_d2.benchmark.runs.transfer_suites:build_cells",
    "pretext": "moco_d2.benchmark.runs.pretext_suites:build_cells",
    "demo": "moco_d2.demo.cells:build_cells",
}
_PACKAGED = Path(__file__).parents[1] / "suites"
#: Tools that take a config file and KEY VALUE words.
CONFIGURED = ("train_net.py", "pretrain.py")
# One part of the name of a run, which is also the name of a folder.
_NAME = re.compile(r"\w[\w.+=,-]*")
_LONGEST_NAME, _LONGEST_PATH = 100, 200  # characters; file systems and tables limit them
# Old keys of suites, which still work.
_RENAMED_KEYS = {"initialisations": "initializations"}
MOST_RUNS = 2_000  # all packaged tasks and initializations with 5 seeds are 1080 runs
_LONGEST_REASON = 400
_MOST_SEED = 2**31  # Detectron2 adds the rank of the process, and numpy takes 32 bits
# These names stand beside the folders of the runs. They belong to transfer_suites.py, cluster.py,
# measuring.py and run_log.py.
_RESERVED = ("configs", "jobs", "timings", "runs.jsonl")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        name: Name of the run, and its folder inside that of the suite: ``voc_C4/moco/seed1``.
        task, initialization, seed: Position in the grid.
        commands: Pairs (file in tools/, arguments), which run in this order. In an argument,
            ``{folder}`` stands for the folder of the suite and ``{cell}`` for that of the cell. A
            command must be restartable: after a kill it is run again with the same words. The
            runner inserts ``--num-gpus N`` if a run has several GPUs and the tool has this flag.
        record: JSON file, relative to the folder of the cell, whose presence says that the run is
            done. It is the last file that the last command writes.
        kind: Kind of the record: ``transfer`` (see records/results.py) or the value of its key
            ``kind``. None if it has no such key.
        needs: Names of cells that must be done first.
        settings: All settings of the run, ``{"SOLVER.MAX_ITER": 24000, ...}``: at least those of
            its arguments and config files. A run with other settings in the same folder is
            recognized by them.
        iterations: Training iterations in the config, before the schedule is scaled to the
            hardware. None if unknown.
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
        name: Name of the file without ``.yaml``.
        title: Purpose of the runs.
        cells: The runs; each comes after the cells that it needs.
        settings: Overrides of all runs.
        files: Config files that the runner writes before the first run: path relative to the
            folder of the suite -> content.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def packaged_suites() -> dict[str, Path]:
    """Return the packaged suites by name."""
    return {path.stem: path for path in sorted(_PACKAGED.glob("*.yaml"))}


def load_suite(name: str | Path) -> Suite:
    """Read a suite.

    Its kind has a function ``build_cells(content, source)``, which returns the cells and the files
    of the Suite. `content` is the mapping in the YAML file `source` without ``title`` and ``kind``.

    Args:
        name: Name of a packaged suite, or a YAML file.

    Raises:
        UserError: If there is no such suite, or if it has an unknown key, kind, task or
            initialization. The message has the closest known name.
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
    """Check that each run has a folder of its own and comes after the cells that it needs."""
    seen: set[str] = set()
    within: set[str] = set()  # folders that contain the folder of a run
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
                f"{source}: {cell.name} needs {min(missing)}, which must come before it"
            )
        seen.add(cell.name)


def _check_settings(cells: Iterable[Cell], source: Path) -> None:
    """Check that all data, named in the suite or in its configs, is on this machine."""
    checked = set()
    for cell in cells:
        for key in DATA_KEYS:
            value = cell.settings.get(key)
            if value is not None and (key, str(value)) not in checked:
                check_data(key, decode(value), str(source), suite=True)
                checked.add((key, str(value)))


def untrusted_words(tool: str, words: Iterable[str]) -> list[str]:
    """Return the words of a command, with the flag that its overrides come from a file.

    Only tools that take overrides have this flag.
    """
    return [*(["--overrides-from-file"] if tool in CONFIGURED else []), *words]


# ---- pieces for builders -------------------------------------------------------------------------


def check_name(name: str, what: str, source: Path) -> None:
    """Check a name that becomes a folder, ``end_to_end/K32``, or a file.

    A valid name cannot leave its folder and cannot be taken for a flag.

    Args:
        name: The name.
        what: Noun for the error, "run".
        source: The suite, for the error.

    Raises:
        UserError: If a part of `name` between slashes has other characters than letters, digits
            and ``_.+=,-``, or does not begin with a letter, a digit or ``_``.
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
        raise UserError(f"{source}: it has more than {MOST_RUNS} runs; split it")


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
    """Return the error for a `name` that is not in `known`, with the closest name."""
    known = list(known)
    return UserError(
        f"{source}: unknown {what} {name!r:.200}; "
        + (closest(name, known) or f"there are {', '.join(known)}")
    )


def with_overrides(value: Any, what: str, source: Path) -> dict[str, dict[str, Any]]:
    """Return a mapping of names to overrides from such a mapping or from a list of names.

    Raises:
        UserError: If `value` is neither of them, or is empty.
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
    """Return overrides KEY: VALUE with keys as text; None stands for no overrides.

    Raises:
        UserError: If `value` is not a mapping of config keys to plain values.
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
