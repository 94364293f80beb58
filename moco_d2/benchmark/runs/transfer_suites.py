"""Suites of kind ``transfer``: every task x initialization x seed is fine-tuned.

Keys of the YAML file, besides title and kind:

* ``tasks`` and ``initializations``: names of configs/task and configs/init, or YAML files of the
  same form, relative to the suite. Either a list, or a mapping of names to overrides.
* ``only``: the initializations of some tasks, ``{coco_vitdet_B_400ep: [random]}``; a task that is
  not named has all of them.
* ``seeds``: a list of numbers (default: [1]).
* ``overrides``: config keys of all runs, ``{SOLVER.MAX_ITER: 100}``. Overrides of a task take
  precedence over them, and overrides of an initialization over both. SEED, OUTPUT_DIR and MOCO.TASK
  cannot be overridden, and MODEL.WEIGHTS only in an initialization.
"""

import itertools
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.design import DESIGN_KEYS
from moco_d2.benchmark.runs.suite_values import (
    arguments_of,
    check_grid,
    check_keys,
    check_name,
    check_overrides,
    check_seeds,
    file_settings,
    unknown,
    whole_number,
    with_overrides,
)
from moco_d2.benchmark.runs.suites import CELL_FOLDER, FOLDER, Cell
from moco_d2.config.load import config_root, packaged_parts
from moco_d2.errors import UserError
from moco_d2.files import expand_home, is_regular_file

_INITIALIZATIONS = "initializations"
_BRITISH = "initialisations"  # the key of suites from before, which still works
_KEYS = ("tasks", _INITIALIZATIONS, "only", "seeds", "overrides")


def build_cells(content: dict[str, Any], source: Path) -> tuple[list[Cell], dict[str, str]]:
    """Build the cells; see suites.load_suite. Names are ``{task}/{initialization}/seed{seed}``."""
    key = _BRITISH if _BRITISH in content else _INITIALIZATIONS
    if _BRITISH in content and _INITIALIZATIONS in content:
        raise UserError(
            f"{source}: {_BRITISH} is the old name of {_INITIALIZATIONS}; remove one of the two"
        )
    # load_suite has read the design.
    check_keys(content, (*_KEYS, *DESIGN_KEYS, key), source)
    shared = check_overrides(content.get("overrides"), source, weights=False)
    tasks = with_overrides(content.get("tasks"), "tasks", source, weights=False)
    initializations = with_overrides(content.get(key), key, source)
    only = _only(content.get("only", {}), tasks, initializations, source)
    seeds = check_seeds(content.get("seeds", [1]), source)
    check_grid(len(tasks), len(initializations), len(seeds), source=source)
    task_files = {name: _part("task", name, source) for name in tasks}
    init_files = {name: _part("init", name, source) for name in initializations}
    from_files = {
        (task, init): file_settings(task_files[task], init_files[init])
        for task, init in itertools.product(tasks, initializations)
    }
    cells, files = [], {}
    for task, seed, init in itertools.product(tasks, seeds, initializations):
        if init not in only.get(task, initializations):
            continue
        task_name, init_name = task_files[task].stem, init_files[init].stem
        config = f"{task_name}_{init_name}.yaml"
        if config_root() not in task_files[task].parents or (
            config_root() not in init_files[init].parents
        ):
            parts = ", ".join(json.dumps(str(f)) for f in (task_files[task], init_files[init]))
            files[f"configs/{config}"] = f"_BASE_: [{parts}]\n"
            config = f"{FOLDER}/configs/{config}"
        overrides = {**shared, **tasks[task], **initializations[init]}
        cells.append(
            transfer_cell(
                name=f"{task_name}/{init_name}/seed{seed}",
                task=task_name,
                initialization=init_name,
                seed=seed,
                config=config,
                overrides=overrides,
                settings=from_files[task, init],
                source=source,
            )
        )
    return cells, files


def transfer_cell(
    *,
    name: str,
    task: str,
    initialization: str,
    seed: int,
    config: str,
    overrides: Mapping[str, Any],
    settings: Mapping[str, Any],
    source: Path,
    needs: tuple[str, ...] = (),
) -> Cell:
    """Return the cell of one run of tools/train_net.py.

    Args:
        name, task, initialization, seed, needs: See Cell.
        config: Value of --config-file.
        overrides: Config keys and their values.
        settings: Settings in the config file.
        source: The suite, for errors.

    Raises:
        UserError: If SOLVER.MAX_ITER is not a number.
    """
    settings = {**settings, **overrides, "SEED": seed}
    words = arguments_of({**overrides, "SEED": seed, "OUTPUT_DIR": CELL_FOLDER})
    return Cell(
        name=name,
        task=task,
        initialization=initialization,
        seed=seed,
        commands=(("train_net.py", ("--config-file", config, "--resume", *words)),),
        needs=needs,
        settings=settings,
        iterations=whole_number(settings, "SOLVER.MAX_ITER", source)
        if "SOLVER.MAX_ITER" in settings
        else None,
    )


def _only(
    value: Any, tasks: Collection[str], initializations: Collection[str], source: Path
) -> dict[str, list[str]]:
    lists = isinstance(value, dict) and all(isinstance(names, list) for names in value.values())
    if not lists or not all(value.values()):
        raise UserError(
            f"{source}: only must map tasks to lists of initializations, as in "
            f"{{voc_C4: [moco]}}, got {value!r:.80}"
        )
    for task, names in value.items():
        if task not in tasks:
            raise unknown("task in only", str(task), tasks, source)
        if wrong := [name for name in names if name not in initializations]:
            raise unknown("initialization in only", str(wrong[0]), initializations, source)
    return value


def _part(folder: str, name: str, source: Path) -> Path:
    """Return the file of a task or an initialization."""
    if Path(name).suffix in (".yaml", ".yml"):
        path = source.parent / expand_home(name)
        if not is_regular_file(path):
            raise UserError(
                f"{source}: {str(path)!r:.300} is not a file; name it relative to the folder of "
                "the suite"
            )
        path = Path(os.path.realpath(path))
        check_name(path.stem, "file name", source)  # it becomes a part of the name of a run
        return path
    known = packaged_parts(folder)
    if name not in known:
        what = "task" if folder == "task" else "initialization"
        raise unknown(what, name, known, source)
    return known[name]
