"""The state of a cell of a suite, read from the files in its folder alone.

Beside the outputs of its tools, the folder of a cell holds ``cell.json`` (the description of the
run that was started), ``output.log`` (the output of the tools) and ``.lock``, which the process
that runs the cell holds as long as it lives.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.design import (
    DEFAULT,
    DESIGN_FILE,
    NOTE_FILE,
    NOTED,
    fingerprint_of,
    noted_design,
    read_declaration,
)
from moco_d2.benchmark.runs.cell_lock import LOCK
from moco_d2.benchmark.runs.suites import CELL_FOLDER, FOLDER, Cell
from moco_d2.benchmark.runs.trials import BEST, best_rate, has_diverged
from moco_d2.config.keys import KEYS, read_value
from moco_d2.config.literals import decode
from moco_d2.config.plain import flatten
from moco_d2.errors import UserError, printable
from moco_d2.files import check_own, read_plain_json, write_json

CELL_FILE = NOTE_FILE
OUTPUT_LOG = "output.log"
_MOST_NAMED = 3  # settings in a message
_LONGEST_SHOWN = 200  # characters of one setting
MOST_BYTES = 8 << 20  # of a cell.json or a record; the suite that sets them has at most 1 MiB

# In these keys the resolved config of a record differs from the config file, because
# hardware_scaling.scale_to_hardware adapts them to the number of processes. The number of images
# stays.
_SCALED = {
    *("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.STEPS"),
    *("SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.REFERENCE_WORLD_SIZE"),
    *("TEST.EVAL_PERIOD", "MODEL.DEVICE"),
}
_IMAGES_TOLERANCE = 0.01  # scaled iterations are rounded


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a cell.

    Attributes:
        status: "done", "partial" (started, to be continued), "missing", or "conflict" (its folder
            holds another run).
        completed: Number of commands that have succeeded, which are not repeated.
        problem: For a conflict, a sentence with the fix; for a partial run, the fault of its
            record. It has no control characters, which a terminal would execute.
    """

    status: str
    completed: int = 0
    problem: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem", printable(self.problem))


def examine(cell: Cell, folder: Path, *, processes: int) -> State:
    """Return the state of a cell.

    Args:
        cell: The cell.
        folder: Folder of the suite.
        processes: Number of processes of each run. BatchNorm and the schedule depend on it.
    """
    cell_folder = folder / cell.name
    record = cell_folder / cell.record
    try:
        _check_place(cell_folder, folder)
    except UserError as error:
        return State("conflict", problem=str(error))
    if not os.path.lexists(cell_folder / CELL_FILE):
        return _examine_foreign(cell, record, folder)
    try:
        started = _read_note(cell_folder / CELL_FILE)
    except (OSError, ValueError) as error:
        return _conflict(cell_folder, f"{cell_folder / CELL_FILE} cannot be read ({error})")
    difference = _differences(started, _description(cell, processes))
    if difference:
        return _conflict(cell_folder, f"{cell_folder} has a run of other settings: {difference}")
    if record.is_file():
        state = _examine_record(cell, record, folder, by_hand=False)
        if state.status != "partial":
            return state
    else:
        status = "done" if has_diverged(cell, folder) else "partial"
        state = State(status, problem=f"{record} does not exist")
    last = len(cell.commands) - 1  # it writes the record, so it runs again if that is not valid
    return dataclasses.replace(state, completed=min(started["completed"], last))


def _check_place(cell_folder: Path, folder: Path) -> None:
    """Check that the files of a cell can be written.

    Raises:
        UserError: If a file has the name of its folder, or a link the name of its log or its lock.
    """
    for place in (cell_folder, *cell_folder.parents):
        if place == folder:
            break
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(f"{place} must be a folder; choose another --folder, or remove it")
    for name in (OUTPUT_LOG, LOCK):
        check_own(cell_folder / name)


def _read_note(path: Path) -> dict[str, Any]:
    """Return the content of a cell.json, which anybody may have written.

    Raises:
        ValueError: If it does not have the form that note_started writes.
        OSError: If it cannot be read.
    """
    content = read_plain_json(path, MOST_BYTES)
    if not isinstance(content, dict):
        raise ValueError("it must be a JSON object")
    for key, kind in _NOTE.items():
        if type(content.get(key)) is not kind or (kind is int and content[key] < 0):
            raise ValueError(f"{key} must be {_KINDS[kind]}")
    if not all(isinstance(value, str) for value in content["settings"].values()):
        raise ValueError("the values of settings must be text")
    if content["completed"] > len(content["commands"]):
        raise ValueError("completed must be at most the number of commands")
    return content


_NOTE = {"commands": list, "settings": dict, "processes": int, "completed": int}
_KINDS = {list: "a list", dict: "a mapping", int: "a whole number >= 0"}


def _examine_foreign(cell: Cell, record: Path, folder: Path) -> State:
    """Return the state of a cell that no suite has started. Its run may come from elsewhere."""
    cell_folder = folder / cell.name
    if record.is_file():
        return _examine_record(cell, record, folder, by_hand=True)
    if any((cell_folder / name).exists() for name in ("config.yaml", "metrics.json")):
        return _conflict(
            cell_folder, f"{cell_folder} holds an unfinished run that no suite has started"
        )
    return State("missing")


