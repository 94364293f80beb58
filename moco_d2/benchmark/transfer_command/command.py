"""The job of tools/transfer.py: convert, fit to the budget, write the suite, run it, answer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from moco_d2.benchmark.rendering import render
from moco_d2.benchmark.report.page import write_page
from moco_d2.benchmark.runs.children import in_child
from moco_d2.benchmark.runs.display import duration
from moco_d2.benchmark.runs.execution import TOOLS, Place
from moco_d2.benchmark.runs.places import make_places
from moco_d2.benchmark.runs.runner import run
from moco_d2.benchmark.tables import power
from moco_d2.benchmark.transfer_command.budget import Fit, Grid, Timing, fit, longest_schedule
from moco_d2.benchmark.transfer_command.data import Facts, dataset_name, read_facts
from moco_d2.benchmark.transfer_command.measuring import measure_form
from moco_d2.benchmark.transfer_command.sizes import (
    FORMS,
    Form,
    form_settings,
    schedule_settings,
)
from moco_d2.benchmark.transfer_command.weights import (
    RANDOM_ROW,
    SUPERVISED_ROW,
    Row,
    convert_row,
    network_settings,
    row_names,
    supervised_source,
)
from moco_d2.config.load import config_root
from moco_d2.config.plain import flatten, to_plain
from moco_d2.errors import UserError, closest
from moco_d2.files import read_plain_json, sha256, write_json, write_text

_SUITE, _STATE = "transfer.yaml", "transfer.json"
_INITIALIZATIONS = "initializations"  # folder of the files that name the rows
NO_SUPERVISED = "none"
_MOST_BYTES = 1 << 20  # of the state
_MOST_SEEDS = 100
# Limits of the steps, and of the test images, of one measurement.
_MEASURE_SECONDS, _LEAST_MEASURE_SECONDS, _MEASURE_PART = 60.0, 5.0, 0.02
_ANY_STEPS = 100  # the speed of a step does not depend on the length of the schedule
_CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"
_KEYPOINTS = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"


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
        supervised: Checkpoint of the supervised row; None for torchvision's weights of the same
            network, NO_SUPERVISED for no such row.
    """

    checkpoints: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    task: str = "voc_C4"
    seeds: int = 5
    budget: float | None = None
    gpus_per_run: int = 1
    supervised: str | None = None


def answer(question: Question, folder: Path, *, plan_only: bool = False) -> int:
    """Answer the question in `folder`, and print the answer.

    The same call continues after a kill, and changes nothing once the answer is there.

    Args:
        question: The question.
        folder: Output directory: transfer.yaml (the suite), its runs, answer.md and report.html.
        plan_only: Whether to stop before the first run.

    Returns:
        The exit code of the runs; see runs.runner.run.

    Raises:
        UserError: If the question cannot be answered. The message says why.
    """
    folder = folder.absolute()
    task = _task_settings(question.task)
    if not 0 < question.seeds <= _MOST_SEEDS:
        raise UserError(f"--seeds must be from 1 to {_MOST_SEEDS}, got {question.seeds}")
    asked = _asked(question)
    state = _read_state(folder / _STATE)
    if state is not None and state["asked"] != asked:
        different = next(k for k in asked if state["asked"].get(k) != asked[k])
        raise UserError(
            f"{folder} holds the answer to another question ({different} was "
            f"{state['asked'].get(different)!r:.200}, and is {asked[different]!r:.200}); choose "
            "another --folder"
        )
    if state is None:
        lines = _prepare(question, asked, task, folder)
    else:
        lines = [str(line) for line in state["lines"]]
    print("\n".join(lines), flush=True)
    if plan_only:
        return 0
    code = run(folder / _SUITE, folder=folder, gpus_per_run=question.gpus_per_run)
    if code:
        print("there is no answer yet: see the failed runs above; the same command continues")
        return code
    print(_report(folder, lines))
    return 0


# ---- before the runs -----------------------------------------------------------------------------


