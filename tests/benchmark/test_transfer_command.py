"""tools/transfer.py: from checkpoints and data to an answer."""

import dataclasses
import json

import pytest
import torch
import torchvision
from support.toy_data import make_coco, make_voc

from moco_d2.benchmark.records.results import read_records
from moco_d2.benchmark.runs.planning import plan
from moco_d2.benchmark.transfer_command import command
from moco_d2.benchmark.transfer_command.budget import Fit, parse_budget
from moco_d2.benchmark.transfer_command.command import NO_SUPERVISED, Question, answer
from moco_d2.benchmark.transfer_command.data import dataset_name
from moco_d2.benchmark.transfer_command.sizes import FORMS
from moco_d2.benchmark.transfer_command.weights import (
    Row,
    network_settings,
    row_names,
    supervised_source,
)
from moco_d2.errors import UserError

_REPORT = {
    "depth": 50,
    "groups": 1,
    "width_per_group": 64,
    "width_factor": 1,
    "stride_in_1x1": False,
    "preprocessing": {
        "format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
    },
}


# ---- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, purpose, name",
    [
        ("VOC2007", "train", "voc_2007_trainval"),
        ("2007", "test", "voc_2007_test"),
        ("voc_2012", "train", "voc_2012_trainval"),
        ("VOC2012", "test", "voc_2012_val"),  # the annotations of its test images are not public
        ("coco_2017_train", "train", "coco_2017_train"),
        ("voc_2007_trainval", "test", "voc_2007_trainval"),
    ],
)
def test_names_of_datasets(data, purpose, name):
    assert dataset_name(data, purpose) == name


def test_folders_and_files_become_names_that_hold_from_anywhere(tmp_path, monkeypatch):
    make_voc(tmp_path / "VOC2007")
    monkeypatch.chdir(tmp_path)
    assert dataset_name("./VOC2007", "train") == f"voc:{tmp_path}/VOC2007:trainval"
    assert dataset_name("./VOC2007", "test") == f"voc:{tmp_path}/VOC2007:test"
    assert dataset_name("voc:VOC2007:test", "train") == f"voc:{tmp_path}/VOC2007:test"
    assert dataset_name("coco:a.json:b", "train") == f"coco:{tmp_path}/a.json:{tmp_path}/b"


@pytest.mark.parametrize(
    "file, images",
    [
        ("train.json", "."),
        ("train.json", "images"),
        ("annotations/train.json", "images/train"),
        ("annotations/instances_train.json", "train"),
        ("annotations/train.json", "images"),
    ],
)
def test_the_images_of_a_coco_file_are_found_near_it(tmp_path, file, images):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / images).mkdir(parents=True, exist_ok=True)
    (tmp_path / images / "1.jpg").touch()
    (tmp_path / file).write_text(json.dumps({"images": [{"file_name": "1.jpg"}]}))
    name = dataset_name(str(tmp_path / file), "train")
    assert name == f"coco:{tmp_path / file}:{tmp_path / images}"


def test_images_that_are_not_found_and_folders_that_are_no_dataset(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"images": [{"file_name": "1.jpg"}]}))
    with pytest.raises(UserError, match=r"1\.jpg.* is in none of .*write coco:.*a\.json:IMAGES"):
        dataset_name(str(file), "train")
    file.write_text("[]")
    with pytest.raises(UserError, match=r"a\.json is not a COCO instances file"):
        dataset_name(str(file), "train")
    with pytest.raises(UserError, match=r"a folder without ImageSets/Main/trainval\.txt or"):
        dataset_name(str(tmp_path), "train")


# ---- checkpoints ---------------------------------------------------------------------------------


def test_names_of_rows():
    sources = ["a/mine.pth.tar", "b/mine.pth", "moco.pth", "moco://v2_800ep", "x y(1).bin", "..pth"]
    names = ["mine", "mine_2", "my_moco", "my_moco_v2_800ep", "x_y_1_", "mine_3"]
    assert row_names(sources) == names


def test_rows_of_other_networks_or_pixels_are_not_compared(tmp_path):
    def row(**changes):
        return Row("mine", "mine.pth", tmp_path / "mine.pth", {**_REPORT, **changes})

    assert network_settings([row(), row()])["MODEL.RESNETS.DEPTH"] == 50
    with pytest.raises(UserError, match=r"MODEL\.RESNETS\.DEPTH 101, and .* has 50"):
        network_settings([row(), row(depth=101)])
    with pytest.raises(UserError, match=r"needs MODEL\.RESNETS\.STRIDE_IN_1X1 True"):
        network_settings([row(stride_in_1x1=True)])
    pixels = {**_REPORT["preprocessing"], "format": "BGR"}
    with pytest.raises(UserError, match=r"needs INPUT\.FORMAT BGR, and random and supervised need"):
        network_settings([row(preprocessing=pixels)])


