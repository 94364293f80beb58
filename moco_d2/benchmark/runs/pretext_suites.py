"""Suites of kind ``pretext``: every point x seed is pretrained by tools/pretrain.py and evaluated
by tools/linear_eval.py.

Keys of the YAML file, besides title and kind:

* ``points``: a mapping of names to overrides of config keys. The key ``config`` of a point replaces
  the config of the suite.
* ``config``: a name in configs/pretrain, or a YAML file.
* ``seeds``: a list of numbers (default: [1]). Pretraining and evaluation use the same seed.
* ``overrides``: config keys of all points. Overrides of a point take precedence over them.
* ``data``: a folder with train/ and val/, whose images are classified. The images of the
  pretraining are those of DATASETS.TRAIN, as in every config.
* ``generate``: instead of ``data``, numbers of training and validation images. These images are
  generated and used for both pretraining and classification.
* ``evaluation``: words for tools/linear_eval.py with flags of _FLAGS (default: the paper's linear
  protocol).
* ``random``: if true, an untrained network is evaluated too, for every seed.
* ``images``: number of images of the pretraining. Only the plan needs it, to count iterations.

The record of a run is the result.json of its evaluation; see records/pretext_records.py.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from moco_d2.config.keys import read_value
from moco_d2.config.load import check_data, config_root, packaged_parts
from moco_d2.errors import UserError
from moco_d2.files import expand_home, is_regular_file

_KEYS = (
    *("config", "points", "seeds", "overrides", "data", "generate", "evaluation", "random"),
    "images",
)
TASK = "pretext"
RANDOM = "random"  # name of the untrained network in tools/linear_eval.py, and of its cells
GENERATED = "generated_images"  # name of the cell that generates images, and of its folder
_PRETRAINED = f"{CELL_FOLDER}/pretrain"
_EVALUATED = "evaluation"
_RECORD = f"{_EVALUATED}/result.json"
_ONE_PROCESS = ("knn", "--fast")  # evaluations that run on one GPU only
# A suite may pass these flags to tools/linear_eval.py. Flags of paths and machines are not allowed.
_FLAGS = (
    *("--protocol", "--crops", "--task", "--branch", "--epochs", "--batch-size", "--lr", "--size"),
    *("--workers", "--device"),
)
_SWITCHES = ("--fast",)
_WORD = re.compile(r"\w[\w.:+-]*")


def build_cells(content: dict[str, Any], source: Path) -> tuple[list[Cell], dict[str, str]]:
    """Build the cells; see suites.load_suite. Names are ``{point}/seed{seed}``."""
    check_keys(content, _KEYS, source)
    shared = check_overrides(content.get("overrides"), source)
    points = with_overrides(content.get("points"), "points", source)
    seeds = check_seeds(content.get("seeds", [1]), source)
    check_grid(len(points), len(seeds), source=source)
    for name in points:
        check_name(name, "point", source)
    images = whole_number(content, "images", source) if content.get("images") is not None else None
    words = _words(content, source)
    first, evaluated_on = _data(content, source)
    shared |= {"DATASETS.TRAIN": f"('{FOLDER}/{GENERATED}/pretrain',)"} if first else {}
    needs = tuple(cell.name for cell in first)
    cells = list(first)
    # Seeds are the outer loop, so that an unfinished suite already has every point.
    for seed in seeds:
        new_cell = functools.partial(
            Cell, task=TASK, seed=seed, record=_RECORD, kind=TASK, needs=needs
        )
        trained = []
        for name, point in points.items():
            own = dict(point)
            config = _config(str(own.pop("config", content.get("config", ""))), source)
            overrides = {**shared, **own}
            settings = {**file_settings(config), **overrides}
            checkpoint = f"{_PRETRAINED}/checkpoint_final.pth.tar"
            trained.append(
                new_cell(
                    name=f"{name}/seed{seed}",
                    initialization=name,
                    commands=(
                        _pretraining(config, {**overrides, "SEED": seed}),
                        _evaluation((checkpoint,), evaluated_on, words, seed),
                    ),
                    settings={**settings, "SEED": seed, "evaluation": " ".join(words)},
                    iterations=_iterations(settings, images, source),
                )
            )
        if content.get("random"):
            arch = str(trained[0].settings.get("MOCO.ENCODER.ARCH", "resnet50"))
            if not _WORD.fullmatch(arch):
                raise UserError(f"{source}: MOCO.ENCODER.ARCH must be a network, got {arch!r:.80}")
            cells.append(
                new_cell(
                    name=f"{RANDOM}/seed{seed}",
                    initialization=RANDOM,
                    commands=(_evaluation((RANDOM, "--arch", arch), evaluated_on, words, seed),),
                    settings={"MOCO.ENCODER.ARCH": arch, "evaluation": " ".join(words)},
                )
            )
        cells += trained
    return cells, {}


def _pretraining(config: Path, overrides: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    packaged = config_root() in config.parents
    file = config.name if packaged else str(config)
    words = arguments_of({**overrides, "OUTPUT_DIR": _PRETRAINED})
    return "pretrain.py", ("--config-file", file, "--resume", *words)


def _evaluation(
    network: tuple[str, ...], data: tuple[str, ...], words: tuple[str, ...], seed: int
) -> tuple[str, tuple[str, ...]]:
    output = ("--output", f"{CELL_FOLDER}/{_EVALUATED}", "--seed", str(seed), "--resume")
    # Of two values the last one counts, and the value of the runner comes first.
    alone = ("--num-gpus", "1") if set(_ONE_PROCESS) & set(words) else ()
    return "linear_eval.py", (*network, *data, *words, *output, *alone)


def _data(content: Mapping[str, Any], source: Path) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """Return the cell that generates images, if any, and the flags that name the data."""
    numbers, data = content.get("generate"), content.get("data")
    if (numbers is None) == (data is None):
        raise UserError(
            f"{source}: exactly one of data and generate must be set: the images to classify"
        )
    if numbers is None:
        if not isinstance(data, str) or data.startswith("-") or not data:
            raise UserError(f"{source}: data must be a folder, got {data!r:.100}")
        check_data("data", data, str(source), suite=True)
        return (), ("--data", data)
    whole = isinstance(numbers, list) and all(type(n) is int and n > 0 for n in numbers)
    if not whole or len(numbers) != 2:
        raise UserError(f"{source}: generate must be two numbers of images, as in [900, 450]")
    cell = Cell(
        name=GENERATED,
        task=GENERATED,
        initialization="",
        seed=0,
        commands=(("demo.py", ("--out", CELL_FOLDER, "--images", *map(str, numbers), "0", "0")),),
        record="images.json",
        kind=None,
        settings={"generate": str(numbers)},
    )
    root = f"{FOLDER}/{GENERATED}"
    return (cell,), ("--data", f"{root}/pretrain", "--val", f"{root}/pretrain_test")


def _words(content: Mapping[str, Any], source: Path) -> tuple[str, ...]:
    """Return the words of ``evaluation``.

    Raises:
        UserError: If there are other words than _SWITCHES and _FLAGS with a value each.
    """
    value = content.get("evaluation") or []
    if not isinstance(value, list):
        raise UserError(f"{source}: evaluation must be a list of words, as in [--protocol, knn]")
    words = tuple(map(str, value))
    rest = iter(words)
    for flag in rest:
        if flag in _SWITCHES:
            continue
        if flag not in _FLAGS:
            raise unknown("word of evaluation", flag, (*_FLAGS, *_SWITCHES), source)
        value = next(rest, "")
        if not _WORD.fullmatch(value):
            raise UserError(f"{source}: evaluation: {flag} needs a value, got {value!r:.80}")
    return words


def _config(name: str, source: Path) -> Path:
    path = source.parent / expand_home(name)
    if path.suffix in (".yaml", ".yml") and is_regular_file(path):
        return Path(os.path.realpath(path))
    known = packaged_parts("pretrain")
    if name.removesuffix(".yaml") not in known:
        raise unknown("config", name, known, source)
    return known[name.removesuffix(".yaml")]


def _iterations(settings: Mapping[str, Any], images: int | None, source: Path) -> int | None:
    epochs = whole_number(settings, "MOCO.EPOCHS", source)
    if epochs <= 0:
        if "SOLVER.MAX_ITER" not in settings:
            return None
        return whole_number(settings, "SOLVER.MAX_ITER", source)
    if not images:
        return None
    try:
        fraction = read_value("MOCO.DATA.SHARE", settings.get("MOCO.DATA.SHARE", 1))
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    batch = whole_number(settings, "SOLVER.IMS_PER_BATCH", source)
    return epochs * (int(images * fraction) // batch) if batch else None
