"""The form and the schedule that fit the budget, from times on this machine with as many runs at a
time as there will be."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs.children import warmed
from moco_d2.benchmark.runs.execution import Place
from moco_d2.benchmark.runs.run_log import last_line
from moco_d2.benchmark.runs.suite_values import arguments_of
from moco_d2.benchmark.transfer_command.budget import Fit, Grid, Timing, fit, longest_schedule
from moco_d2.benchmark.transfer_command.forms import ANY_STEPS, FORMS, Form, settings_of
from moco_d2.benchmark.transfer_command.question import Question
from moco_d2.benchmark.transfer_command.weights import RANDOM_ROW
from moco_d2.engine.signals import end_with_parent
from moco_d2.errors import USER_ERROR_EXIT_CODE, UserError
from moco_d2.files import read_plain_json, write_text

# Limits of the steps, and of the test images, of one measurement.
_MEASURE_SECONDS, _LEAST_MEASURE_SECONDS, _MEASURE_PART = 60.0, 5.0, 0.02
_MOST_BYTES = 1 << 20
_SLOWEST = {
    "step": "seconds_per_iteration",
    "test_image": "seconds_per_test_image",
    "start": "start_seconds",
}


def fitted_to_budget(
    question: Question,
    grid: Grid,
    task: dict[str, Any],
    shared: dict[str, Any],
    places: Sequence[Place],
) -> Fit:
    """Return what the budget pays for; without a budget, the whole schedule.

    Args:
        question: The question, with its budget.
        grid: The runs.
        task: The settings of the task by their keys.
        shared: The settings that do not depend on the form.
        places: The places of the runs.
    """
    config = f"{question.task}_{RANDOM_ROW}.yaml"
    cpu = not places[0].devices
    limit = _MEASURE_SECONDS
    if question.budget is not None:
        limit = min(limit, max(_LEAST_MEASURE_SECONDS, question.budget * _MEASURE_PART))

    def measure(form: Form) -> Timing:
        print(f"measuring the form {form.name!r}, {len(places)} run(s) at a time", flush=True)
        settings = settings_of(form, ANY_STEPS, task, grid.short_side, cpu=cpu)
        return measure_form(config, {**shared, **settings}, places, limit)

    if question.budget is None:
        return longest_schedule(grid, task, FORMS[-1], measure(FORMS[-1]))
    return fit(grid, task, question.budget, measure)


def measure_form(
    config: str, overrides: dict[str, Any], places: Sequence[Place], most_seconds: float
) -> Timing:
    """Time steps and test images of a config in all places at once, and return the slowest.

    Args:
        config: Value of --config-file.
        overrides: Config keys and their values.
        places: The places of the runs.
        most_seconds: Limit for the steps and for the test images; at least two are measured.

    Raises:
        UserError: If the config cannot be run. The message is that of the run.
    """
    start = time.monotonic()
    words = ["--most-seconds", str(most_seconds), "--config-file", config, *arguments_of(overrides)]
    context = warmed({"train_net.py"})
    with tempfile.TemporaryDirectory(prefix="moco_d2_") as name:
        files = [Path(name) / f"{index}.json" for index in range(len(places))]
        processes = [
            context.Process(target=_measure, args=(file, place, words))
            for file, place in zip(files, places, strict=True)
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
        for file, process in zip(files, processes, strict=True):
            if process.exitcode:
                if _error_file(file).is_file():
                    raise UserError(*_error_file(file).read_text().splitlines())
                raise UserError(
                    f"the measurement of a few steps failed: {last_line(_log_file(file))}"
                )
        timings = [read_plain_json(file, _MOST_BYTES) for file in files]
    slowest = {key: max(float(each[field]) for each in timings) for key, field in _SLOWEST.items()}
    return Timing(**slowest, spent=time.monotonic() - start)


def _measure(file: Path, place: Place, words: Sequence[str]) -> None:
    """Do the measurement in this process, which is a fork, and write it to `file`."""
    from moco_d2.cli import start_job
    from moco_d2.transfer.timing import parser

    end_with_parent()
    place.enter()
    with _log_file(file).open("w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        all_words = ["--out", str(file), "--num-gpus", str(place.processes), *words]
        try:
            start_job("moco_d2.transfer.timing:measure", parser().parse_args(all_words))
        except UserError as error:
            write_text(_error_file(file), str(error))
            sys.exit(USER_ERROR_EXIT_CODE)


def _error_file(file: Path) -> Path:
    return file.with_suffix(".error")


def _log_file(file: Path) -> Path:
    return file.with_suffix(".log")
