"""Before the runs of tools/transfer.py: convert, fit to the budget, check, write the suite."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from moco_d2.benchmark.runs.children import in_child
from moco_d2.benchmark.runs.display import duration
from moco_d2.benchmark.runs.execution import TOOLS
from moco_d2.benchmark.runs.input_checks import check_inputs
from moco_d2.benchmark.runs.places import make_places
from moco_d2.benchmark.runs.suites import load_suite
from moco_d2.benchmark.tables import power
from moco_d2.benchmark.tables.comparison import planned_metrics
from moco_d2.benchmark.transfer_command.budget import (
    Fit,
    Grid,
    wanted_steps,
)
from moco_d2.benchmark.transfer_command.data import Facts, read_facts
from moco_d2.benchmark.transfer_command.forms import (
    ANY_STEPS,
    FORMS,
    form_settings,
    settings_of,
)
from moco_d2.benchmark.transfer_command.measuring import fitted_to_budget
from moco_d2.benchmark.transfer_command.question import Question, run_task
from moco_d2.benchmark.transfer_command.state import SUITE, write_state
from moco_d2.benchmark.transfer_command.weights import (
    RANDOM_ROW,
    SUPERVISED_ROW,
    Row,
    as_state,
    convert_rows,
    network_settings,
    of_vits,
)
from moco_d2.config.literals import decode
from moco_d2.config.load import config_root
from moco_d2.errors import UserError
from moco_d2.files import write_text

TOOL = "train_net.py"
_INITIALIZATIONS = "initializations"  # folder of the files that name the rows
_AMP = "SOLVER.AMP.ENABLED"
_CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"
_KEYPOINTS = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
_SIGMAS = "TEST.KEYPOINT_OKS_SIGMAS"
_COCO_KEYPOINTS = 17  # whose standard deviations the evaluation knows


def prepare(
    question: Question, asked: dict[str, Any], task: dict[str, Any], folder: Path
) -> list[str]:
    """Convert, measure, and write the suite and the state; return the plan in words."""
    rows, missing = convert_rows(question, task, folder)
    network = network_settings(rows, task)
    task = {**task, **network}
    runs = (len(rows) + 1) * question.seeds
    places = make_places(question.gpus_per_run, None, runs=runs, tools=TOOLS)
    cpu = not places[0].devices
    # What is wrong with the data is said before the measurement, for which it must be right.
    facts, shared = in_child({TOOL}, _examine, question, task, network, rows, cpu)
    grid = Grid(
        runs,
        len(places),
        facts.images,
        facts.test_images,
        facts.short_side,
        int(form_settings(FORMS[-1], task, facts.short_side, cpu=cpu)["SOLVER.IMS_PER_BATCH"]),
    )
    fitted = fitted_to_budget(question, grid, task, shared, places)
    settings = {**shared, **settings_of(fitted.form, fitted.steps, task, facts.short_side, cpu=cpu)}
    # Nothing is kept of a plan whose runs would be refused. No check of data depends on the form.
    _check_suite(question, task, rows, settings, data=False)
    _write_suite(question, task, rows, settings, folder)
    lines = list(_plan(question, grid, fitted, {**task, **settings}, rows, folder))
    if question.budget and fitted.steps < (wanted := wanted_steps(grid, task)):
        lines.append(f"The schedule is short: a budget for {wanted} steps tells more.")
    if missing:
        lines.append(missing)
    write_state(folder, asked, as_state(rows), lines)
    return lines


def _examine(
    question: Question,
    task: dict[str, Any],
    network: dict[str, Any],
    rows: Sequence[Row],
    cpu: bool,
) -> tuple[Facts, dict[str, Any]]:
    """Return the facts of the data, and the settings that do not depend on the form. The data are
    checked. Call it in a process of its own, which reads each dataset once.
    """
    from moco_d2.engine.precision import bfloat16_pays
    from moco_d2.transfer.data.registered import keep_dicts

    keep_dicts()
    facts = read_facts(question.train, question.test)
    check_keypoints(task, facts)
    shared = {
        **network,
        "DATASETS.TRAIN": repr(question.train),
        "DATASETS.TEST": repr(question.test),
        _CLASSES: facts.classes,
    }
    if task["MODEL.KEYPOINT_ON"] and facts.keypoints:
        shared[_KEYPOINTS] = facts.keypoints
    if cpu:
        shared["DATALOADER.NUM_WORKERS"] = 0
        if task[_AMP] and not bfloat16_pays():
            shared[_AMP] = False
    form = FORMS[0 if question.budget else -1]
    settings = {**shared, **settings_of(form, ANY_STEPS, task, facts.short_side, cpu=cpu)}
    _check_suite(question, task, rows, settings, in_this_process=True)
    return facts, shared


def check_keypoints(task: dict[str, Any], facts: Facts) -> None:
    """Check that the evaluation knows the standard deviations of the keypoints.

    Raises:
        UserError: If it does not.
    """
    known = len(decode(str(task[_SIGMAS])) or ()) or _COCO_KEYPOINTS
    if task["MODEL.KEYPOINT_ON"] and facts.keypoints not in (0, known):
        raise UserError(
            f"the data has {facts.keypoints} keypoints, and their evaluation needs {_SIGMAS}, the "
            "standard deviation of each; write a suite with this key (docs/benchmark.md)"
        )


def _check_suite(
    question: Question,
    task: dict[str, Any],
    rows: Sequence[Row],
    settings: dict[str, Any],
    **how: bool,
) -> None:
    """Make the checks of a suite for one of its runs: the rows differ in their weights only, which
    are converted and proven. `how` is for check_inputs.
    """
    with tempfile.TemporaryDirectory(prefix="moco_d2_") as name:
        folder = Path(name)
        _write_suite(question, task, rows, settings, folder)
        suite = load_suite(folder / SUITE)
        for path, content in suite.files.items():
            write_text(folder / path, content)
        check_inputs([suite.cells[-1]], folder, max(1, question.gpus_per_run), **how)


def _write_suite(
    question: Question,
    task: dict[str, Any],
    rows: Sequence[Row],
    settings: dict[str, Any],
    folder: Path,
) -> None:
    initializations: dict[str, dict[str, Any]] = {RANDOM_ROW: {}}
    for row in rows:
        if row.name == SUPERVISED_ROW:
            initializations[SUPERVISED_ROW] = {"MODEL.WEIGHTS": str(row.file)}
            continue
        file = f"{_INITIALIZATIONS}/{row.name}.yaml"
        content = {"MODEL": {"WEIGHTS": str(row.file)}}
        write_text(folder / file, f"# From {Path(row.source).name!a}.\n{yaml.safe_dump(content)}")
        initializations[file] = {}
    name = run_task(question, task)
    own_task = f"tasks/{name}.yaml"
    if name != question.task:
        base = config_root() / "task" / f"{question.task}.yaml"
        own = {"_BASE_": str(base), "MOCO": {"TASK": name}}
        write_text(folder / own_task, yaml.safe_dump(own))
    suite = {
        "title": f"Transfer of {', '.join(row.name for row in rows)} to {question.task}",
        "tasks": [name if name == question.task else own_task],
        "initializations": initializations,
        "seeds": list(range(1, question.seeds + 1)),
        "overrides": settings,
    }
    write_text(folder / SUITE, yaml.safe_dump(suite, sort_keys=False, default_flow_style=None))


def _plan(  # noqa: PLR0917 - the parts of one text
    question: Question,
    grid: Grid,
    fitted: Fit,
    settings: dict[str, Any],
    rows: Sequence[Row],
    folder: Path,
) -> list[str]:
    names = [RANDOM_ROW, *(row.name for row in rows)]
    sources = ", ".join(f"{row.name} = {row.source}" for row in rows)
    epochs = fitted.steps * grid.batch / grid.train_images
    metrics = len(planned_metrics(settings))
    budget = "" if question.budget is None else f" of the budget of {duration(question.budget)}"
    suite = folder / SUITE
    size = "squares of" if of_vits(settings) else "short side"
    falls = f"lowered at {', '.join(map(str, settings['SOLVER.STEPS'])) or 'no step'}"
    if "Cosine" in settings["SOLVER.LR_SCHEDULER_NAME"]:
        falls = "lowered to 0 along a cosine"
    return [
        f"Task {question.task}: {grid.train_images} training images, {grid.test_images} test "
        f"images, {settings[_CLASSES]} classes.",
        f"Rows {', '.join(names)} ({sources}), {question.seeds} seeds: {grid.runs} runs, "
        f"{grid.at_a_time} at a time, all with the same settings.",
        f"Form {fitted.form.name!r}: {size} {settings['INPUT.MIN_SIZE_TEST']} px, "
        f"{settings['MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE']} proposals per training image, "
        f"{settings['MODEL.RPN.POST_NMS_TOPK_TEST']} per test image.",
        f"Schedule: {fitted.steps} steps of {grid.batch} images ({epochs:.1f} epochs), learning "
        f"rate {settings['SOLVER.BASE_LR']:g} after {settings['SOLVER.WARMUP_ITERS']} steps of "
        f"warm-up, {falls}.",
        f"Time: about {duration(fitted.seconds)}{budget}.",
        # A published spread is one of the task's own schedule and data.
        power.sentence("" if question.budget else question.task, names, question.seeds, metrics),
        f"Suite: {suite}; edit it and go on with tools/benchmark.py run {suite} --folder {folder}",
    ]
