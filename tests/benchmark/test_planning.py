"""The plan: the grid, what is done, and costs that can be reckoned by hand."""

import json
import re

import pytest
import yaml
from support.toy_data import SMALL_DETECTOR, make_voc

from moco_d2.benchmark.records.design import Design
from moco_d2.benchmark.runs import run_log
from moco_d2.benchmark.runs.cell_state import note_started
from moco_d2.benchmark.runs.measuring import timing_file
from moco_d2.benchmark.runs.planning import plan, published_costs
from moco_d2.benchmark.runs.suites import load_suite
from moco_d2.benchmark.tables import power
from moco_d2.config.load import task_configs
from moco_d2.errors import UserError
from moco_d2.transfer.timing import measure, parser


def lines_of(text):
    return {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("voc_")}


def test_published_costs(tmp_path):
    """0.537 s x 24000 = 3.58 h on 8 GPUs; 20 of them."""
    text = plan("table_2b", folder=tmp_path)
    assert "20 runs" in text and "0 done, 0 begun, 20 to start" in text
    assert "0.537 s an iteration on 8 V100" in text
    assert "a run 3 h 35 min, 28.6 GPU-hours; all, one after another, 2 d 23 h, 573 GPU" in text
    assert "frozen BatchNorm" in text
    assert not list(tmp_path.iterdir())


def test_published_tasks_exist_and_others_are_named_as_unknown(tmp_path):
    tasks = {task.stem for task, _ in task_configs().values()}
    assert published_costs()["tasks"].keys() <= tasks
    assert "no published or measured cost" in plan("table_6_densepose", folder=tmp_path)


def test_another_step_has_no_published_cost(tmp_path):
    """A shorter run has the step of the paper's, a smaller image has not."""
    content = {"tasks": ["voc_C4"], "initializations": ["random"]}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**content, "overrides": {"SOLVER.MAX_ITER": 12000}}))
    assert "a run 1 h 47 min, 14.3 GPU-hours" in plan(file, folder=tmp_path)
    file.write_text(yaml.safe_dump({**content, "overrides": {"INPUT.MIN_SIZE_TRAIN": [96]}}))
    assert "no published or measured cost" in plan(file, folder=tmp_path)


def test_what_is_done_and_what_it_took(tmp_path, make_content):
    cells = {cell.name: cell for cell in load_suite("table_2b").cells}
    done, begun = cells["voc_C4/moco/seed1"], cells["voc_C4/random/seed3"]
    note_started(begun, tmp_path, processes=1, completed=0)
    note_started(done, tmp_path, processes=1, completed=1)
    content = make_content()
    (tmp_path / done.name / "record.json").write_text(json.dumps(content))
    run_log.log_event(tmp_path, "started", done.name, command=0, pid=1)
    run_log.log_event(tmp_path, "ended", done.name, command=0, pid=1, exit_code=0, seconds=7200)
    text = plan("table_2b", folder=tmp_path, gpus_per_run=0)
    assert "1 done, 1 begun, 18 to start" in text
    assert lines_of(text)["moco"][2:] == ["done", "-", "-", "-", "-"]
    assert lines_of(text)["random"][2:] == ["-", "-", "begun", "-", "-"]
    assert "1 finished run(s): a run 2 h 00 min; all" in text


def small_suite(tmp_path, **overrides):
    """A suite of the real detector on tiny images."""
    root = make_voc(tmp_path / "VOC2007")
    data = {
        "DATASETS.TRAIN": f"('voc:{root}:trainval',)",
        "DATASETS.TEST": f"('voc:{root}:test',)",
    }
    small = dict(zip(SMALL_DETECTOR[::2], SMALL_DETECTOR[1::2], strict=True))
    content = {"tasks": ["voc_C4"], "initializations": ["moco"]}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**content, "overrides": {**small, **data, **overrides}}))
    return file


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"SOLVER.MAXITER": 10}, "unknown config key SOLVER.MAXITER; did you mean"),
        ({"MOCO.ACCUMULATION": 3}, "MOCO.ACCUM"),
    ],
)
def test_what_no_run_would_accept_is_not_planned(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        plan(small_suite(tmp_path, **overrides), folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_steps_of_the_trainer_are_timed(tmp_path):
    file, folder = small_suite(tmp_path), tmp_path / "out"
    ((_, words),) = load_suite(file).cells[0].commands
    timing = timing_file(folder, "voc_C4", 0)
    words = ["--out", str(timing), *(word for word in words if word != "--resume")]
    measure(parser().parse_args(words))
    found = json.loads(timing.read_text())
    assert found["seconds_per_iteration"] > 0 and found["steps"] > 0
    assert (found["iterations"], found["images_per_batch"], found["world_size"]) == (2, 2, 1)
    assert found["seconds_per_test_image"] > 0 and found["start_seconds"] > 0
    assert (found["train_images"], found["test_images"]) == (6, 6)
    text = plan(file, folder=folder, gpus_per_run=0)
    assert f"{found['seconds_per_iteration']:.3g} s an iteration on {found['hardware']}" in text


def test_a_task_that_cannot_be_timed_says_why(tmp_path):
    absent = f"('voc:{tmp_path}/absent:trainval',)"
    file = small_suite(tmp_path, **{"DATASETS.TRAIN": absent})
    text = plan(file, folder=tmp_path / "out", gpus_per_run=0, measure=True)
    assert re.search(rf"not measured: .*{tmp_path}/absent", text)


def test_a_plan_says_how_many_seeds_a_wanted_difference_needs():
    found = plan("table_2b", find=0.5)
    assert re.search(r"needs (\d+) seeds at a spread of 0\.2 AP \(80% of the time", found)
    comparisons, seeds = 2, int(re.search(r"needs (\d+) seeds", found)[1])
    rows = len({cell.initialization for cell in load_suite("table_2b").cells})
    least = [
        power.detectable(number, rows, comparisons, declared=comparisons)
        for number in (seeds - 1, seeds)
    ]
    assert least[0] > 0.5 / 0.2 >= least[1]
    assert "needs" not in plan("table_2b")
    more = int(re.search(r"needs (\d+) seeds", plan("table_2b", find=0.5, spread=0.3))[1])
    assert more > seeds
    assert "needs more than 50 seeds" in plan("table_2b", find=0.01)
    assert "No spread between seeds is published" in plan("table_5a", find=0.5)


def test_no_number_of_seeds_is_said_where_no_two_rows_are_compared():
    design = Design(comparisons=(("moco", "absent"),))
    said = power.sentence("voc_C4", ["moco", "random"], 5, 1, design)
    assert said == power.seeds_sentence(["moco", "random"], 1, design, 0.5, 0.2)
    assert said.startswith("No two rows are compared")


@pytest.mark.parametrize("wrong", [{"find": 0.0}, {"find": 1.0, "spread": float("nan")}])
def test_what_no_plan_can_find(wrong):
    with pytest.raises(UserError, match="must be above 0 and at most 100"):
        plan("table_2b", **wrong)