@pytest.mark.parametrize(
    "changes, name",
    [
        ({}, "torchvision://resnet50"),
        ({"depth": 18}, "torchvision://resnet18"),
        ({"groups": 32, "width_per_group": 4}, "torchvision://resnext50_32x4d"),
        ({"width_per_group": 128}, "torchvision://wide_resnet50_2"),
        ({"width_factor": 2}, None),
        ({"width_per_group": 16}, None),
    ],
)
def test_supervised_weights_are_of_the_same_network(changes, name):
    assert supervised_source({**_REPORT, **changes}) == name


# ---- the whole -----------------------------------------------------------------------------------


@pytest.fixture
def question(tmp_path, monkeypatch):
    """Two checkpoints of different projects and twelve images, with runs of two steps."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "timm.pth")
    query = {f"module.encoder_q.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": query, "arch": "resnet18", "epoch": 1}, tmp_path / "mine.pth.tar")
    root = make_coco(tmp_path / "coco")

    def two_steps(grid, task, budget, measure):
        timing = measure(FORMS[0])
        assert timing.step > 0 and timing.test_image > 0
        return Fit(FORMS[0], 2, 60.0)

    monkeypatch.setattr(command, "fit", two_steps)
    return Question(
        checkpoints=(str(tmp_path / "mine.pth.tar"), str(tmp_path / "timm.pth")),
        train=(str(root / "train.json"),),
        test=(str(root / "test.json"),),
        seeds=2,
        budget=parse_budget("1h"),
        supervised=NO_SUPERVISED,
        gpus_per_run=0,
    )


def test_an_answer_with_its_runs_its_report_and_its_suite(question, tmp_path, capsys):
    folder = tmp_path / "out"
    assert answer(question, folder) == 0
    printed = capsys.readouterr().out
    assert "Rows random, mine, timm" in printed
    assert "With fewer than 3 seeds no order will be claimed." in printed
    assert "There is no supervised row, because of --supervised none." in printed
    records = read_records([folder])
    rows = {(record.initialization, record.seed) for record in records}
    assert rows == {(row, seed) for row in ("random", "mine", "timm") for seed in (1, 2)}
    assert len({record.matched_sha256 for record in records}) == 1
    text = (folder / "answer.md").read_text()
    assert text.startswith("# Answer\n\nvoc_C4: ") and "| mine |" in text
    assert all((folder / name).stat().st_size for name in ("table.csv", "table.tex", "report.html"))
    assert "6 done, 0 begun, 0 to start" in plan(folder / "transfer.yaml", folder=folder)

    before = {record.path: record.path.stat().st_mtime_ns for record in records}
    assert answer(question, folder) == 0  # nothing is measured or run again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "answer.md").read_text() == text

    other = dataclasses.replace(question, seeds=3)
    with pytest.raises(UserError, match=r"answer to another question \(seeds was 2, and is 3\)"):
        answer(other, folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "voc_C44"}, r"--task 'voc_C44' is unknown; did you mean 'voc_C4'"),
        ({"task": "voc_semantic"}, r"--task voc_semantic has no boxes"),
        ({"seeds": 0}, r"--seeds must be from 1 to 100, got 0"),
        ({"checkpoints": ("absent.pth",)}, r"there is no checkpoint absent\.pth"),
        ({"test": ("absent",)}, r"dataset 'absent' is not registered"),
        ({"gpus_per_run": 3}, r"--gpus-per-run must be at most"),
    ],
)
def test_a_question_that_cannot_be_answered_starts_no_run(question, tmp_path, changes, message):
    folder = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        answer(dataclasses.replace(question, **changes), folder)
    assert not list(folder.glob("voc_C4")) and not (folder / "transfer.json").exists()


def test_masks_of_data_without_masks_are_refused_before_the_first_run(question, tmp_path):
    file = tmp_path / "coco" / "train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="mask"):
        answer(dataclasses.replace(question, task="coco_C4_1x"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("coco_C4_1x"))


def test_a_damaged_state_says_what_to_do(question, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "transfer.json").write_text("{")
    with pytest.raises(UserError, match=r"transfer\.json is damaged .* remove it"):
        answer(question, tmp_path / "out")
