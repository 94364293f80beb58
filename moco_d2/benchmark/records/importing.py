"""A Detectron2 run made elsewhere, as a run record.

Read are the two files that every run of Detectron2 leaves in its OUTPUT_DIR, those of the official
MoCo code included: config.yaml, as data, whatever keys it has, and metrics.json. What they do not
tell, the record does not: which tensors arrived, where the weights come from, on what it ran.
"""

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from moco_d2.benchmark.records.files import LIMITS
from moco_d2.config.load import config_root
from moco_d2.config.plain import matched_sha256, to_plain
from moco_d2.config.safe_yaml import UNREADABLE, load_yaml
from moco_d2.errors import UserError, closest
from moco_d2.files import sha256_of_json, write_json
from moco_d2.records.metrics_json import (
    EVALUATIONS,
    history,
    read_log,
    seconds_per_iteration,
)
from moco_d2.records.parsing import parse
from moco_d2.records.plain_values import check_values
from moco_d2.records.run_schema import (
    RECORD_FILE,
    SCHEMA_VERSION,
    Config,
    Cost,
    Coverage,
    Hardware,
    Origin,
    Preflight,
    Run,
    RunRecord,
    Schedule,
    Weights,
)

CONFIG_NAME, METRICS_NAME = "config.yaml", "metrics.json"
RANDOM = ("", "random://")  # MODEL.WEIGHTS of random initialization: Detectron2's, and ours

_MOST_CONFIG_BYTES = 1 << 20  # Detectron2's own is 10 kB
_MOST_METRICS_BYTES = 256 << 20  # 180,000 iterations of LVIS take 10 MB


class _Datasets(msgspec.Struct):
    TRAIN: list[str]
    TEST: list[str]


class _ResNets(msgspec.Struct):
    NORM: str


class _Model(msgspec.Struct):
    WEIGHTS: str
    RESNETS: _ResNets


class _Solver(msgspec.Struct):
    IMS_PER_BATCH: int
    MAX_ITER: int
    BASE_LR: float
    STEPS: list[int]


class _Needed(msgspec.Struct):
    """What a record needs of a config."""

    DATASETS: _Datasets
    MODEL: _Model
    SOLVER: _Solver
    SEED: int


def import_run(
    folder: str | Path, *, task: str, initialization: str, destination: str | Path | None = None
) -> Path:
    """Write the record of a finished run from its config.yaml and metrics.json.

    Args:
        folder: the run's OUTPUT_DIR.
        task: one of configs/task, ``voc_C4``.
        initialization: any name; those of configs/init stand for what they are there.
        destination: of the record; by default record.json in `folder`.

    Returns:
        the record's path.

    Raises:
        UserError: no such task; a file is missing or damaged; the run did not finish or was not
            evaluated at its end; its weights contradict `initialization`; or there is a record.
    """
    folder = Path(folder)
    destination = Path(destination) if destination else folder / RECORD_FILE
    _check_names(task, initialization)
    for name in (CONFIG_NAME, METRICS_NAME):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}; give the OUTPUT_DIR of a Detectron2 run, which has "
                f"{CONFIG_NAME} and {METRICS_NAME}"
            )
    if (folder / METRICS_NAME).stat().st_size > _MOST_METRICS_BYTES:
        raise UserError(
            f"{folder / METRICS_NAME} is larger than {_MOST_METRICS_BYTES >> 20} MiB, which none "
            "is; give that of one run"
        )
    if destination.exists():
        raise UserError(f"{destination} exists; delete it, or write elsewhere with --out FILE")
    config, needed = _read_config(folder / CONFIG_NAME)
    weights = needed.MODEL.WEIGHTS
    if (weights in RANDOM) != (initialization == "random"):
        raise UserError(
            f"MODEL.WEIGHTS in {folder / CONFIG_NAME} is {weights!r}, which is "
            f"{'' if weights in RANDOM else 'not '}random initialization; give the "
            "--initialization that the run had"
        )
    metrics_file = folder / METRICS_NAME
    try:
        log = read_log(metrics_file)
    except OSError as error:
        raise UserError(f"cannot read {metrics_file}: {error.strerror}") from error
    metrics = _last_evaluation(log, needed, metrics_file)
    solver = needed.SOLVER
    finished = datetime.fromtimestamp(metrics_file.stat().st_mtime, timezone.utc)
    try:
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            kind="transfer",
            origin=Origin(how="imported", source=os.path.realpath(folder)),
            run=Run(
                config_name=f"{task}_{initialization}",
                task=task,
                initialization=initialization,
                seed=needed.SEED,
                started=None,
                finished=finished.isoformat(timespec="seconds"),
                seconds=None,
            ),
            config=Config(
                resolved=config,
                sha256=sha256_of_json(config),
                matched_sha256=matched_sha256(config),
            ),
            weights=None
            if weights in RANDOM
            else Weights(file=weights, sha256=None, provenance=None),
            coverage=Coverage(expected=0, loaded=0),
            schedule=Schedule(
                world_size=None,
                ims_per_batch=solver.IMS_PER_BATCH,
                base_lr=solver.BASE_LR,
                max_iter=solver.MAX_ITER,
                steps=solver.STEPS,
                norm=needed.MODEL.RESNETS.NORM,
                notes=[f"finished: when {METRICS_NAME} was last changed"],
            ),
            preflight=Preflight(forced=False, findings=[]),
            environment={},
            hardware=Hardware(),
            cost=Cost(
                seconds_per_iteration=seconds_per_iteration(log),
                peak_memory_gib=None,
                evaluation_seconds=None,
            ),
            metrics=metrics,
            history=history(log, metrics),
            errors=None,
        )
        content = msgspec.to_builtins(record)
        check_values(content, LIMITS)
        parse(content, RunRecord, "valid record")
    except ValueError as error:
        raise UserError(f"{folder} cannot be imported: what it gives is {error}") from error
    write_json(destination, content)
    return destination