def _prepare(
    question: Question, asked: dict[str, Any], task: dict[str, Any], folder: Path
) -> list[str]:
    """Convert, measure, and write the suite and the state; return the plan in words."""
    train = tuple(dataset_name(data, "train") for data in question.train)
    test = tuple(dataset_name(data, "test") for data in question.test)
    facts: Facts = in_child({"train_net.py"}, read_facts, train, test)
    rows, missing = _convert(question, folder)
    shared = {
        **network_settings(rows),
        "DATASETS.TRAIN": repr(train),
        "DATASETS.TEST": repr(test),
        _CLASSES: facts.classes,
    }
    if task["MODEL.KEYPOINT_ON"] and facts.keypoints:
        shared[_KEYPOINTS] = facts.keypoints
    runs = (len(rows) + 1) * question.seeds
    places = make_places(question.gpus_per_run, None, runs=runs, tools=TOOLS)
    cpu = not places[0].devices
    if cpu:
        shared["DATALOADER.NUM_WORKERS"] = 0
    grid = Grid(
        runs,
        len(places),
        facts.images,
        facts.test_images,
        facts.short_side,
        int(form_settings(FORMS[-1], task, facts.short_side, cpu=cpu)["SOLVER.IMS_PER_BATCH"]),
    )
    fitted = _fit(question, grid, task, shared, places)
    settings = {
        **shared,
        **form_settings(fitted.form, task, facts.short_side, cpu=cpu),
        **schedule_settings(fitted.steps, task),
    }
    _write_suite(question, rows, settings, folder)
    lines = list(_plan(question, grid, fitted, {**task, **settings}, rows, folder))
    if missing:
        lines.append(missing)
    write_json(folder / _STATE, {"asked": asked, "lines": lines})
    return lines


def _task_settings(name: str) -> dict[str, Any]:
    """Return all settings of a task.

    Raises:
        UserError: If there is no such task, or it has no boxes.
    """
    known = {path.stem for path in (config_root() / "task").glob("*.yaml")}
    if name not in known:
        hint = closest(name, known) or f"there are {', '.join(sorted(known))}"
        raise UserError(f"--task {name!r:.100} is unknown; {hint}")
    from moco_d2.transfer.schedule import reference_config

    cfg = reference_config(name)
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" or cfg.MODEL.get("DENSEPOSE_ON"):
        raise UserError(
            f"--task {name} has no boxes, masks or keypoints alone, and is not scaled to a budget; "
            "write a suite for it (docs/benchmark.md)"
        )
    return flatten(to_plain(cfg))


def _asked(question: Question) -> dict[str, Any]:
    """Return the question in the form of the state, with the hashes of the checkpoints' files."""
    sources = [*question.checkpoints]
    if question.supervised not in (None, NO_SUPERVISED):
        sources.append(question.supervised)
    hashes = [sha256(source) if Path(source).is_file() else source for source in sources]
    content = {field.name: getattr(question, field.name) for field in dataclasses.fields(question)}
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in content.items()}
    return {**plain, "sha256": hashes}


def _read_state(file: Path) -> dict[str, Any] | None:
    """Return the state of an earlier call; None if there is none.

    Raises:
        UserError: If it is damaged.
    """
    if not file.exists():
        return None
    try:
        state = read_plain_json(file, _MOST_BYTES)
        if isinstance(state["asked"], dict) and isinstance(state["lines"], list):
            return state
        problem = "it is no state of tools/transfer.py"
    except (OSError, ValueError, LookupError, TypeError) as error:
        problem = str(error)
    raise UserError(f"{file} is damaged ({problem}); remove it, and the command starts again")


def _convert(question: Question, folder: Path) -> tuple[list[Row], str]:
    """Return the converted rows, the supervised one first, and a sentence if it is missing."""
    names = row_names(question.checkpoints)
    rows = []
    for name, checkpoint in zip(names, question.checkpoints, strict=True):
        print(f"converting {checkpoint}", flush=True)
        rows.append(convert_row(name, checkpoint, folder))
    if question.supervised == NO_SUPERVISED:
        return rows, "There is no supervised row, because of --supervised none."
    source = question.supervised or supervised_source(rows[0].report)
    if source is None:
        return rows, (
            "There is no supervised row, because torchvision has no weights of this network; give "
            "yours with --supervised."
        )
    print(f"converting {source}", flush=True)
    try:
        supervised = convert_row(SUPERVISED_ROW, source, folder)
    except UserError as error:
        if question.supervised is None:
            raise UserError(
                f"{error}; or give your own supervised weights with --supervised FILE, or none "
                f"with --supervised {NO_SUPERVISED}"
            ) from error
        raise
    return [supervised, *rows], ""


