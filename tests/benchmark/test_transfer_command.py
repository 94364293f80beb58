"""tools/transfer.py: from checkpoints and data to an answer."""

import dataclasses
import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision
from support import toy_data
from support.checkpoint.vits import HEADS, WIDTH, vit
from support.commands import SECONDS, Python, run_python
from support.paths import ROOT
from support.toy_data import make_coco, make_voc

from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.runs.children import in_child
from moco_d2.benchmark.runs.planning import plan
from moco_d2.benchmark.runs.suites import load_suite
from moco_d2.benchmark.transfer_command import forms, measuring, preparation
from moco_d2.benchmark.transfer_command.budget import Fit, parse_budget
from moco_d2.benchmark.transfer_command.command import answer
from moco_d2.benchmark.transfer_command.data import Facts, dataset_name
from moco_d2.benchmark.transfer_command.forms import FORMS, form_settings
from moco_d2.benchmark.transfer_command.preparation import check_keypoints
from moco_d2.benchmark.transfer_command.question import (
    NO_SUPERVISED,
    Question,
    absolute_names,
    task_settings,
)
from moco_d2.benchmark.transfer_command.weights import (
    Row,
    check_task,
    convert_row,
    network_settings,
    row_names,
    supervised_source,
)
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.checkpoint.vit.mapping import ViT
from moco_d2.errors import UserError
from moco_d2.locks import run_in
from moco_d2.transfer import timing
from moco_d2.transfer.data import registered

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


def slim_resnet():
    """The tensors of a ResNet-18 of a quarter of the width."""
    return build_torchvision(Architecture(18, width_factor=0.25)).state_dict()


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


def test_a_folder_with_the_name_of_a_voc_year_must_be_told_from_the_year(tmp_path, monkeypatch):
    make_voc(tmp_path / "VOC2007", images=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"write \./VOC2007 or voc_2007_trainval"):
        dataset_name("VOC2007", "train")
    assert dataset_name("VOC2012", "test") == "voc_2012_val"


def test_names_of_datasets_have_no_detours(tmp_path):
    make_voc(tmp_path / "a", images=1)
    name = f"voc:{tmp_path}/a:test"
    (tmp_path / "b").mkdir()
    assert dataset_name(f"{tmp_path}/b/../a", "test") == name
    assert dataset_name(f"voc:{tmp_path}/b/../a:test", "test") == name


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


def test_a_path_without_a_file_is_no_name_of_a_registered_dataset(tmp_path, monkeypatch):
    for file in ("test.json", "a.txt"):
        (tmp_path / file).touch()
    meant = r"does not exist; did you mean 'test\.json'\?$"
    for name in ("tset.json", "test.json.gz", "test"):
        with pytest.raises(UserError, match=rf"^--test {tmp_path}/{name} {meant}"):
            dataset_name(f"{tmp_path}/{name}", "test")
    with pytest.raises(UserError, match=r"^--train /nowhere/test\.json does not exist$"):
        dataset_name("/nowhere/test.json", "train")
    with pytest.raises(UserError, match=r"a\.txt is not named \.json, .*; unpack or rename it"):
        dataset_name(f"{tmp_path}/a.txt", "train")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^--test tset\.json {meant}"):
        dataset_name("tset.json", "test")


# ---- checkpoints ---------------------------------------------------------------------------------


def test_a_folder_is_no_checkpoint_and_names_the_one_inside(tmp_path):
    question = Question((str(tmp_path),), ("a",), ("b",))
    with pytest.raises(UserError, match=f"^{tmp_path} is a folder; name .* inside it$"):
        absolute_names(question)
    for file in ("mine.pth", "notes.txt"):
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=r"is a folder; .* inside it, perhaps mine\.pth$"):
        absolute_names(question)
    with pytest.raises(UserError, match=r"no checkpoint .*mine\.pht; did you mean 'mine\.pth'"):
        absolute_names(dataclasses.replace(question, checkpoints=(f"{tmp_path}/mine.pht",)))
    (tmp_path / "other.pth").touch()
    with pytest.raises(UserError, match=r"^--supervised: .* is a folder; name .* inside it$"):
        absolute_names(Question(("moco://v1",), ("a",), ("b",), supervised=str(tmp_path)))


def test_names_of_rows():
    sources = ["a/mine.pth.tar", "b/mine.pth", "moco.pth", "moco://v2_800ep", "x y(1).bin", "..pth"]
    names = ["mine", "mine_2", "my_moco", "my_moco_v2_800ep", "x_y_1_", "mine_3"]
    assert row_names(sources) == names


