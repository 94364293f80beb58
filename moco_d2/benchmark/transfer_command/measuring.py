"""Times of a form on this machine, with as many runs at a time as there will be."""

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
from moco_d2.benchmark.transfer_command.budget import Timing
from moco_d2.engine.signals import end_with_parent
from moco_d2.errors import USER_ERROR_EXIT_CODE, UserError
from moco_d2.files import read_plain_json, write_text

_MOST_BYTES = 1 << 20
_SLOWEST = {
    "step": "seconds_per_iteration",
    "test_image": "seconds_per_test_image",
    "start": "start_seconds",
}


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
