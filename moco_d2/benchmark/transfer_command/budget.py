"""The largest form of a task, and the longest schedule, that a budget of time allows."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from moco_d2.benchmark.runs.display import duration
from moco_d2.benchmark.transfer_command.forms import (
    FORMS,
    Form,
    cost,
    precise_bn_passes,
)
from moco_d2.errors import UserError

# A detector needs both before its features matter. The paper's VOC schedule has 23 epochs; of the
# demo's 140 steps of 4 images, 100 would not separate the rows.
_WANTED_STEPS, _WANTED_EPOCHS = 200, 6
_LEAST_STEPS = 60
# The part of the budget that is planned. The rest is for what cannot be measured beforehand.
_PLANNED = 0.9
_MARGIN = 1.25  # of an advised budget, for the next measurement
_MEASURING = 0.25  # at most this part of the budget goes into measuring
_RECORD_SECONDS = 3.0  # of a run, for the metrics and the record
_PASS = 1 / 3  # of a training step: a forward pass, as PreciseBN makes them
_UNITS = {"h": 3600, "m": 60, "s": 1}
_MOST_HOURS = 100_000


@dataclasses.dataclass(frozen=True)
class Timing:
    """Measured times of a form on this machine, with as many runs at a time as there will be.

    Attributes:
        step: Seconds of a training step.
        test_image: Seconds of a test image.
        start: Seconds of a run before its first step.
        spent: Seconds that the measurement took.
    """

    step: float
    test_image: float
    start: float
    spent: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """What fits the budget.

    Attributes:
        form: The form of images and heads.
        steps: Steps of each run.
        seconds: Predicted duration of the whole grid.
    """

    form: Form
    steps: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Grid:
    """The work of a comparison.

    Attributes:
        runs: Number of runs.
        at_a_time: Number of runs at the same time.
        train_images, test_images: Sizes of the sets.
        short_side: Median short side of the training images, in pixels.
        batch: Images of a step.
    """

    runs: int
    at_a_time: int
    train_images: int
    test_images: int
    short_side: float
    batch: int

    @property
    def rounds(self) -> int:
        """Return how many runs follow each other."""
        return math.ceil(self.runs / self.at_a_time)


def parse_budget(text: str) -> float:
    """Return the seconds of a duration such as ``2h``, ``90m`` or ``1h30m``.

    Raises:
        UserError: If it is no such duration, or too long.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([hms])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not seconds:
        raise UserError(f"--budget must be a duration such as 2h, 90m or 1h30m, got {text!r:.60}")
    if seconds > _MOST_HOURS * _UNITS["h"]:
        raise UserError(
            f"--budget must be at most {_MOST_HOURS}h, got {text!r:.60}; without it the task's own "
            "schedule is taken"
        )
    return seconds


def fit(
    grid: Grid,
    task: Mapping[str, Any],
    budget: float,
    measure: Callable[[Form], Timing],
) -> Fit:
    """Return the largest form that leaves enough steps, with as many steps as fit.

    The smallest form is measured first. It predicts which form may fit, which is measured next.

    Args:
        grid: The work.
        task: Settings of the task.
        budget: Seconds for everything, the measurements included.
        measure: Measures a form on this machine.

    Raises:
        UserError: If even the smallest form needs more time. The message says how much.
    """
    costs = [cost(form, task, grid.short_side) for form in FORMS]
    longest = _longest(grid, task)
    wanted = wanted_steps(grid, task)
    measured: dict[int, Timing] = {}
    index = 0
    while True:
        measured[index] = measure(FORMS[index])
        spent = sum(timing.spent for timing in measured.values())
        left = budget * _PLANNED - spent
        steps = steps_within(left, measured[index], grid, task)
        below = index - 1
        if steps < wanted:
            if below < 0 or below in measured:
                break
            index = below
            continue
        bigger = [
            i
            for i in range(index + 1, len(FORMS))
            if i not in measured
            and steps_within(left, _scaled(measured[index], costs[i] / costs[index]), grid, task)
            >= wanted
        ]
        if not bigger or spent > budget * _MEASURING:
            break
        index = bigger[-1]
    left = budget * _PLANNED - sum(timing.spent for timing in measured.values())
    enough = [i for i in measured if steps_within(left, measured[i], grid, task) >= wanted]
    best = max(enough) if enough else min(measured)
    steps = min(longest, steps_within(left, measured[best], grid, task))
    if steps < min(longest, _LEAST_STEPS):
        needed = _seconds(min(longest, _LEAST_STEPS), measured[best], grid, task)
        needed = (needed + budget * _PLANNED - left) / _PLANNED
        raise UserError(
            f"--budget is too small: {grid.runs} runs of {min(longest, _LEAST_STEPS)} steps and an "
            f"evaluation on {grid.test_images} images need about {duration(needed)} here, "
            f"{grid.at_a_time} at a time, with the present load of the machine; give --budget "
            f"{math.ceil(needed * _MARGIN / 60)}m or more, fewer --seeds, or a smaller test set"
        )
    return Fit(FORMS[best], steps, _seconds(steps, measured[best], grid, task))


def wanted_steps(grid: Grid, task: Mapping[str, Any]) -> int:
    """Return the steps of each run that a form must leave, unless it is the smallest."""
    return min(_longest(grid, task), max(_WANTED_STEPS, _epochs(grid, _WANTED_EPOCHS)))


def longest_schedule(grid: Grid, task: Mapping[str, Any], form: Form, timing: Timing) -> Fit:
    """Return the task's own schedule, which sees as many images in steps of grid.batch images."""
    steps = _longest(grid, task)
    return Fit(form, steps, _seconds(steps, timing, grid, task))


def steps_within(seconds: float, timing: Timing, grid: Grid, task: Mapping[str, Any]) -> int:
    """Return how many steps each run may have if the grid takes at most `seconds`; 0 if none."""
    low, high = 0, 1 << 31
    while low < high:
        middle = (low + high + 1) // 2
        if _seconds(middle, timing, grid, task) <= seconds:
            low = middle
        else:
            high = middle - 1
    return low


def _seconds(steps: int, timing: Timing, grid: Grid, task: Mapping[str, Any]) -> float:
    """Return the duration of the grid with `steps` steps a run."""
    passes = precise_bn_passes(steps, task)
    run = timing.start + _RECORD_SECONDS + timing.step * (steps + _PASS * passes)
    return grid.rounds * (run + timing.test_image * grid.test_images)


def _scaled(timing: Timing, factor: float) -> Timing:
    return dataclasses.replace(
        timing, step=timing.step * factor, test_image=timing.test_image * factor
    )


def _epochs(grid: Grid, epochs: int) -> int:
    return math.ceil(epochs * grid.train_images / grid.batch)


def _longest(grid: Grid, task: Mapping[str, Any]) -> int:
    """Return the steps of the task's own schedule, which sees as many images in larger steps."""
    images = int(task["SOLVER.MAX_ITER"]) * int(task["SOLVER.IMS_PER_BATCH"])
    return max(1, images // grid.batch)