def test_names_of_rows_become_files_so_they_differ_by_more_than_case():
    assert row_names(["Net.PTH", "net.pth", "NET.Tar"]) == ["Net", "net_2", "NET_3"]
    assert row_names(["MoCo.pth", "moco.pth"]) == ["my_MoCo", "moco_2"]


def test_rows_of_other_networks_or_pixels_are_not_compared(tmp_path):
    def row(**changes):
        return Row("mine", "mine.pth", tmp_path / "mine.pth", {**_REPORT, **changes})

    task = task_settings("voc_C4")
    assert network_settings([row(), row()], task)["MODEL.RESNETS.DEPTH"] == 50
    narrow = network_settings([row(depth=18, width_factor=0.5)], task)
    assert narrow["MODEL.RESNETS.RES2_OUT_CHANNELS"] == 32
    assert narrow["MODEL.BACKBONE.NAME"] == "build_basic_resnet"
    with pytest.raises(UserError, match=r"MODEL\.RESNETS\.DEPTH 101, and .* has 50"):
        network_settings([row(), row(depth=101)], task)
    with pytest.raises(UserError, match=r"needs MODEL\.RESNETS\.STRIDE_IN_1X1 True"):
        network_settings([row(stride_in_1x1=True)], task)
    pixels = {**_REPORT["preprocessing"], "format": "BGR"}
    with pytest.raises(UserError, match=r"needs INPUT\.FORMAT BGR, and random and supervised need"):
        network_settings([row(preprocessing=pixels)], task)


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


def _vit_row(source, **changes):
    network = ViT(192, 12, 3, 16, 14)
    report = {"network": "vit", "preprocessing": _REPORT["preprocessing"]}
    return Row(
        "mine", source, Path(source), {**report, "vit": dataclasses.asdict(network), **changes}
    )


def test_vits_and_resnets_are_no_rows_of_one_task(tmp_path):
    resnet = Row("r", "r.pth", tmp_path / "r.pth", _REPORT)
    with pytest.raises(UserError, match=r"a\.pth is a ViT, and --task voc_C4 .* coco_vitdet_Ti"):
        check_task(_vit_row("a.pth"), "voc_C4", task_settings("voc_C4"))
    vitdet = task_settings("coco_vitdet_Ti_25ep")
    with pytest.raises(UserError, match=r"r\.pth is a ResNet, and --task coco_vitdet_Ti_25ep "):
        check_task(resnet, "coco_vitdet_Ti_25ep", vitdet)
    check_task(_vit_row("a.pth"), "coco_vitdet_Ti_25ep", vitdet)
    dinov2 = _vit_row("d.pth", vit=dataclasses.asdict(ViT(192, 12, 3, 14, 37)))
    with pytest.raises(UserError, match=r"d\.pth has patches of 14 pixels, .* a power of two"):
        check_task(dinov2, "coco_vitdet_Ti_25ep", vitdet)


def test_rows_of_vits_share_the_network_and_its_pixels():
    task = task_settings("coco_vitdet_B_25ep")
    half = {**_REPORT["preprocessing"], "pixel_mean": [127.5] * 3}
    settings = network_settings([_vit_row("a.pth", preprocessing=half)] * 2, task)
    assert settings["MODEL.PIXEL_MEAN"] == [127.5] * 3 and settings["MOCO.VIT.HEADS"] == 3
    assert "MOCO.VIT.GLOBAL_BLOCKS" not in settings
    with pytest.raises(UserError, match=r"b\.pth has MODEL\.PIXEL_MEAN .*, and a\.pth has"):
        network_settings([_vit_row("a.pth"), _vit_row("b.pth", preprocessing=half)], task)
    heads = dataclasses.asdict(ViT(192, 12, 12, 16, 14))
    with pytest.raises(UserError, match=r"b\.pth has MOCO\.VIT\.HEADS 12, and a\.pth has 3"):
        network_settings([_vit_row("a.pth"), _vit_row("b.pth", vit=heads)], task)
    shallow = dataclasses.asdict(ViT(192, 6, 3, 16, 14))
    assert network_settings([_vit_row("a.pth", vit=shallow)], task)["MOCO.VIT.GLOBAL_BLOCKS"] == 2