def note_started(cell: Cell, folder: Path, *, processes: int, completed: int) -> None:
    """Write cell.json, which says that `completed` commands of `cell` have succeeded, and what the
    suite had declared when the run first started.
    """
    content = {**_description(cell, processes), "completed": completed}
    declaration = read_declaration(folder / DESIGN_FILE, other=True)
    now = fingerprint_of(declaration.design if declaration else DEFAULT)
    content[NOTED] = noted_design(folder / cell.name) or now
    write_json(folder / cell.name / CELL_FILE, content)


def _description(cell: Cell, processes: int) -> dict[str, Any]:
    plain = {
        "commands": cell.commands,
        "settings": {k: str(v) for k, v in cell.settings.items()},
        "processes": processes,
    }
    return json.loads(json.dumps(plain))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return how two descriptions differ, in words; "" if they are equal."""
    if old["processes"] != new["processes"]:
        return f"it has {old['processes']} process(es), the suite {new['processes']}"
    pairs = _differing(old["settings"], new["settings"])
    if pairs:
        named = [_named(*pair) for pair in pairs[:_MOST_NAMED]]
        more = f", and {len(pairs) - _MOST_NAMED} more" if len(pairs) > _MOST_NAMED else ""
        return f"{'; '.join(named)}{more}"
    return "" if old["commands"] == new["commands"] else "its commands differ"


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    return [
        (key, (old.get(key, "unset"), new.get(key, "unset")))
        for key in sorted({*old, *new})
        if _as_read(key, old.get(key)) != _as_read(key, new.get(key))
    ]


def _named(key: str, values: tuple[Any, Any]) -> str:
    old, new = (f"{value!s:.{_LONGEST_SHOWN}}" for value in values)
    return f"{key:.{_LONGEST_SHOWN}} is {old} in the run, {new} in the suite"


def _as_read(key: str, value: Any) -> Any:
    """Return a setting as a config has it: `my/images` and ["my/images"] are the same dataset."""
    if key in KEYS:
        with contextlib.suppress(ValueError):
            value = read_value(key, value)
    return _literal(value)


def _literal(value: Any) -> Any:
    """Return a value as yacs reads it: "(1, 2)" and [1, 2] are the same."""
    if isinstance(value, str):
        try:
            value = decode(value)
        except ValueError:
            return value
    return [_literal(v) for v in value] if isinstance(value, list | tuple) else value


def _examine_record(cell: Cell, path: Path, folder: Path, *, by_hand: bool) -> State:
    """Return the state of a cell that has a record.

    Args:
        by_hand: Whether the run was started without a suite. Then its settings are known from its
            record alone.
    """
    if cell.kind != "transfer":
        return _examine_other_record(cell, path)
    from moco_d2.benchmark.records.run_records import read_content, to_record

    try:
        # read_records would warn about a damaged record. Here the state has the problem.
        content = read_content(path)
        if content is None:
            raise ValueError("it is of another kind")
        record = to_record(path, content)
    except (OSError, ValueError) as error:
        if by_hand:
            return _conflict(path.parent, f"{path} is not a valid record of a run")
        return State("partial", problem=f"{path} is not a valid record of a run ({error})")
    recorded = (record.task, record.initialization, record.seed)
    expected = (cell.task, cell.initialization, cell.seed)
    if recorded != expected:
        names = "{} from {}, seed {}"
        return _conflict(
            path.parent, f"{path} is of {names.format(*recorded)}, not {names.format(*expected)}"
        )
    if by_hand:
        settings = {key: placed(str(v), cell, folder) for key, v in cell.settings.items()}
        config = flatten(record.config)
        compared = {
            key
            for key in settings.keys() & config.keys()
            if key not in _SCALED and not key.endswith("NORM")
        }
        pairs = _differing({k: config[k] for k in compared}, {k: settings[k] for k in compared})
        images = _images(settings)
        if not pairs and images and abs(record.images / images - 1) > _IMAGES_TOLERANCE:
            pairs = [("the number of training images", (record.images, images))]
        if pairs:
            return _conflict(path.parent, f"{path} is of another run: {_named(*pairs[0])}")
    return State("done", len(cell.commands))


def _images(settings: Mapping[str, Any]) -> int | None:
    try:
        return int(settings["SOLVER.MAX_ITER"]) * int(settings["SOLVER.IMS_PER_BATCH"])
    except (KeyError, ValueError):
        return None


def _examine_other_record(cell: Cell, path: Path) -> State:
    try:
        content = read_plain_json(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        return State("partial", problem=f"{path} cannot be read ({error})")
    if not isinstance(content, dict) or content.get("kind") != cell.kind:
        return State("partial", problem=f"{path} is not a record of kind {cell.kind}")
    return State("done", len(cell.commands))


def _conflict(cell_folder: Path, problem: str) -> State:
    return State("conflict", problem=f"{problem}; choose another --folder, or remove {cell_folder}")


def placed(word: str, cell: Cell, folder: Path, *, planned: bool = False) -> str:
    """Return an argument with the folders in place of ``{folder}`` and ``{cell}``, and the learning
    rate of the best trial in place of ``{best}``; `planned` is that of trials.best_rate.

    Raises:
        UserError: As trials.best_rate.
    """
    if word == BEST:
        return best_rate(cell, folder, planned=planned)
    return word.replace(FOLDER, str(folder)).replace(CELL_FOLDER, str(folder / cell.name))
