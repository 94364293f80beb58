"""How far a cell of a suite is, judged by what lies in its folder alone.

In a cell's folder, beside what its tools write: ``cell.json`` (what was started), ``output.log``
(what the tools printed) and ``.lock`` (held by the process that runs it, as long as it lives).
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from moco_d2.benchmark.runs.suites import CELL_FOLDER, FOLDER, Cell
from moco_d2.config.keys import KEYS, read_value
from moco_d2.config.plain import flatten
from moco_d2.config.safe_yaml import decode
from moco_d2.errors import UserError, printable
from moco_d2.files import check_own, read_plain_json, write_json

CELL_FILE = "cell.json"
OUTPUT_LOG = "output.log"
_LOCK = ".lock"
_MOST_NAMED = 3  # settings in a message
_LONGEST_SHOWN = 200  # characters of one
_MOST_BYTES = 8 << 20  # of a cell.json or a record: a suite of 1 MiB sets all that is in them

# What a record's resolved config has otherwise than the config file: schedule.scale_to_hardware
# carries it over to the number of processes, which keeps the number of images.
_SCALED = {
    *("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.STEPS"),
    *("SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.REFERENCE_WORLD_SIZE"),
    *("TEST.EVAL_PERIOD", "MODEL.DEVICE"),
}
_IMAGES_TOLERANCE = 0.01  # scaled iterations are rounded


@dataclasses.dataclass(frozen=True)
class State:
    """Of a cell.

    Attributes:
        status: "done"; "partial": started, to be continued; "missing"; or "conflict": its folder
            holds another run.
        completed: commands that have succeeded and need not be run again.
        problem: of a conflict: a sentence with the fix; of a partial one: what is wrong with its
            record. It has no control characters, which a terminal would obey.
    """

    status: str
    completed: int = 0
    problem: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem", printable(self.problem))


def examine(cell: Cell, folder: Path, *, processes: int) -> State:
    """How far `cell` is in the suite's `folder`.

    Args:
        cell: what is to be run.
        folder: the suite's.
        processes: of each run; BatchNorm, and the schedule, depend on them.
    """
    home = folder / cell.name
    record = home / cell.record
    try:
        _check_place(home, folder)
    except UserError as error:
        return State("conflict", problem=str(error))
    if not os.path.lexists(home / CELL_FILE):
        return _examine_foreign(cell, record, folder)
    try:
        started = _read_note(home / CELL_FILE)
    except (OSError, ValueError) as error:
        return _conflict(home, f"{home / CELL_FILE} cannot be read ({error})")
    differing = _differences(started, _description(cell, processes))
    if differing:
        return _conflict(home, f"{home} was run otherwise: {differing}")
    if record.is_file():
        state = _examine_record(cell, record, folder, by_hand=False)
        if state.status != "partial":
            return state
    else:
        state = State("partial", problem=f"{record} is not there")
    last = len(cell.commands) - 1  # which writes the record: run again if that is not valid
    return dataclasses.replace(state, completed=min(started["completed"], last))


def _check_place(home: Path, folder: Path) -> None:
    """
    Raises:
        UserError: a file is where the folder of a cell should be, or a link where its log or its
            lock should be.
    """
    for place in (home, *home.parents):
        if place == folder:
            break
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(f"{place} must be a folder; choose another --folder, or remove it")
    for name in (OUTPUT_LOG, _LOCK):
        check_own(home / name)


def _read_note(path: Path) -> dict[str, Any]:
    """The content of a cell.json; anybody may have written it.

    Raises:
        ValueError: it is not what note_started writes.
        OSError: it cannot be read.
    """
    content = read_plain_json(path, _MOST_BYTES)
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
    """Of a cell that no suite has started; its run may have been, by hand or elsewhere."""
    home = folder / cell.name
    if record.is_file():
        return _examine_record(cell, record, folder, by_hand=True)
    if any((home / name).exists() for name in ("config.yaml", "metrics.json")):
        return _conflict(home, f"{home} holds an unfinished run that no suite has started")
    return State("missing")


def note_started(cell: Cell, folder: Path, *, processes: int, completed: int) -> None:
    """Write cell.json: `completed` commands of `cell` have succeeded."""
    content = {**_description(cell, processes), "completed": completed}
    write_json(folder / cell.name / CELL_FILE, content)


def _description(cell: Cell, processes: int) -> dict[str, Any]:
    plain = {
        "commands": cell.commands,
        "settings": {k: str(v) for k, v in cell.settings.items()},
        "processes": processes,
    }
    return json.loads(json.dumps(plain))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In words; "" if there are none."""
    if there["processes"] != here["processes"]:
        return f"on {there['processes']} process(es), now {here['processes']} are asked for"
    pairs = _differing(there["settings"], here["settings"])
    if pairs:
        named = [_named(*pair) for pair in pairs[:_MOST_NAMED]]
        more = f", and {len(pairs) - _MOST_NAMED} more" if len(pairs) > _MOST_NAMED else ""
        return f"{'; '.join(named)}{more}"
    if there["commands"] != here["commands"]:
        return "with other commands"
    return ""


