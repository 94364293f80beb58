"""A learning rate for each row of a suite, chosen by one rule on a split of the training images.

The key ``tune`` of a suite of kind ``transfer``:

* ``learning_rates``: SOLVER.BASE_LR of the trials, at least two.
* ``held_out``: the fraction of the first training set that the trials test on. It is drawn, see
  held_out_parts.py. Or ``train`` and ``test`` name two parts of the training images for each task,
  ``{voc_C4: [voc_2007_train]}``. The runner checks that they are disjoint parts of DATASETS.TRAIN.
* ``seed``: the seed of the draw and of the trials, which is none of the suite's (default: the
  largest + 1).

A trial is a run of the row on the first part, evaluated on the second. All runs of the row have the
rate of its best trial, and name the rule in MOCO.TUNED.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs.held_out_parts import DRAWN, names_of_parts
from moco_d2.benchmark.runs.suite_values import arguments_of, check_grid, check_keys, check_seeds
from moco_d2.benchmark.runs.suites import Cell
from moco_d2.benchmark.runs.trials import BEST, FOLDER_OF_TRIAL, METRICS
from moco_d2.config.keys import read_value
from moco_d2.config.plain import TRIAL
from moco_d2.errors import UserError

_KEYS = ("learning_rates", "train", "test", "held_out", "seed")
_LARGEST = 1e6  # a whole number may be too large for a float


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The datasets of the trials of a task, their names in the rule, and further settings."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    text: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def tuned(cells: list[Cell], tune: Any, metrics: Sequence[str], source: Path) -> list[Cell]:
    """Return the trials, and the cells with the rates of the best ones.

    Args:
        cells: The fine-tuning runs of a suite.
        tune: The value of the key ``tune``.
        metrics: The first of these that a trial has chooses; if empty, of PRIMARY_METRICS.
        source: The suite, for errors.

    Raises:
        UserError: If `tune` is not as above, or a run sets SOLVER.BASE_LR itself.
    """
    if not isinstance(tune, dict):
        raise UserError(f"{source}: tune must be a mapping with the keys {', '.join(_KEYS)}")
    check_keys(tune, _KEYS, source)
    rates = _rates(tune, source)
    seeds = {cell.seed for cell in cells}
    (seed,) = check_seeds([tune.get("seed", max(seeds) + 1)], source)
    if seed in seeds:
        raise UserError(f"{source}: the seed {seed} of tune is also in seeds; choose another one")
    tasks = {cell.task: cell for cell in cells}
    divide = _drawn if "held_out" in tune else _named
    parts = {task: divide(tune, cell, seed, source) for task, cell in tasks.items()}
    trials: dict[str, Cell] = {}
    runs = []
    for cell in cells:
        if "SOLVER.BASE_LR" in cell.commands[0][1]:
            raise UserError(f"{source}: SOLVER.BASE_LR must not be an override; tune chooses it")
        part = parts[cell.task]
        names = tuple(
            FOLDER_OF_TRIAL.format(cell.task, cell.initialization, rate) for rate in rates
        )
        for name, rate in zip(names, rates, strict=True):
            own = {
                "DATASETS.TRAIN": str(part.train),
                "DATASETS.TEST": str(part.test),
                "SOLVER.BASE_LR": rate,
                "MOCO.TUNED": TRIAL,
                "SEED": seed,
            }
            trial = dataclasses.replace(cell, name=name, seed=seed)
            trial = _overridden(trial, own)
            settings = {**trial.settings, **part.settings}
            trials.setdefault(name, dataclasses.replace(trial, settings=settings))
        rule = (
            f"{' or '.join(metrics) or 'the first primary metric'} on {part.text} (seed {seed}), "
            f"of {', '.join(map(str, rates))}"
        )
        run = _overridden(cell, {"SOLVER.BASE_LR": BEST, "MOCO.TUNED": rule})
        settings = {**run.settings, METRICS: " ".join(metrics)}
        del settings["SOLVER.BASE_LR"]  # the trials decide
        runs.append(dataclasses.replace(run, needs=(*cell.needs, *names), settings=settings))
    check_grid(len(trials) + len(runs), source=source)
    return [*trials.values(), *runs]


def _rates(tune: Mapping[str, Any], source: Path) -> list[float]:
    rates = tune.get("learning_rates")
    if (
        not isinstance(rates, list)
        or not all(type(rate) in (int, float) and 0 < rate <= _LARGEST for rate in rates)
        or len(set(map(float, rates))) != len(rates)
        or len(rates) < 2
    ):
        raise UserError(
            f"{source}: learning_rates of tune must be a list of at least two different numbers "
            f"above 0 and at most {_LARGEST:g}, as in [0.01, 0.02, 0.04], got {rates!r:.80}"
        )
    return [float(rate) for rate in rates]


def _drawn(tune: Mapping[str, Any], cell: Cell, seed: int, source: Path) -> _Parts:
    """Return the parts that are drawn from the training images of a task."""
    if named := [key for key in ("train", "test") if key in tune]:
        raise UserError(f"{source}: tune has {named[0]} and held_out; remove one of the two")
    fraction = tune["held_out"]
    if type(fraction) is not float or not 0 < fraction < 1:
        raise UserError(
            f"{source}: held_out of tune must be a fraction between 0 and 1, as in 0.2, got "
            f"{fraction!r:.80}"
        )
    divided, *others = datasets(cell, "TRAIN") or ("",)
    kept, held = names_of_parts(cell.task, divided, source)
    text = f"{fraction:g} of {divided} after training on {' + '.join(['the rest', *others])}"
    return _Parts((kept, *others), (held,), text, {DRAWN: (divided, fraction, seed)})


def _named(tune: Mapping[str, Any], cell: Cell, _: int, source: Path) -> _Parts:
    """Return the parts of a task that the suite names."""
    names = []
    for key in ("train", "test"):
        value = tune.get(key)
        named = value.get(cell.task) if isinstance(value, dict) else None
        if isinstance(named, str):
            named = [named]
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise UserError(
                f"{source}: {key} of tune must name datasets of the task {cell.task}, as in "
                f"{{{cell.task}: [voc_2007_{'train' if key == 'train' else 'val'}]}}, or give "
                "held_out, as in 0.2"
            )
        names.append(tuple(named))
    train, test = names
    if not train or len(test) != 1:
        raise UserError(
            f"{source}: tune needs at least one dataset in train and exactly one in test for the "
            f"task {cell.task}"
        )
    if set(test) & set(datasets(cell, "TEST")):
        raise UserError(
            f"{source}: {test[0]} of tune is the test set of {cell.task}; name a part of its "
            "training images"
        )
    return _Parts(train, test, f"{test[0]} after training on {' + '.join(train)}")


def datasets(cell: Cell, part: str) -> tuple[str, ...]:
    """Return the names in DATASETS.TRAIN or DATASETS.TEST; () if the cell does not set them."""
    value = cell.settings.get(f"DATASETS.{part}")
    return tuple(read_value(f"DATASETS.{part}", value)) if value else ()


def _overridden(cell: Cell, overrides: Mapping[str, Any]) -> Cell:
    ((tool, words),) = cell.commands
    start = words.index("--resume") + 1
    pairs = dict(zip(words[start::2], words[start + 1 :: 2], strict=True))
    new = (*words[:start], *arguments_of({**pairs, **overrides}))
    return dataclasses.replace(
        cell, commands=((tool, new),), settings={**cell.settings, **overrides}
    )