def _check_names(task: str, initialization: str) -> None:
    tasks, initializations = (
        sorted(file.stem for file in (config_root() / part).glob("*.yaml"))
        for part in ("task", "init")
    )
    if task not in tasks:
        advice = closest(task, tasks) or f"there is {', '.join(tasks)}"
        raise UserError(f"there is no task {task!r}; {advice}")
    # Any name may be new, but one that only looks new would stand in a row of its own.
    for known in initializations:
        if initialization != known and _bare(initialization) == _bare(known):
            raise UserError(f"initialization {initialization!r}: did you mean {known!r}?")


def _bare(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _read_config(path: Path) -> tuple[dict[str, Any], _Needed]:
    """The config as plain JSON, and what a record needs of it."""
    advice = f"give the {CONFIG_NAME} that Detectron2 itself wrote into OUTPUT_DIR"
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise UserError(f"{path} is larger than any config; {advice}")
        # Only plain values: a tag that would build an object is refused.
        read = load_yaml(path)
        check_values(read, LIMITS)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({_one_line(error)}); {advice}") from error
    if not isinstance(read, dict):
        raise UserError(f"{path} is no config of Detectron2; {advice}")
    # Dates and the like, which yaml knows and JSON does not, as text.
    config = json.loads(json.dumps(to_plain(read), default=str))
    config.setdefault("SEED", -1)  # Detectron2's default: from the clock
    try:
        return config, parse(config, _Needed, "config of a detector")
    except ValueError as error:
        raise UserError(f"{path} is {error}; {advice}") from error


def _last_evaluation(
    log: Sequence[dict[str, Any]], config: _Needed, path: Path
) -> dict[str, dict[str, float | None]]:
    """``{"bbox": {"AP": 12.3}}`` of the end of training; of several test sets,
    ``{"voc_2007_test/bbox": ...}``, as Detectron2 names them.
    """
    if not log:
        raise UserError(f"{path} has no line that can be read; give that of a finished run")
    max_iter, last = config.SOLVER.MAX_ITER, log[-1]["iteration"]
    if last < max_iter - 1:
        raise UserError(
            f"{path} ends at iteration {last} of {max_iter}: the run did not finish; train to the "
            "end first"
        )
    if last > max_iter:
        raise UserError(
            f"{path} goes on to iteration {last}, and SOLVER.MAX_ITER in {CONFIG_NAME} is "
            f"{max_iter}: they are of different runs, or Detectron2 has scaled the schedule to "
            "other GPUs; give the config that it ran with"
        )
    tests = config.DATASETS.TEST
    prefixes = [f"{name}/" for name in tests] if len(tests) > 1 else [""]
    groups = [f"{prefix}{group}" for prefix in prefixes for group in EVALUATIONS]
    evaluations = history(log, groups)
    if not evaluations:
        raise UserError(
            f"{path} has no evaluation ({', '.join(EVALUATIONS[:4])}, ...): set DATASETS.TEST and "
            "train again with --resume, which evaluates at the end"
        )
    if evaluations[-1]["iteration"] < max_iter - 1:
        raise UserError(
            f"the last evaluation in {path} is of iteration {evaluations[-1]['iteration']} of "
            f"{max_iter}, not of the trained detector; train again with --resume, which evaluates "
            "at the end"
        )
    metrics: dict[str, dict[str, float | None]] = {}
    for group in groups:
        for key, value in evaluations[-1].items():
            if key.startswith(f"{group}/"):
                metrics.setdefault(group, {})[key.removeprefix(f"{group}/")] = value
    return metrics


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
