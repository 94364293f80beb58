"""A learning rate for each row of a suite, chosen by one rule."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from support.fake_suite import cell as fake_cell
from support.fake_suite import run_cells
from support.toy_data import make_coco, make_voc

from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.runs import cell_state
from moco_d2.benchmark.runs.cell_state import placed
from moco_d2.benchmark.runs.children import in_child
from moco_d2.benchmark.runs.config_checks import check_configs
from moco_d2.benchmark.runs.held_out_parts import DRAWN as PARTS
from moco_d2.benchmark.runs.held_out_parts import draw_parts
from moco_d2.benchmark.runs.input_checks import _files, check_inputs, check_parts
from moco_d2.benchmark.runs.runner import run as run_suite
from moco_d2.benchmark.runs.suites import load_suite
from moco_d2.benchmark.runs.trials import best_rate, has_diverged, is_trial
from moco_d2.benchmark.runs.tuning import datasets
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.config.plain import matched_sha256
from moco_d2.errors import UserError

TUNE = {
    "learning_rates": [0.01, 0.02, 0.04],
    "train": {"voc_C4": ["voc_2007_train", "voc_2012_train"]},
    "test": {"voc_C4": "voc_2007_val"},
}


DRAWN = {"learning_rates": [0.01, 0.02], "held_out": 0.3}


def suite_of(folder, tune=TUNE, **more):
    file = folder / "own.yaml"
    content = {"tasks": ["voc_C4"], "initializations": ["random", "moco"], "seeds": [1, 2]}
    file.write_text(yaml.safe_dump({**content, "tune": tune, **more}))
    return load_suite(file)


def write_trial(folder, cell, ap, make_content, metric="bbox"):
    """The record of a trial that has ended."""
    record = make_content(
        task=cell.task,
        initialization=cell.initialization,
        seed=cell.seed,
        metrics={metric: {"AP": ap}},
        base_lr=float(cell.settings["SOLVER.BASE_LR"]),
    )
    record["config"]["resolved"]["MOCO"] = {"TUNED": "trial"}
    (folder / cell.name).mkdir(parents=True)
    (folder / cell.name / "record.json").write_text(json.dumps(record))


def test_trials_come_before_the_runs_that_need_them(tmp_path):
    suite = suite_of(tmp_path)
    trials = [cell for cell in suite.cells if is_trial(cell)]
    runs = [cell for cell in suite.cells if not is_trial(cell)]
    assert len(trials) == 6 and len(runs) == 4
    assert {cell.seed for cell in trials} == {3}  # none of the grid's
    assert trials[1].name == "voc_C4/random/tuning/lr0.02"
    words = trials[1].commands[0][1]
    assert words[words.index("SOLVER.BASE_LR") + 1] == "0.02"
    assert words[words.index("DATASETS.TEST") + 1] == "('voc_2007_val',)"
    for run in runs:
        assert run.needs == tuple(
            cell.name for cell in trials if cell.initialization == run.initialization
        )
        assert "DATASETS.TEST" not in run.commands[0][1]
    check_configs(suite.cells, tmp_path / "out", planned=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rates": [0.02]}, "learning_rates of tune must be a list of at least two"),
        ({"learning_rates": [0.02, -1]}, "different numbers above 0"),
        ({"learning_rates": [10**400, 1]}, "at most 1e\\+06"),
        ({"rates": [1]}, "unknown key 'rates'"),
        ({"seed": 2}, "the seed 2 of tune is also in seeds"),
        ({"train": {}}, "train of tune must name datasets of the task voc_C4"),
        ({"test": {"voc_C4": "voc_2007_test"}}, "voc_2007_test of tune is the test set of voc_C4"),
        ({"test": {"voc_C4": ["a", "b"]}}, "exactly one in test"),
        ({"held_out": 0.2}, "tune has train and held_out; remove one of the two"),
    ],
)
def test_a_wrong_rule_is_one_sentence(tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        suite_of(tmp_path, {**TUNE, **wrong})


@pytest.mark.parametrize("fraction", [0, 1, 1.0, -0.1, "a fifth", float("nan")])
def test_what_cannot_be_held_out_is_one_sentence(tmp_path, fraction):
    with pytest.raises(UserError, match="held_out of tune must be a fraction between 0 and 1"):
        suite_of(tmp_path, {**DRAWN, "held_out": fraction})


def test_only_layouts_that_can_be_divided_are_drawn(tmp_path):
    data = {"DATASETS.TRAIN": "('lvis_v1_train',)"}
    with pytest.raises(UserError, match=r"divides datasets of VOC and COCO, not 'lvis_v1_train'; "):
        suite_of(tmp_path, DRAWN, overrides=data)


def test_a_rate_that_the_suite_sets_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR must not be an override"):
        suite_of(tmp_path, overrides={"SOLVER.BASE_LR": 0.1})


def test_the_best_trial_decides(tmp_path, make_content):
    suite = suite_of(tmp_path)
    out = tmp_path / "out"
    trials = [cell for cell in suite.cells if is_trial(cell) and cell.initialization == "moco"]
    run = suite.cells[-1]
    for cell, ap in zip(trials, (50.0, 52.0, 52.0), strict=True):
        with pytest.raises(UserError, match="cannot be read"):
            best_rate(run, out)
        write_trial(out, cell, ap, make_content)
    assert best_rate(run, out) == "0.02"  # of equal ones the smallest
    words = run.commands[0][1]
    placed = [cell_state.placed(word, run, out) for word in words]
    assert placed[placed.index("SOLVER.BASE_LR") + 1] == "0.02"
    assert read_records([out], required=False) == []  # no table shows trials


def test_the_declared_primary_metric_decides(tmp_path, make_content):
    suite = suite_of(tmp_path, primary=["segm/AP"])
    out = tmp_path / "out"
    trials = [cell for cell in suite.cells if is_trial(cell) and cell.initialization == "moco"]
    for cell in trials:
        write_trial(out, cell, 50.0, make_content)
    with pytest.raises(UserError, match=r"no trial of voc_C4/moco has segm/AP"):
        best_rate(suite.cells[-1], out)


def test_each_task_is_tuned_by_its_own_of_the_primary_metrics(tmp_path, make_content):
    """A suite of boxes and of semantic segmentation declares a metric of each."""
    suite = suite_of(tmp_path, primary=["sem_seg/mIoU", "bbox/AP"])
    out = tmp_path / "out"
    trials = [cell for cell in suite.cells if is_trial(cell) and cell.initialization == "moco"]
    for cell, ap in zip(trials, (50.0, 51.0, 52.0), strict=True):
        write_trial(out, cell, ap, make_content)
    assert best_rate(suite.cells[-1], out) == "0.04"


def test_a_trial_that_diverges_is_done_and_not_chosen(tmp_path, make_content):
    suite = suite_of(tmp_path)
    out = tmp_path / "out"
    trials = [cell for cell in suite.cells if is_trial(cell) and cell.initialization == "moco"]
    for cell in trials[:2]:
        write_trial(out, cell, 50.0, make_content)
    cell_state.note_started(trials[2], out, processes=1, completed=0)
    assert cell_state.examine(trials[2], out, processes=1).status == "partial"
    log = out / trials[2].name / "output.log"
    log.write_text("error: the loss is no longer finite at iteration 3 (loss_cls); start again\n")
    assert cell_state.examine(trials[2], out, processes=1).status == "done"
    assert best_rate(suite.cells[-1], out) == "0.01"
    run = dataclasses.replace(suite.cells[-1], name=trials[2].name)  # a run of the grid is not done
    assert not has_diverged(run, out)


def test_rows_with_one_rule_are_matched_and_others_are_not(make_content, write):
    for name, rule, lr in (
        ("supervised", "AP", 0.02),
        ("moco", "AP", 0.04),
        ("moco_v2", "AP50", 0.02),
        ("random", "", 0.02),
    ):
        record = make_content(initialization=name, base_lr=lr)
        resolved = record["config"]["resolved"]
        resolved["MOCO"] = {"TUNED": rule}
        record["config"]["matched_sha256"] = matched_sha256(resolved)
        write(record)
    (table,) = measured_tables(read_records([write.folder]))
    assert {row.label: row.marks for row in table.rows} == {
        "random": ("mismatched",),
        "supervised": (),
        "moco": (),
        "moco_v2": ("mismatched",),
    }
    assert "each row has the learning rate that is best by AP: supervised 0.02, moco 0.04" in str(
        table.notes
    )


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("first", "rest", None),
        ("first", "trainval", r"^tune: \d+ images of .*first are also in .*trainval; name two par"),
        ("test", "rest", r"^tune: 6 images of .* are not training images of voc_C4; name parts of"),
    ],
)
def test_trials_use_two_parts_of_the_training_images(tmp_path, train, test, message):
    root = make_voc(tmp_path / "voc")
    lists = root / "ImageSets" / "Main"
    names = (lists / "trainval.txt").read_text().split()
    (lists / "first.txt").write_text("\n".join(names[:3]))
    (lists / "rest.txt").write_text("\n".join(names[3:]))
    data = {"DATASETS.TRAIN": f"('voc:{root}:trainval',)", "DATASETS.TEST": f"('voc:{root}:test',)"}
    parts = {"train": {"voc_C4": [f"voc:{root}:{train}"]}, "test": {"voc_C4": f"voc:{root}:{test}"}}
    suite = suite_of(tmp_path, {**TUNE, **parts}, overrides=data)
    if message is None:
        check_parts(suite.cells, tmp_path)
        return
    with pytest.raises(UserError, match=message):
        check_parts(suite.cells, tmp_path)


def toy_set(root, kind):
    """The name of a training set of ten images."""
    if kind == "voc":
        return f"voc:{make_voc(root, images=10)}:trainval"
    make_coco(root, images=10)
    return f"coco:{root}/train.json:{root}/images"


def files_of(names, cell, folder):
    """The images of datasets, read in a process of its own."""
    return in_child({"train_net.py"}, _files, [placed(name, cell, folder) for name in names])


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_the_parts_are_drawn_by_a_seed_from_the_training_set(tmp_path, kind):
    first, second = toy_set(tmp_path / "first", kind), toy_set(tmp_path / "second", kind)
    data = {"DATASETS.TRAIN": str((first, second)), "DATASETS.TEST": "('voc_2007_test',)"}
    held = {}
    for i, seed in enumerate((7, 7, 8)):
        out = tmp_path / f"out{i}"
        suite = suite_of(tmp_path, {**DRAWN, "seed": seed}, overrides=data)
        trial, run = suite.cells[0], suite.cells[-1]
        draw_parts(suite.cells, out)
        check_parts(suite.cells, out)  # they are disjoint parts of the training images
        train, test = (files_of(datasets(trial, part), trial, out) for part in ("TRAIN", "TEST"))
        assert len(test) == 3 and train | test == files_of((first, second), trial, out)
        assert all(Path(file).is_relative_to(tmp_path / "first") for file in test)
        assert held.setdefault(seed, test) == test
        assert (
            f" on 0.3 of {first} after training on the rest + {second} (seed {seed}), of"
            in (run.settings["MOCO.TUNED"])
        )
        assert datasets(run, "TRAIN") == (first, second)
    assert held[7] != held[8]


def test_the_runner_draws_the_parts_before_the_trials(tmp_path):
    settings = {PARTS: (toy_set(tmp_path / "data", "coco"), 0.2, 7)}
    assert run_cells(tmp_path / "out", fake_cell("trial", "steps=1", settings=settings)) == 0
    part = json.loads((tmp_path / "out/drawn/task/held_out.json").read_text())
    assert len(part["images"]) == len(part["annotations"]) == 2
    other = fake_cell("other", "steps=1", settings={PARTS: (settings[PARTS][0], 0.2, 8)})
    with pytest.raises(UserError, match=r"kept\.json was drawn from other images, or by another "):
        run_cells(tmp_path / "out", other)
    (tmp_path / "out/drawn/task/kept.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"kept\.json was drawn from other images"):
        run_cells(tmp_path / "out", fake_cell("third", "steps=1", settings=settings))
    one = {key: part[key][:1] for key in ("images", "annotations")}
    (tmp_path / "data/train.json").write_text(json.dumps({**part, **one}))
    with pytest.raises(UserError, match=r"train\.json:.* has 1 image\(s\), too few to divide"):
        run_cells(tmp_path / "out", fake_cell("other", "steps=1", settings=settings))


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_a_part_without_any_object_is_refused_before_it_is_written(tmp_path, kind):
    """Else the evaluation of a trial would say that the data of the user are wrong."""
    name = toy_set(tmp_path / "data", kind)
    if kind == "voc":
        _, *others = (tmp_path / "data/ImageSets/Main/trainval.txt").read_text().split()
        for image in others:
            file = tmp_path / f"data/Annotations/{image}.xml"
            text = re.sub(r"<difficult>.*</difficult>", "", file.read_text())
            file.write_text(text.replace("<object>", "<object><difficult>1</difficult>"))
    else:
        file = tmp_path / "data/train.json"
        content = json.loads(file.read_text())
        first = content["images"][0]["id"]
        for annotation in content["annotations"]:
            annotation["iscrowd"] = int(annotation["image_id"] != first)
        file.write_text(json.dumps(content))
    trial = fake_cell("trial", "steps=1", settings={PARTS: (name, 0.5, 7)})
    with pytest.raises(UserError, match=r"no object that counts, as 1 of its 10 images have some"):
        draw_parts([trial], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_may_be_drawn_again_until_a_run_has_begun(tmp_path):
    """Two tasks are drawn together or not at all, and a refused start leaves nothing that binds."""
    first, second = (toy_set(tmp_path / name, "coco") for name in ("first", "second"))
    cells = [
        fake_cell(task, "steps=1", settings={PARTS: (name, 0.3, 7)})
        for task, name in (("a", first), ("b", second))
    ]
    cells = [dataclasses.replace(cell, task=cell.name) for cell in cells]
    whole = (tmp_path / "second/train.json").read_text()
    (tmp_path / "second/train.json").write_text(json.dumps({**json.loads(whole), "images": []}))
    with pytest.raises(UserError):
        draw_parts(cells, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "second/train.json").write_text(whole)
    draw_parts(cells, tmp_path / "out")
    again = [
        dataclasses.replace(cell, settings={PARTS: (*cell.settings[PARTS][:2], 8)})
        for cell in cells
    ]
    draw_parts(again, tmp_path / "out")
    with pytest.raises(UserError, match="was drawn from other images, or by another fraction or"):
        draw_parts(cells, tmp_path / "out", begun=True)


def test_the_links_of_drawn_parts_follow_data_that_moved(tmp_path):
    name = toy_set(tmp_path / "old", "coco")
    trial = fake_cell("trial", "steps=1", settings={PARTS: (name, 0.3, 7)})
    draw_parts([trial], tmp_path / "out")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = fake_cell("trial", "steps=1", settings={PARTS: (name.replace("/old", "/new"), 0.3, 7)})
    draw_parts([moved], tmp_path / "out", begun=True)
    assert (tmp_path / "out/drawn/task/images").resolve() == (tmp_path / "new/images").resolve()


def test_a_submitted_suite_is_checked_before_its_jobs_are_queued(tmp_path):
    """A test set that is named as a part, by another path, would tune the rate on the test set."""
    root = make_voc(tmp_path / "voc")
    (tmp_path / "alias").symlink_to(root)
    data = {
        "DATASETS.TRAIN": f"('voc:{root}:trainval',)",
        "DATASETS.TEST": f"('voc:{root}:test',)",
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    }
    parts = {
        "train": {"voc_C4": [f"voc:{root}:trainval"]},
        "test": {"voc_C4": f"voc:{tmp_path}/alias:test"},
    }
    suite = suite_of(tmp_path, {**TUNE, **parts}, overrides=data, initializations=["random"])
    with pytest.raises(UserError, match=r"are not training images of voc_C4"):
        run_suite(suite, folder=tmp_path / "out", submit=["cluster=local"])
    assert not list((tmp_path / "out").rglob("cell.json"))


def test_the_runs_are_checked_before_their_trials_start(tmp_path):
    """The trials would take hours before the runs are refused."""
    name = toy_set(tmp_path / "data", "voc")
    data = {"DATASETS.TRAIN": str((name,)), "DATASETS.TEST": "('voc:nowhere:test',)"}
    suite = suite_of(tmp_path, DRAWN, overrides=data, initializations=["random"])
    draw_parts(suite.cells, tmp_path / "out")
    with pytest.raises(UserError, match=r"voc_C4/random/seed1.*nowhere"):
        check_inputs(suite.cells, tmp_path / "out", 1)