def _differing(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> list[tuple[str, tuple[Any, Any]]]:
    return [
        (key, (there.get(key, "unset"), here.get(key, "unset")))
        for key in sorted({*there, *here})
        if _as_read(key, there.get(key)) != _as_read(key, here.get(key))
    ]


def _named(key: str, values: tuple[Any, Any]) -> str:
    there, here = (f"{value!s:.{_LONGEST_SHOWN}}" for value in values)
    return f"{key:.{_LONGEST_SHOWN}} {there} there, {here} here"


def _as_read(key: str, value: Any) -> Any:
    """Return a setting as a config has it: `my/images` and ["my/images"] are the same dataset."""
    if key in KEYS:
        with contextlib.suppress(ValueError):
            value = read_value(key, value)
    return _literal(value)


def _literal(value: Any) -> Any:
    """A value as yacs would read it: "(1, 2)" and [1, 2] are the same."""
    if isinstance(value, str):
        try:
            value = decode(value)
        except ValueError:
            return value
    return [_literal(v) for v in value] if isinstance(value, list | tuple) else value


def _examine_record(cell: Cell, path: Path, folder: Path, *, by_hand: bool) -> State:
    """
    Args:
        by_hand: the run was not started by a suite, so that its record alone says what it was.
    """
    if cell.kind != "transfer":
        return _examine_other_record(cell, path)
    from moco_d2.benchmark.records.results import read_content, to_record

    try:
        # Not with read_records, which warns of a damaged record: the state says what is wrong.
        content = read_content(path)
        if content is None:
            raise ValueError("it is of another kind")
        record = to_record(path, content)
    except (OSError, ValueError) as error:
        if by_hand:
            return _conflict(path.parent, f"{path} is no valid record of a run")
        return State("partial", problem=f"{path} is no valid record of a run ({error})")
    there = (record.task, record.initialization, record.seed)
    here = (cell.task, cell.initialization, cell.seed)
    if there != here:
        names = "{} from {}, seed {}"
        return _conflict(
            path.parent, f"{path} is of {names.format(*there)}, not {names.format(*here)}"
        )
    if by_hand:
        mine = {key: placed(str(v), cell, folder) for key, v in cell.settings.items()}
        found = flatten(record.config)
        compared = {
            key
            for key in mine.keys() & found.keys()
            if key not in _SCALED and not key.endswith("NORM")
        }
        pairs = _differing({k: found[k] for k in compared}, {k: mine[k] for k in compared})
        images = _images(mine)
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
        content = read_plain_json(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        return State("partial", problem=f"{path} cannot be read ({error})")
    if not isinstance(content, dict) or content.get("kind") != cell.kind:
        return State("partial", problem=f"{path} is no record of kind {cell.kind}")
    return State("done", len(cell.commands))


def _conflict(home: Path, problem: str) -> State:
    return State("conflict", problem=f"{problem}; choose another --folder, or remove {home}")


def placed(word: str, cell: Cell, folder: Path) -> str:
    """An argument with ``{folder}`` and ``{cell}`` put in."""
    return word.replace(FOLDER, str(folder)).replace(CELL_FOLDER, str(folder / cell.name))


# ---- lock ----------------------------------------------------------------------------------------


def lock_of(cell: Cell, folder: Path) -> filelock.BaseFileLock:
    """The lock that a process holds while it runs `cell`; the system frees it when that ends,
    however it ends.

    Raises:
        UserError: the cell's folder cannot be made, or a link is in the place of the lock.
    """
    home = folder / cell.name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_lock(cell, folder, error) from error
    check_own(home / _LOCK)  # which filelock would empty
    return filelock.FileLock(home / _LOCK)


def is_running(cell: Cell, folder: Path) -> bool:
    """Whether some process runs `cell` now.

    Raises:
        UserError: as lock_of; or the lock cannot be opened.
    """
    if not os.path.lexists(folder / cell.name / _LOCK):
        return False
    lock = lock_of(cell, folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    except OSError as error:
        raise cannot_lock(cell, folder, error) from error
    lock.release()
    return False


def cannot_lock(cell: Cell, folder: Path, error: OSError) -> UserError:
    """The sentence for a lock that cannot be made or opened."""
    home = folder / cell.name
    return UserError(f"cannot write {home}: {error.strerror}; choose another --folder")