@pytest.mark.parametrize(
    "network, name",
    [
        (ViT(192, 12, 3, 16, 14), "timm://deit_tiny_patch16_224"),
        (ViT(384, 12, 6, 16, 14, extra=0, scaled=True), "timm://deit_small_patch16_224"),
        (ViT(384, 12, 12, 16, 14), None),  # MoCo v3's ViT-S
        (ViT(1024, 24, 16, 16, 14), "timm://deit3_large_patch16_224"),
        (ViT(384, 12, 6, 14, 37), None),
    ],
)
def test_supervised_weights_are_of_the_same_vit(network, name):
    row = _vit_row("a.pth", vit=dataclasses.asdict(network))
    assert supervised_source(row.report) == name
    pixels = {**_REPORT["preprocessing"], "pixel_std": [127.5] * 3}
    assert supervised_source({**row.report, "preprocessing": pixels}) is None


@pytest.mark.parametrize(
    "container, part",
    [
        ("model", "roi_heads.box_predictor.bbox_pred.bias"),  # Detectron2's model_final.pth
        ("state_dict", "rpn_head.rpn_cls.bias"),  # mmdetection's latest.pth
    ],
)
def test_a_trained_detector_is_no_pretrained_checkpoint(tmp_path, container, part):
    layers = slim_resnet()
    if container == "model":
        torch.save(layers, tmp_path / "a.pth")
        layers = torch.load(convert_row("a", str(tmp_path / "a.pth"), tmp_path).file)["model"]
    detector = {f"backbone.{k}": v for k, v in layers.items() if not k.startswith("fc.")}
    file = tmp_path / "detector.pth"
    torch.save({container: {**detector, part: torch.zeros(4)}, "meta": {}}, file)
    with pytest.raises(UserError, match=r"detector\.pth is a trained detector \(it has "):
        convert_row("b", str(file), tmp_path)


@pytest.mark.parametrize("target", ["timm", "torchvision"])
def test_a_file_converted_for_another_library_is_converted_back(tmp_path, target):
    """It has the report of tools/convert.py, as the files for Detectron2 have."""
    from moco_d2.checkpoint.convert import convert

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    wanted = torch.load(convert_row("a", str(tmp_path / "a.pth"), tmp_path).file)["model"]
    suffix = "safetensors" if target == "timm" else "pth"
    convert(tmp_path / "a.pth", tmp_path / f"b.{suffix}", to=target)
    row = convert_row("b", str(tmp_path / f"b.{suffix}"), tmp_path)
    assert row.file == tmp_path / "weights" / "b.pth"
    arrived = torch.load(row.file)["model"]
    assert arrived.keys() == wanted.keys()
    assert all(torch.equal(torch.as_tensor(arrived[n]), torch.as_tensor(wanted[n])) for n in wanted)
    again = convert_row("c", str(row.file), tmp_path)  # and that one is used as it is
    assert again.file == row.file


_FORKS_LATER = """
import multiprocessing, sys, torch
torch.set_num_threads(2)
from moco_d2.benchmark.transfer_command.weights import convert_row
from pathlib import Path

def compute(queue):
    torch.set_num_threads(2)
    queue.put(float(torch.ones(2**20).exp().sum() > 0))

convert_row("a", sys.argv[1], Path(sys.argv[2]))
context = multiprocessing.get_context("fork")
queue = context.Queue()
context.Process(target=compute, args=(queue,), daemon=True).start()
print("computed", queue.get(timeout=240))
"""


def test_runs_that_are_forked_after_a_conversion_compute_with_several_threads(tmp_path):
    """They waited forever for threads of OpenMP that the conversion had started."""
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    ended = run_python("-c", _FORKS_LATER, tmp_path / "a.pth", tmp_path)
    assert "computed 1.0" in ended.stdout, ended.stderr


# ---- the whole -----------------------------------------------------------------------------------


# Heads and a pyramid of few channels, where the task has them; the network is the checkpoint's.
_NARROW = {
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}


