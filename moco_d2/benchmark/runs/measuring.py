"""Timing of a few steps of each task of a suite on this machine, for the plan."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs.cell_state import placed
from moco_d2.benchmark.runs.execution import TOOLS, Place
from moco_d2.benchmark.runs.held_out_parts import draw_parts
from moco_d2.benchmark.runs.places import make_places
from moco_d2.benchmark.runs.suites import Cell, Suite, untrusted_words
from moco_d2.files import read_plain_json, write_text
from moco_d2.records.metrics_json import finite

_TIMINGS = "timings"  # folder of the results, inside the folder of the suite
_MOST_BYTES = 1 << 20  # of one result
_NUMBERS = ("seconds_per_iteration", "steps", "iterations", "images_per_batch")


def measure_tasks(suite: Suite, folder: Path, gpus_per_run: int) -> dict[str, str]:
    """Time a few steps of each task of tools/train_net.py, and write the results to `folder`.

    Returns:
        Task -> reason, for each task that could not be timed.

    Raises:
        UserError: If there are too few GPUs.
    """
    place = make_places(gpus_per_run, None, runs=len(suite.cells), tools=TOOLS)[0]
    for path, content in suite.files.items():
        write_text(folder / path, content)
    draw_parts(suite.cells, folder)
    problems = {}
    first: dict[str, Cell] = {}
    for cell in suite.cells:
        first.setdefault(cell.task, cell)
    for task, cell in first.items():
        tool, words = cell.commands[0]
        if tool != "train_net.py":
            continue
        fresh = [placed(word, cell, folder) for word in words if word != "--resume"]
        problem = _time(
            untrusted_words(tool, fresh), place, timing_file(folder, task, gpus_per_run)
        )
        if problem:
            problems[task] = problem
    return problems


def _time(words: list[str], place: Place, file: Path) -> str:
    """Time a run of tools/train_net.py with `words`, and return the error message or ""."""
    environment = {**os.environ, **place.environment}
    command = [sys.executable, "-m", "moco_d2.transfer.timing"]
    command += ["--num-gpus", str(place.processes), "--out", str(file), *words]
    done = subprocess.run(  # noqa: S603 - a command of this package
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1].removeprefix("error: ")
    return ""


def timing_file(folder: Path, task: str, gpus_per_run: int) -> Path:
    """Return the file of the timing of a task."""
    return folder / _TIMINGS / f"{task}_{max(1, gpus_per_run)}.json"


def read_timing(folder: Path, task: str, gpus_per_run: int) -> dict[str, Any] | None:
    """Return the timing of a task; None if it has not been timed or the file is damaged."""
    try:
        timing = read_plain_json(timing_file(folder, task, gpus_per_run), _MOST_BYTES)
    except (OSError, ValueError):
        return None
    valid = (
        isinstance(timing, dict)
        and all((finite(timing.get(key)) or 0) > 0 for key in _NUMBERS)
        and isinstance(timing.get("on_gpu"), bool)
        and isinstance(timing.get("hardware"), str)
        and timing["hardware"].isprintable()
    )
    return timing if valid else None


def hardware_of(timing: dict[str, Any], gpus: int) -> str:
    """Return the hardware of a timing from read_timing in words; `gpus` is those of a run."""
    return f"{gpus} x {timing['hardware']}" if timing["on_gpu"] else timing["hardware"]
