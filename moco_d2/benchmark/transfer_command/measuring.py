"""Times of a form on this machine, with as many runs at a time as there will be."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs.execution import Place
from moco_d2.benchmark.runs.suite_values import arguments_of
from moco_d2.benchmark.transfer_command.budget import Timing
from moco_d2.errors import UserError
from moco_d2.files import read_plain_json

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
    words = ("--most-seconds", str(most_seconds), "--config-file", config, *arguments_of(overrides))
    with tempfile.TemporaryDirectory(prefix="moco_d2_") as name:
        files = [Path(name) / f"{index}.json" for index in range(len(places))]
        _run_all(
            [_command(file, place, words) for file, place in zip(files, places, strict=True)],
            places,
        )
        timings = [read_plain_json(file, _MOST_BYTES) for file in files]
    slowest = {key: max(float(each[field]) for each in timings) for key, field in _SLOWEST.items()}
    return Timing(**slowest, spent=time.monotonic() - start)


def _command(file: Path, place: Place, words: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "moco_d2.transfer.timing", "--out", str(file)]
    return [*command, "--num-gpus", str(place.processes), *words]


def _run_all(commands: Sequence[list[str]], places: Sequence[Place]) -> None:
    """Run the commands at the same time.

    Raises:
        UserError: If one of them fails.
    """
    running: list[subprocess.Popen[str]] = []
    try:
        for command, place in zip(commands, places, strict=True):
            running.append(
                subprocess.Popen(  # noqa: S603 - a command of this package
                    command,
                    env={**os.environ, **place.environment},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in running:
            _, errors = process.communicate()
            if process.returncode:
                lines = [line for line in errors.splitlines() if line.strip()]
                first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), -1)
                found = lines[first:] or ["a process that measures ended without a message"]
                raise UserError(*(line.removeprefix("error: ") for line in found))
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
