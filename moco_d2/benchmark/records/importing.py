"""Import of a Detectron2 run from elsewhere as a run record.

Every run of Detectron2, also with the official MoCo code, leaves two files in its OUTPUT_DIR:
config.yaml, which is read as plain data and may have any keys, and metrics.json. The record has no
other information: not which tensors were loaded, not the origin of the weights, not the hardware.
"""

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from moco_d2.benchmark.records.files import LIMITS
from moco_d2.config.load import packaged_parts
from moco_d2.config.plain import matched_sha256, to_plain
from moco_d2.config.safe_yaml import UNREADABLE, load_yaml
from moco_d2.errors import UserError, closest
from moco_d2.files import sha256_of_json, write_json
from moco_d2.records.metrics_json import EVALUATIONS, history, read_log, seconds_per_iteration
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
RANDOM = ("", "random://")  # MODEL.WEIGHTS of random initialization in Detectron2 and in moco_d2

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
    """The part of a config that a record needs."""

    DATASETS: _Datasets
    MODEL: _Model
    SOLVER: _Solver
    SEED: int


def import_run(
    folder: str | Path, *, task: str, initialization: str, destination: str | Path | None = None
) -> Path:
    """Write the record of a finished run from its config.yaml and metrics.json.

    Args:
        folder: OUTPUT_DIR of the run.
        task: A name in configs/task, ``voc_C4``.
        initialization: Any name. A name in configs/init has the meaning that it has there.
        destination: File of the record. Default: record.json in `folder`.

    Returns:
        The file of the record.

    Raises:
        UserError: If there is no such task; a file is missing or damaged; the run did not finish or
            was not evaluated at its end; its weights contradict `initialization`; or the record
            exists already.
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
            f"{folder / METRICS_NAME} must be at most {_MOST_METRICS_BYTES >> 20} MiB; give the "
            "file of one run"
        )
    if destination.exists():
        raise UserError(f"{destination} exists; delete it, or write elsewhere with --out FILE")
    config, needed = read_run_config(folder / CONFIG_NAME)
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
        raise UserError(f"{folder} cannot be imported: its record is {error}") from error
    write_json(destination, content)
    return destination


def _check_names(task: str, initialization: str) -> None:
    tasks, initializations = packaged_parts("task"), packaged_parts("init")
    if task not in tasks:
        advice = closest(task, tasks) or f"there are {', '.join(tasks)}"
        raise UserError(f"there is no task {task!r}; {advice}")
    # Any name may be new, but a variant of a known name would get a row of its own by mistake.
    for known in initializations:
        if initialization != known and _bare(initialization) == _bare(known):
            raise UserError(f"initialization {initialization!r}: did you mean {known!r}?")


def _bare(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def read_run_config(path: Path) -> tuple[dict[str, Any], _Needed]:
    """Return a run's config.yaml as plain JSON, and the part that a record needs.

    Raises:
        UserError: If the file cannot be read, or is no config of a detector.
    """
    advice = f"give the {CONFIG_NAME} that Detectron2 itself wrote into OUTPUT_DIR"
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise UserError(f"{path} must be at most {_MOST_CONFIG_BYTES >> 20} MiB; {advice}")
        content = load_yaml(path)  # only plain values: a tag that builds an object is an error
        check_values(content, LIMITS)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({_one_line(error)}); {advice}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config of Detectron2; {advice}")
    # Types that yaml has and JSON lacks, such as dates, become text.
    config = json.loads(json.dumps(to_plain(content), default=str))
    config.setdefault("SEED", -1)  # the default of Detectron2: a seed from the clock
    try:
        return config, parse(config, _Needed, "config of a detector")
    except ValueError as error:
        raise UserError(f"{path} is {error}; {advice}") from error


def _last_evaluation(
    log: Sequence[dict[str, Any]], config: _Needed, path: Path
) -> dict[str, dict[str, float | None]]:
    """Return the metrics at the end of training, ``{"bbox": {"AP": 12.3}}``.

    With several test sets the keys are ``voc_2007_test/bbox``, as in Detectron2.
    """
    if not log:
        raise UserError(f"{path} has no valid line; give the file of a finished run")
    max_iter, last = config.SOLVER.MAX_ITER, log[-1]["iteration"]
    if last < max_iter - 1:
        raise UserError(
            f"{path} ends at iteration {last} of {max_iter}: the run did not finish; train to the "
            "end first"
        )
    if last > max_iter:
        raise UserError(
            f"{path} ends at iteration {last}, and SOLVER.MAX_ITER in {CONFIG_NAME} is "
            f"{max_iter}: they are of different runs, or Detectron2 has scaled the schedule to "
            "the GPUs; give the config of this run"
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
