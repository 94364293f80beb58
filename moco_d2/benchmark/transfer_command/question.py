"""What tools/transfer.py is asked."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moco_d2.benchmark.transfer_command.data import absolute, dataset_name
from moco_d2.config.load import packaged_parts
from moco_d2.config.plain import flatten, to_plain
from moco_d2.errors import UserError, closest
from moco_d2.files import CHECKPOINTS, files_in, is_folder, is_regular_file, no_file, sha256

NO_SUPERVISED = "none"


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        checkpoints: Files or names of published weights.
        train, test: DATA; see data.dataset_name.
        task: Name of a detection task of configs/task.
        seeds: Number of runs of each row.
        budget: Seconds for everything; None is the task's own schedule.
        gpus_per_run: See runs.runner.run.
        supervised: Checkpoint of the supervised row; None for published weights of the same network
            (weights.supervised_source), NO_SUPERVISED for no such row.
        heads: The number of attention heads of the ViTs, if the user gives it.
    """

    checkpoints: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    task: str = "voc_C4"
    seeds: int = 5
    budget: float | None = None
    gpus_per_run: int = 1
    supervised: str | None = None
    heads: int | None = None


def task_settings(name: str) -> dict[str, Any]:
    """Return all settings of a task.

    Raises:
        UserError: If there is no such task, or it has no boxes.
    """
    known = packaged_parts("task")
    if name not in known:
        hint = closest(name, known) or f"there are {', '.join(known)}"
        raise UserError(f"--task {name!r:.100} is unknown; {hint}")
    from moco_d2.config.load import reference_config

    cfg = reference_config(name)
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" or cfg.MODEL.get("DENSEPOSE_ON"):
        raise UserError(
            f"--task {name} has no boxes, masks or keypoints alone, and is not scaled to a budget; "
            "write a suite for it (docs/benchmark.md)"
        )
    return flatten(to_plain(cfg))


def run_task(question: Question, task: Mapping[str, Any]) -> str:
    """Return the name of the task of the runs.

    A smaller form on the task's own data must not be taken for the task itself, whose results are
    published, so it gets a name of its own.

    Args:
        question: The result of absolute_names.
        task: The result of task_settings.
    """
    own = tuple(task["DATASETS.TRAIN"]), tuple(task["DATASETS.TEST"])
    return f"my_{question.task}" if own == (question.train, question.test) else question.task


def absolute_names(question: Question) -> Question:
    """Return the question with names that hold from any current folder.

    Raises:
        UserError: If there is no such checkpoint or dataset.
    """
    checkpoints = tuple(map(_absolute_file, question.checkpoints))
    supervised = question.supervised and _absolute_file(question.supervised, "--supervised: ")
    train = tuple(dataset_name(data, "train") for data in question.train)
    test = tuple(dataset_name(data, "test") for data in question.test)
    return dataclasses.replace(
        question, checkpoints=checkpoints, supervised=supervised, train=train, test=test
    )


def _absolute_file(source: str, flag: str = "") -> str:
    if source == NO_SUPERVISED or "://" in source:
        return source
    if is_folder(source):
        raise UserError(f"{flag}{source} {no_file(source, CHECKPOINTS, 'checkpoint file')}")
    if not is_regular_file(source):
        path, words = Path(source), [NO_SUPERVISED] if flag else []
        hint = closest(path.name, [*words, *files_in(path.parent, CHECKPOINTS)])
        hint = hint or "name a file, or published weights such as moco://v2_200ep"
        raise UserError(f"{flag}there is no checkpoint {source}; {hint}")
    return str(absolute(Path(source)))


def checkpoint_hashes(question: Question) -> dict[str, str]:
    """Return the hash of each checkpoint that is a file; those with names have published hashes."""
    sources = [*question.checkpoints, question.supervised or NO_SUPERVISED]
    return {source: sha256(source) for source in sources if Path(source).is_absolute()}
