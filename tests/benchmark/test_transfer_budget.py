"""What a budget of time allows, for machines of which every cost is known."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from support.paths import TOOLS

from moco_d2.benchmark.statistics import Blocks
from moco_d2.benchmark.tables import power
from moco_d2.benchmark.tables.comparison import claimed_pairs
from moco_d2.benchmark.transfer_command.budget import Grid, Timing, fit, parse_budget
from moco_d2.benchmark.transfer_command.forms import (
    FORMS,
    cost,
    form_settings,
    schedule_settings,
    side_of,
)
from moco_d2.benchmark.transfer_command.question import task_settings
from moco_d2.errors import UserError

GRID = Grid(runs=15, at_a_time=2, train_images=200, test_images=100, short_side=375, batch=4)


@pytest.fixture(scope="module")
def task():
    return task_settings("voc_C4")


class Machine:
    """A machine whose step takes `speed` seconds per unit of cost, times an error per form."""

    def __init__(self, task, speed, errors=None):
        self.task, self.speed, self.errors = task, speed, errors or {}
        self.measured = []

    def __call__(self, form):
        self.measured.append(form.name)
        units = cost(form, self.task, GRID.short_side) * self.errors.get(form.name, 1)
        return Timing(step=self.speed * units, test_image=self.speed * units / 12, start=2, spent=5)

    def seconds(self, found, grid=GRID):
        timing = Machine(self.task, self.speed, self.errors)(found.form)
        run = timing.start + timing.step * found.steps + timing.test_image * grid.test_images
        return math.ceil(grid.runs / grid.at_a_time) * run


@pytest.mark.parametrize("speed", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("budget", [1200, 7200, 36000])
def test_a_faster_machine_gets_a_larger_form_and_none_leaves_the_budget(task, speed, budget):
    machine = Machine(task, speed)
    found = fit(GRID, task, budget, machine)
    assert 0.6 * budget * 0.9 < machine.seconds(found) <= budget * 0.9 or found.steps == 96_000
    assert found.steps >= 300  # 6 epochs
    assert len(machine.measured) <= len(FORMS)
    faster = fit(GRID, task, budget, Machine(task, speed / 10))
    assert FORMS.index(faster.form) >= FORMS.index(found.form)


def test_a_wrong_prediction_is_corrected_by_a_measurement(task):
    """The form that the first measurement predicts is 40 times slower than predicted."""
    honest = fit(GRID, task, 3600, Machine(task, 1e-4))
    slow = Machine(task, 1e-4, {honest.form.name: 40})
    found = fit(GRID, task, 3600, slow)
    assert honest.form.name in slow.measured
    assert found.form.name != honest.form.name
    assert slow.seconds(found) <= 3600 * 0.9


def test_a_budget_that_allows_nothing_says_what_it_would_take(task):
    machine = Machine(task, 0.01)
    with pytest.raises(UserError, match=r"15 runs of 60 steps .* need about (.*) here") as refused:
        fit(GRID, task, 600, machine)
    (minutes,) = re.findall(r"give --budget (\d+)m or more, fewer --seeds", str(refused.value))
    assert fit(GRID, task, 60 * int(minutes), Machine(task, 0.01)).steps >= 60
    assert machine.measured == ["tiny"]


def test_a_long_budget_ends_with_the_tasks_own_schedule(task):
    found = fit(GRID, task, 1e8, Machine(task, 1e-6))
    assert found.form.name == "full"
    assert found.steps == 24_000 * 16 // 4  # as many images in smaller steps
    settings = schedule_settings(found.steps, task)
    assert settings["SOLVER.STEPS"] == [72_000, 88_000]
    assert settings["SOLVER.WARMUP_ITERS"] == 100


def test_the_full_form_is_that_of_the_task_and_others_shrink_together(task):
    whole = form_settings(FORMS[-1], task, 375, cpu=False)
    assert whole == {
        "SOLVER.REFERENCE_WORLD_SIZE": 0,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.BASE_LR": 0.02,
    }
    small = form_settings(FORMS[2], task, 375, cpu=True)
    assert small["INPUT.MIN_SIZE_TEST"] == 200 and max(small["INPUT.MIN_SIZE_TRAIN"]) == 200
    assert small["MODEL.ANCHOR_GENERATOR.SIZES"] == [[8, 16, 32, 64, 128]]
    assert small["SOLVER.BASE_LR"] == pytest.approx(0.005)


def test_forms_of_vits_are_squares_of_whole_pairs_of_patches():
    task = task_settings("coco_vitdet_Ti_25ep")
    whole = form_settings(FORMS[-1], task, 480, cpu=False)
    assert whole["SOLVER.BASE_LR"] == pytest.approx(8e-5 / 2)  # a quarter of the batch
    assert "MOCO.VIT.IMAGE_SIZE" not in whole
    small = form_settings(FORMS[2], task, 480, cpu=True)
    assert small["MOCO.VIT.IMAGE_SIZE"] == small["INPUT.MAX_SIZE_TEST"] == 160
    assert small["INPUT.CROP.SIZE"] == [160, 160] and small["MOCO.VIT.WINDOW_SIZE"] == 10
    assert small["MODEL.ANCHOR_GENERATOR.SIZES"] == [[8], [16], [32], [64], [128]]
    assert small["SOLVER.BASE_LR"] == pytest.approx(8e-5 / 4)
    heads = [f"MODEL.ROI_{head}_HEAD.POOLER_RESOLUTION" for head in ("BOX", "MASK")]
    assert [small[key] for key in heads] == [task[key] for key in heads] == [7, 14]
    tiny = form_settings(FORMS[0], task, 480, cpu=True)
    assert [tiny[key] for key in heads] == [4, 8]
    patches_of_32 = {**task, "MOCO.VIT.PATCH_SIZE": 32}
    for form in FORMS:
        assert side_of(form, task, 480) % 32 == 0 and side_of(form, patches_of_32, 480) % 64 == 0
    assert side_of(FORMS[-1], patches_of_32, 480) == 640


def test_small_images_are_not_enlarged_beyond_the_papers_ratio(task):
    assert side_of(FORMS[-1], task, 375) == 800
    assert side_of(FORMS[-1], task, 100) == 214
    assert side_of(FORMS[0], task, 100) == 96  # conv4 of a smaller image would have no positions
    assert side_of(FORMS[0], task, 30) == side_of(FORMS[-1], task, 30) == 64


@pytest.mark.parametrize("text, seconds", [("2h", 7200), ("90m", 5400), ("1h30m", 5400)])
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "2 h", "-1h", "h", "1d", "0h", "2h?", "٢h"])
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match="--budget must be a duration such as 2h"):
        parse_budget(text)


def test_what_is_no_budget_is_refused_before_torch_is_imported():
    code = (
        "import sys, runpy; sys.argv = ['transfer.py', 'x', *'--train a --test b'.split(), "
        f"'--budget', '2hours']\ntry: runpy.run_path({str(TOOLS / 'transfer.py')!r}, "
        "run_name='__main__')\nfinally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == "False\n", result
    assert "--budget must be a duration such as 2h" in result.stderr


def test_a_budget_of_a_century_is_too_long():
    assert parse_budget("100000h") == 3.6e8
    for text in ("1000000h", "9" * 400 + "h"):
        with pytest.raises(UserError, match="--budget must be at most 100000h, got"):
            parse_budget(text)


def test_the_power_is_what_simulated_tables_have():
    """Of differences of the size that is called detectable, 80 % are claimed in tables of four
    rows, with the strictest step of Holm's correction.
    """
    names = ["random", "supervised", "one", "two"]
    size = power.detectable(5, 4, len(claimed_pairs(names)))
    rng = np.random.default_rng(1)
    claimed = []
    for _ in range(600):
        values = rng.normal(0, 1, (4, 5)) + rng.normal(0, 2, 5)
        values[0] += size
        blocks = Blocks(
            {name: dict(enumerate(row)) for name, row in zip(names, values, strict=True)}
        )
        claimed.append(6 * blocks.compare("random", "supervised").p < 0.05)
    assert np.mean(claimed) == pytest.approx(power.POWER, abs=0.05)
    assert power.detectable(2, 3, 3) is None


def test_the_sentence_counts_the_comparisons_of_the_table():
    rows = ["random", "supervised", "mine"]
    text = power.sentence("voc_C4", rows, seeds=5, metrics=1)
    size = power.detectable(5, 3, 3)
    assert f"{size:.1f} standard deviations between seeds" in text and "3 comparison(s)" in text
    assert f"{size * 0.2:.1f} AP at the published spread of 0.2 AP" in text
    assert "6 comparison(s)" in power.sentence("coco_C4_1x", rows, seeds=5, metrics=2)
    assert "published" not in power.sentence("coco_C4_1x", rows, seeds=5, metrics=2)
    assert "no order will be claimed" in power.sentence("voc_C4", rows, seeds=2, metrics=1)
    many = [f"row{i}" for i in range(4)]
    assert "4 comparison(s)" in power.sentence("voc_C4", ["random", *many], seeds=3, metrics=1)
    assert "9 comparison(s)" in power.sentence(
        "voc_C4", ["random", "supervised", *many], seeds=3, metrics=1
    )
    assert "10 comparison(s)" in power.sentence("voc_C4", [*many, "row4"], seeds=3, metrics=1)
