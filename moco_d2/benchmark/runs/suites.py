"""A suite lists the runs behind a table or a figure.

It is a YAML file: a packaged one (moco_d2/benchmark/suites/*.yaml) or a file of the user. Its
`kind` says what its cells are:

* ``transfer`` (default): every task x initialization x seed is fine-tuned. See transfer_suites.py.
* ``pretext``: every point x seed is pretrained and evaluated. See pretext_suites.py.
* ``demo``: all steps of the demo run on generated images. See moco_d2/demo/cells.py.

Its `keep` says what a finished run keeps on disk; see retention.py. If its runs are fine-tuned,
``primary`` (metrics), ``comparisons`` (pairs of rows) and ``margin`` say which differences may
claim an order; see moco_d2/benchmark/records/design.py.

The key ``tune`` of a ``transfer`` suite chooses the learning rate of each row; see tuning.py.

Anybody may have written a suite. It can set config keys of our own tools, and name folders inside
its output folder and data on this machine: no other flag, no other location, no command. The tools
learn from a flag that its overrides come from a file, whoever runs them (`untrusted_words`).
"""

import dataclasses
import itertools
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.design import DEFAULT, DESIGN_KEYS, Design, read_design
from moco_d2.benchmark.runs.suite_values import check_name, read_mapping, unknown
from moco_d2.config.literals import decode
from moco_d2.config.load import DATA_KEYS, check_data
from moco_d2.errors import UserError, closest, printable
from moco_d2.files import expand_home, is_regular_file

#: Placeholders in the arguments of a cell: the folder of the suite, and the folder of the cell.
FOLDER, CELL_FOLDER = "{folder}", "{cell}"
# Functions that build the cells; see load_suite.
_KINDS = {
    "transfer": "moco_d2.benchmark.runs.transfer_suites:build_cells",
    "pretext": "moco_d2.benchmark.runs.pretext_suites:build_cells",
    "demo": "moco_d2.demo.cells:build_cells",
}
_TUNED = "moco_d2.benchmark.runs.tuning:tuned"
#: What a finished run may keep on disk; the first is the default.
KEEP = ("weights", "all", "results")
_PACKAGED = Path(__file__).parents[1] / "suites"
#: Tools that take a config file and KEY VALUE words.
CONFIGURED = ("train_net.py", "pretrain.py")


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
        kind: Kind of the record: ``transfer`` (see records/run_records.py) or the value of its key
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
        keep: What a finished run keeps on disk, a value of KEEP; see retention.py.
        design: The comparisons that may claim an order.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep: str = KEEP[0]
    design: Design = DEFAULT


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
    title = printable(str(content.pop("title", source.stem)))
    keep = content.pop("keep", KEEP[0])
    if keep not in KEEP:
        raise unknown("value of keep", str(keep), KEEP, source)
    keys = DESIGN_KEYS if kind != "pretext" else ()  # its figures have comparisons of their own
    declared = {key: content.pop(key) for key in keys if key in content}
    tune = content.pop("tune", None) if kind == "transfer" else None
    shared = content.get("overrides") or {}
    cells, files = pkgutil.resolve_name(_KINDS[kind])(content, source)
    rows = dict.fromkeys(cell.initialization for cell in cells if cell.kind == "transfer")
    design = _design(declared, rows, source) if declared else DEFAULT
    if tune is not None:
        cells = pkgutil.resolve_name(_TUNED)(cells, tune, design.primary, source)
    _check_cells(cells, source)
    _check_settings(cells, source)
    return Suite(source.stem, title, tuple(cells), shared, files, keep, design)


def _design(declared: Mapping[str, Any], rows: Iterable[str], source: Path) -> Design:
    from moco_d2.benchmark.tables.comparison import METRICS  # imports SciPy, which takes a while

    return read_design(declared, rows, METRICS, source)


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