@pytest.fixture
def question(tmp_path, monkeypatch):
    """Two checkpoints of different projects and twelve images, with runs of two steps."""
    torch.manual_seed(0)
    state = slim_resnet()
    torch.save(state, tmp_path / "timm.pth")
    query = {f"module.encoder_q.{name}": tensor * 2 for name, tensor in state.items()}
    torch.save({"state_dict": query, "arch": "resnet18", "epoch": 1}, tmp_path / "mine.pth.tar")
    root = make_coco(tmp_path / "coco")

    def two_steps(grid, task, budget, measure):
        measured = measure(FORMS[0])
        assert measured.step > 0 and measured.test_image > 0
        return Fit(FORMS[0], 2, 60.0)

    def narrow(*form, **device):
        return {**form_settings(*form, **device), **_NARROW}

    monkeypatch.setattr(measuring, "fit", two_steps)
    for module in (forms, preparation):
        monkeypatch.setattr(module, "form_settings", narrow)
    monkeypatch.setattr(timing, "WARM_UP", 1)  # the processes that measure are forks of this one
    monkeypatch.setattr(timing, "STEPS", 2)
    return Question(
        checkpoints=(str(tmp_path / "mine.pth.tar"), str(tmp_path / "timm.pth")),
        train=(str(root / "train.json"),),
        test=(str(root / "test.json"),),
        seeds=2,
        budget=parse_budget("1h"),
        supervised=NO_SUPERVISED,
        gpus_per_run=0,
    )


def test_vits_are_compared_on_images_of_their_size(question, tmp_path, capsys):
    """Two ViTs of two blocks, of which one is converted already, random ones, and a pyramid."""
    from moco_d2.checkpoint.convert import convert

    for seed, name in enumerate(("mine", "super")):
        torch.save(vit(seed=seed), tmp_path / f"{name}.pth")
    with pytest.raises(UserError, match=r"name it with --heads N"):
        convert_row("a", str(tmp_path / "mine.pth"), tmp_path)
    convert(tmp_path / "super.pth", tmp_path / "converted.pth", heads=HEADS)
    question = dataclasses.replace(
        question,
        checkpoints=(str(tmp_path / "mine.pth"),),
        supervised=str(tmp_path / "converted.pth"),
        task="coco_vitdet_Ti_25ep",
        heads=HEADS,
        seeds=1,
    )
    assert answer(question, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "Form 'tiny': squares of 96 px" in printed
    assert "lowered to 0 along a cosine" in printed
    records = read_records([tmp_path / "out"])
    rows = {(record.initialization, record.seed) for record in records}
    assert rows == {(row, 1) for row in ("random", "supervised", "mine")}
    assert len({record.matched_sha256 for record in records}) == 1
    for record in records:
        own = record.config["MOCO"]["VIT"]
        assert (own["IMAGE_SIZE"], own["EMBED_DIM"], own["DEPTH"]) == (96, WIDTH, 2)
        assert (own["HEADS"], own["WINDOW_SIZE"], own["GLOBAL_BLOCKS"]) == (HEADS, 6, 2)
        assert record.expected == 3 + 12 * 2
        assert record.loaded == (0 if record.initialization == "random" else record.expected)
    assert "| mine |" in (tmp_path / "out" / "answer.md").read_text()


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(measuring, "fit", lambda *_: Fit(FORMS[0], 2, 60.0))


def test_an_answer_with_its_runs_its_report_and_its_suite(question, tmp_path, capsys):
    folder = tmp_path / "out"
    assert answer(question, folder) == 0
    printed = capsys.readouterr().out
    assert "Rows random, mine, timm" in printed
    assert "With fewer than 3 seeds no order will be claimed." in printed
    assert "The schedule is short: a budget for 200 steps tells more." in printed
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
        ({"supervised": "absent.pth"}, r"there is no checkpoint absent\.pth"),
        ({"supervised": "nonee"}, r"^--supervised: there is no checkpoint nonee; .* 'none'\?$"),
        ({"gpus_per_run": -1}, r"--gpus-per-run must be at least 0, got -1"),
        ({"test": ("absent",)}, r"dataset 'absent' is not registered"),
        ({"gpus_per_run": 3}, r"--gpus-per-run must be at most"),
    ],
)
def test_a_question_that_cannot_be_answered_starts_no_run(question, tmp_path, changes, message):
    folder = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        answer(dataclasses.replace(question, **changes), folder)
    assert not folder.exists()  # nothing was converted


