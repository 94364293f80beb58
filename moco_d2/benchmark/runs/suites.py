"""Suites: which runs a table, or a figure, consists of.

A suite is a YAML file, a packaged one (moco_d2/benchmark/suites/*.yaml) or your own. Its `kind`
says what its cells are:

* ``transfer`` (the default): fine-tuning, every task x initialisation x seed. See finetuning.py.
* ``pretext``: pretraining and what its features are worth. See pretext.py.
* ``demo``: the demo's whole line on generated images. See moco_d2/demo/cells.py.
"""

import dataclasses
import pkgutil
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from moco_d2.config import flatten
from moco_d2.errors import UserError, closest
from moco_d2.plain_yaml import load_yaml

#: In a cell's arguments: the suite's folder, and the cell's own inside it.
FOLDER, CELL_FOLDER = "{folder}", "{cell}"
# Builders of cells; see load_suite.
_KINDS = {
    "transfer": "moco_d2.benchmark.runs.finetuning:build_cells",
    "pretext": "moco_d2.benchmark.runs.pretext:build_cells",
    "demo": "moco_d2.demo.cells:build_cells",
}
_PACKAGED = Path(__file__).parents[1] / "suites"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        name: also its folder, relative to the suite's: ``voc_C4/moco/seed1``.
        task, initialisation, seed: its place in the grid.
        commands: (file in tools/, arguments), run in this order. In an argument, ``{folder}`` is
            the suite's folder and ``{cell}`` the cell's. They must be restartable: a command that
            was killed is run again with the same words, one that has succeeded is not. The runner
            adds ``--num-gpus N`` in front where a run has several GPUs and the tool takes it.
        record: the JSON file, relative to the cell's folder, that says that the run is done. The
            last command writes it, and last.
        kind: of the record: ``transfer`` (read by results.py), or what its key ``kind`` says; None:
            it has no such key.
        needs: names of cells that must be done before.
        settings: what the run is, ``{"SOLVER.MAX_ITER": 24000, ...}``, for telling a run of other
            settings in the same folder; at least what its arguments and config files say.
        iterations: of training, as the config says it, before it is scaled to the hardware; None:
            unknown.
    """

    name: str
    task: str
    initialisation: str
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
        UserError: no such suite; or a key, a kind, a task or an initialisation in it that is not
            known, with the closest.
    """
    source = _find(name)
    content = read_mapping(source)
    kind = content.pop("kind", "transfer")
    if kind not in _KINDS:
        raise unknown("kind", kind, _KINDS, source)
    title = str(content.pop("title", source.stem))
    shared = content.get("overrides") or {}
    cells, files = pkgutil.resolve_name(_KINDS[kind])(content, source)
    _check_cells(cells, source)
    return Suite(source.stem, title, tuple(cells), shared, files)


def _find(name: str | Path) -> Path:
    path, packaged = Path(name).expanduser(), packaged_suites()
    if path.is_file():
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
    """Names are unique, and what a cell needs comes before it."""
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen:
            raise UserError(f"{source}: two runs are called {cell.name}; rename one")
        if missing := set(cell.needs) - seen:
            raise UserError(
                f"{source}: {cell.name} needs {min(missing)}, which is not there before it"
            )
        seen.add(cell.name)


# ---- pieces for builders -------------------------------------------------------------------------


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        UserError: unreadable, not YAML, or not a mapping.
    """
    try:
        content = load_yaml(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read the suite {path}: {reason}") from error
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


def unknown(what: str, name: str, known: Iterable[str], source: Path) -> UserError:
    """The error for a `name` that is none of `known`."""
    known = list(known)
    return UserError(
        f"{source}: unknown {what} {name!r}; "
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
            f"{next(iter(value[nested]), 'KEY')}: VALUE"
        )
    return {str(key): plain for key, plain in value.items()}


def check_seeds(value: Any, source: Path) -> list[int]:
    """
    Raises:
        UserError: not a list of different whole numbers, or negative ones, with which Detectron2
            seeds from the clock, or not at all.
    """
    whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole or not value or len(set(value)) != len(value):
        raise UserError(f"{source}: seeds must be a list of different numbers >= 0, as in [1, 2]")
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
    from fvcore.common.config import CfgNode

    settings: dict[str, Any] = {}
    for file in files:
        try:
            settings |= flatten(CfgNode.load_yaml_with_base(str(file)))
        except (OSError, LookupError, TypeError, AttributeError, ValueError, yaml.YAMLError) as e:
            raise UserError(f"cannot read the config {file}: {' '.join(str(e).split())}") from e
    return settings