def _fit(
    question: Question,
    grid: Grid,
    task: dict[str, Any],
    shared: dict[str, Any],
    places: Sequence[Place],
) -> Fit:
    config = f"{question.task}_{RANDOM_ROW}.yaml"
    cpu = not places[0].devices
    limit = _MEASURE_SECONDS
    if question.budget is not None:
        limit = min(limit, max(_LEAST_MEASURE_SECONDS, question.budget * _MEASURE_PART))

    def measure(form: Form) -> Timing:
        print(f"measuring the form {form.name!r}, {len(places)} run(s) at a time", flush=True)
        settings = {
            **shared,
            **form_settings(form, task, grid.short_side, cpu=cpu),
            **schedule_settings(_ANY_STEPS, task),
        }
        return measure_form(config, settings, places, limit)

    if question.budget is None:
        return longest_schedule(grid, task, FORMS[-1], measure(FORMS[-1]))
    return fit(grid, task, question.budget, measure)


def _write_suite(
    question: Question, rows: Sequence[Row], settings: dict[str, Any], folder: Path
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
    suite = {
        "title": f"Transfer of {', '.join(row.name for row in rows)} to {question.task}",
        "tasks": [question.task],
        "initializations": initializations,
        "seeds": list(range(1, question.seeds + 1)),
        "overrides": settings,
    }
    write_text(folder / _SUITE, yaml.safe_dump(suite, sort_keys=False, default_flow_style=None))


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
    metrics = 1 + bool(settings["MODEL.MASK_ON"]) + bool(settings["MODEL.KEYPOINT_ON"])
    budget = "" if question.budget is None else f" of the budget of {duration(question.budget)}"
    suite = folder / _SUITE
    return [
        f"Task {question.task}: {grid.train_images} training images, {grid.test_images} test "
        f"images, {settings[_CLASSES]} classes.",
        f"Rows {', '.join(names)} ({sources}), {question.seeds} seeds: {grid.runs} runs, "
        f"{grid.at_a_time} at a time, all with the same settings.",
        f"Form {fitted.form.name!r}: short side {settings['INPUT.MIN_SIZE_TEST']} px, "
        f"{settings['MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE']} proposals per training image, "
        f"{settings['MODEL.RPN.POST_NMS_TOPK_TEST']} per test image.",
        f"Schedule: {fitted.steps} steps of {grid.batch} images ({epochs:.1f} epochs), learning "
        f"rate {settings['SOLVER.BASE_LR']:g} after {settings['SOLVER.WARMUP_ITERS']} steps of "
        f"warm-up, lowered at {', '.join(map(str, settings['SOLVER.STEPS'])) or 'no step'}.",
        f"Time: about {duration(fitted.seconds)}{budget}.",
        power.sentence(question.task, len(names), question.seeds, metrics),
        f"Suite: {suite}; edit it and go on with tools/benchmark.py run {suite} --folder {folder}",
    ]


# ---- after the runs ------------------------------------------------------------------------------


def _report(folder: Path, lines: Sequence[str]) -> str:
    """Write answer.md, the tables and report.html, and return the answer with its table."""
    from moco_d2.benchmark.records.results import read_records
    from moco_d2.benchmark.tables.answer import answers

    records = read_records([folder])
    table = render(records, "markdown")
    text = "\n\n".join([*answers(records), table.rstrip()])
    settings = "\n".join(f"- {line}" for line in lines)
    write_text(folder / "answer.md", f"# Answer\n\n{text}\n\n## Settings\n\n{settings}\n")
    write_text(folder / "table.csv", render(records, "csv"))
    write_text(folder / "table.tex", render(records, "latex"))
    page = folder / "report.html"
    write_page([folder], page)
    return f"\n{text}\n\nThe report is {page}"