def test_a_checkpoint_is_named_once(question, unmeasured, tmp_path):
    mine = question.checkpoints[0]
    twice = dataclasses.replace(question, checkpoints=(mine, mine))
    with pytest.raises(UserError, match=r"are the same checkpoint; name it once"):
        answer(twice, tmp_path / "out", plan_only=True)
    supervised = dataclasses.replace(question, checkpoints=(mine,), supervised=mine)
    with pytest.raises(UserError, match=r"are the same .*, as a row or as --supervised \("):
        answer(supervised, tmp_path / "out", plan_only=True)
    state = torch.load(mine)["state_dict"]
    state = {name.removeprefix("module.encoder_q."): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "same.pth")  # another layout
    same = dataclasses.replace(question, checkpoints=(mine, str(tmp_path / "same.pth")))
    with pytest.raises(UserError, match=r"are the same checkpoint; name it once"):
        answer(same, tmp_path / "out", plan_only=True)
    assert not (tmp_path / "out" / "transfer.json").exists()


def test_a_plan_without_its_suite_is_made_again_while_there_are_no_runs(
    question, unmeasured, tmp_path
):
    folder = tmp_path / "out"
    question = dataclasses.replace(question, checkpoints=question.checkpoints[:1])
    for _ in range(2):
        assert answer(question, folder, plan_only=True) == 0
        (folder / "transfer.yaml").unlink()  # fails if it was not written
    (folder / "voc_C4").mkdir()
    with pytest.raises(UserError, match=r"transfer\.yaml is missing .* put it back, or remove"):
        answer(question, folder, plan_only=True)


def _of_other_classes(content):
    content["categories"].append({"id": 3, "name": "gray"})


def _without_masks(content):
    for annotation in content["annotations"]:
        del annotation["segmentation"]


def _without_an_image(content):
    content["images"][1]["file_name"] = "absent.jpg"


@pytest.mark.parametrize(
    "split, damage, task, message",
    [
        ("test", _of_other_classes, "voc_C4", r"classes"),
        ("train", _without_masks, "coco_C4_1x", r"mask"),
        ("test", _without_an_image, "voc_C4", r"absent\.jpg"),
    ],
)
def test_damaged_data_is_refused_before_the_measurement_and_read_anew_when_repaired(
    question, tmp_path, monkeypatch, split, damage, task, message
):
    question = dataclasses.replace(question, task=task, checkpoints=question.checkpoints[:1])
    measured = []
    monkeypatch.setattr(measuring, "fit", lambda *_: measured.append(1) or Fit(FORMS[0], 2, 60.0))
    file = tmp_path / "coco" / f"{split}.json"
    whole = file.read_text()
    content = json.loads(whole)
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        answer(question, tmp_path / "out", plan_only=True)
    assert not measured and not list((tmp_path / "out").glob("transfer.*"))
    file.write_text(whole)
    assert answer(question, tmp_path / "out", plan_only=True) == 0
    assert measured


def test_each_dataset_is_read_once_before_the_measurement(
    question, unmeasured, tmp_path, monkeypatch
):
    read = registered._load

    def logged(name):
        with (tmp_path / "log").open("a") as log:  # by child processes
            log.write(f"{name}\n")
        return read(name)

    monkeypatch.setattr(registered, "_load", logged)
    question = dataclasses.replace(question, checkpoints=question.checkpoints[:1])
    assert answer(question, tmp_path / "out", plan_only=True) == 0
    names = (tmp_path / "log").read_text().splitlines()
    assert len(names) == len(set(names)) == 2


def test_training_data_are_no_test_data(question, unmeasured, tmp_path):
    same = dataclasses.replace(question, test=question.train)
    said = r"^--test coco:.*: 6 of its 6 images are also in --train coco:.*, first .*train0\.jpg; "
    with pytest.raises(UserError, match=said + ".* divide these into two sets$"):
        answer(same, tmp_path / "out", plan_only=True)


def test_images_that_are_not_there_are_missing_and_not_shared(question, unmeasured, tmp_path):
    (tmp_path / "wrong").mkdir()
    data = tuple(f"coco:{name}:{tmp_path / 'wrong'}" for name in question.train)
    wrong = dataclasses.replace(question, train=data, test=data)
    with pytest.raises(UserError, match=r"files of 6 of its 6 images are missing, first .*wrong/"):
        answer(wrong, tmp_path / "out", plan_only=True)


