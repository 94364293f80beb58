"""The trials of the learning rates of a row, which tuning.py adds to a suite, and their results."""

import dataclasses
from pathlib import Path

from moco_d2.benchmark.records.design import TRIALS
from moco_d2.benchmark.runs import run_log
from moco_d2.benchmark.runs.suites import Cell
from moco_d2.config.plain import TRIAL
from moco_d2.errors import UserError
from moco_d2.records.run_schema import RECORD_FILE

#: Placeholder in the arguments of a tuned cell for the learning rate of its best trial.
BEST = "{best}"
#: Setting of a tuned cell: metrics, of which the first that a trial has chooses; "" for those of
#: PRIMARY_METRICS.
METRICS = "tune.metrics"
#: Folder of a trial: task, initialization, learning rate.
FOLDER_OF_TRIAL = f"{{}}/{{}}/{TRIALS}/lr{{}}"


def is_trial(cell: Cell) -> bool:
    """Return whether a cell is a trial of a learning rate."""
    return cell.settings.get("MOCO.TUNED") == TRIAL


def has_diverged(cell: Cell, folder: Path) -> bool:
    """Return whether a cell is a trial whose loss became infinite. Its rate is not chosen."""
    if not is_trial(cell):
        return False
    from moco_d2.transfer.divergence import DIVERGED  # imports torch

    return DIVERGED in run_log.last_line(folder / cell.name / "output.log")


def best_rate(cell: Cell, folder: Path, *, planned: bool = False) -> str:
    """Return the learning rate of the best trial of a tuned cell; of equal ones the smallest.

    Args:
        cell: A tuned cell.
        folder: The folder of the suite.
        planned: Whether any of the rates will do, because the trials need not be done.

    Raises:
        UserError: If a trial has no record, or all have diverged.
    """
    from moco_d2.benchmark.records.run_records import read_content, to_record
    from moco_d2.benchmark.tables.comparison import PRIMARY_METRICS

    names = {n: float(n.rpartition("/lr")[2]) for n in cell.needs if "/tuning/lr" in n}
    if planned:
        return str(min(names.values()))
    wanted = cell.settings[METRICS].split() or PRIMARY_METRICS
    scores = {}
    for name, rate in names.items():
        file = folder / name / RECORD_FILE
        trial = dataclasses.replace(cell, name=name, settings={"MOCO.TUNED": TRIAL})
        if not file.is_file() and has_diverged(trial, folder):
            continue
        try:
            content = read_content(file)
            metrics = to_record(file, content).metrics if content else {}
        except (OSError, ValueError) as error:
            raise UserError(f"the trial {file} cannot be read ({error}); run it again") from error
        value = next((metrics[m] for m in wanted if m in metrics), None)
        if value is not None:
            scores[rate] = value
    if not scores:
        raise UserError(
            f"no trial of {cell.task}/{cell.initialization} has {' or '.join(wanted)}; add smaller "
            "learning_rates to tune"
        )
    return str(max(scores, key=lambda rate: (scores[rate], -rate)))