def test_the_same_command_with_other_content_is_another_question(
    question, unmeasured, tmp_path, monkeypatch
):
    folder = tmp_path / "out"
    assert answer(question, folder, plan_only=True) == 0
    plan_of_before = (folder / "transfer.yaml").read_bytes()

    for file in (tmp_path / "coco" / "test.json", tmp_path / "mine.pth.tar"):
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        with pytest.raises(UserError, match=rf"{file}.* has changed since {folder} was planned"):
            answer(question, folder, plan_only=True)
        file.write_bytes(content)

    near = dataclasses.replace(
        question,
        checkpoints=("coco/../mine.pth.tar", "timm.pth"),
        train=("coco/train.json",),
        test=("coco/test.json",),
    )
    monkeypatch.chdir(tmp_path)
    assert answer(near, tmp_path / "coco" / ".." / "out", plan_only=True) == 0
    elsewhere = tmp_path / "elsewhere"
    make_coco(elsewhere / "coco")
    for name in ("mine.pth.tar", "timm.pth"):
        (elsewhere / name).write_bytes((tmp_path / name).read_bytes())
    monkeypatch.chdir(elsewhere)
    near = dataclasses.replace(near, checkpoints=question.checkpoints)
    with pytest.raises(UserError, match=r"another question \(train was .*, and is .*elsewhere"):
        answer(near, folder, plan_only=True)
    assert (folder / "transfer.yaml").read_bytes() == plan_of_before


def test_converted_weights_that_are_not_the_planned_ones_are_converted_again(
    question, unmeasured, tmp_path, capsys
):
    folder = tmp_path / "out"
    question = dataclasses.replace(question, checkpoints=question.checkpoints[:1])
    answer(question, folder, plan_only=True)
    file = folder / "weights" / "mine.pth"
    whole = file.read_bytes()
    for content in (whole[:1000], None):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        capsys.readouterr()
        assert answer(question, folder, plan_only=True) == 0
        assert "mine.pth is not the file of the plan: converting" in capsys.readouterr().out
        assert file.read_bytes() == whole
    state = json.loads((folder / "transfer.json").read_text())
    state["weights"]["mine"]["sha256"] = "0" * 64
    (folder / "transfer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"mine\.pth is not the file that .* was planned with"):
        answer(question, folder, plan_only=True)


def test_a_folder_is_planned_by_one_process(question, tmp_path):
    with run_in(tmp_path / "out"), pytest.raises(UserError, match=r"work in --folder .*process"):
        in_child(set(), answer, question, tmp_path / "out")


def test_a_smaller_form_on_the_tasks_own_data_is_a_task_of_its_own(
    question, unmeasured, tmp_path, monkeypatch
):
    """The checks take other settings on the task's own data for a mistake."""
    monkeypatch.setattr(toy_data, "CLASSES", ("cat", "dog"))
    for seed, year in enumerate(("VOC2007", "VOC2012")):
        make_voc(tmp_path / "datasets" / year, seed=seed)
    monkeypatch.chdir(tmp_path)
    years = {"train": ("VOC2007", "VOC2012"), "test": ("VOC2007",)}
    question = dataclasses.replace(question, checkpoints=question.checkpoints[:1], **years)
    assert answer(question, tmp_path / "out", plan_only=True) == 0
    suite = load_suite(tmp_path / "out" / "transfer.yaml")
    assert {cell.task for cell in suite.cells} == {"my_voc_C4"}


def test_keypoints_without_known_deviations_need_a_suite():
    task = task_settings("coco_keypoint_FPN_2x")
    check_keypoints(task, Facts(1, 17, 6, 64, 6))
    with pytest.raises(UserError, match=r"has 5 keypoints.*TEST\.KEYPOINT_OKS_SIGMAS.*a suite"):
        check_keypoints(task, Facts(1, 5, 6, 64, 6))


def test_a_damaged_state_says_what_to_do(question, unmeasured, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "transfer.json").write_text("{")
    with pytest.raises(UserError, match=r"transfer\.json is damaged .* remove it, and"):
        answer(question, folder)
    (folder / "voc_C4").mkdir()  # its runs have the settings of the lost plan
    with pytest.raises(UserError, match=rf"damaged .*remove {folder}, .* or finish the runs with"):
        answer(question, folder)
    (folder / "transfer.json").unlink()
    with pytest.raises(UserError, match=rf"missing beside the runs .*remove {folder}, "):
        answer(question, folder)


def test_a_signal_before_the_runs_says_that_the_same_command_continues(question, tmp_path):
    data = ("--train", *question.train, "--test", *question.test)
    flags = ("--gpus-per-run", "0", "--supervised", "none", "--folder", tmp_path / "out")
    process = Python(
        ["tools/transfer.py", *question.checkpoints, *data, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline().startswith("converting"), process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1] == "stopped by SIGTERM; the same command continues"
