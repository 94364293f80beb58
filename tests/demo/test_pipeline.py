"""What the demo says, and that what it runs is what the README tells to type."""

from pathlib import Path

import pytest

from moco_d2.benchmark.runs.suites import FOLDER
from moco_d2.config.load import load_config
from moco_d2.demo.cells import (
    build_cells,
    demo_cells,
    demo_files,
    initializations,
    pretrainings,
)
from moco_d2.demo.networks import NETWORKS, SAME_CLASSES
from moco_d2.demo.pipeline import knn_summary, loss_summary
from moco_d2.demo.settings import LONG, SHORT, VIT
from moco_d2.errors import UserError
from moco_d2.files import write_text


def commands_of(settings, name):
    (cell,) = (cell for cell in demo_cells(settings) if cell.name == name)
    return dict(cell.commands)


TASKS = [(settings, task) for settings in (SHORT, LONG, VIT) for task, _ in settings.finetune_steps]


@pytest.mark.parametrize(("settings", "task"), TASKS)
def test_commands_of_a_task_are_matched(settings, task, tmp_path):
    """Every word of the command lines is the same but config, weights and output."""
    for name, content in demo_files(settings).items():
        write_text(tmp_path / name, content)
    resolved = []
    for initialization in initializations(settings):
        words = commands_of(settings, f"{task}/{initialization}/seed1")["train_net.py"]
        assert words[0] == "--config-file"
        assert words[2] == "--resume"
        folder = f"{FOLDER}/configs/" if initialization == SAME_CLASSES else ""
        assert words[1] == f"{folder}{task}_{initialization}.yaml"
        cfg = load_config(words[1].replace(FOLDER, str(tmp_path)), words[3:])
        cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""
        resolved.append(cfg.dump())
    assert len(resolved) == 3 + settings.same_classes
    assert len(set(resolved)) == 1


def test_the_demo_has_two_tasks_whose_heads_are_pretrained_and_thirty_runs():
    runs = [cell for cell in demo_cells(SHORT) if cell.kind == "transfer"]
    assert {cell.task for cell in runs} == {"voc_C4", "coco_C4_1x"}
    assert len(runs) == 30
    assert {cell.task for cell in demo_cells(LONG) if cell.kind == "transfer"} == {
        *("voc_C4", "coco_C4_1x", "coco_FPN_1x")
    }


@pytest.mark.parametrize(
    ("settings", "labels"),
    [(SHORT, ["shapes"] * 2), (LONG, ["shapes", "shapes", "textures"]), (VIT, ["shapes"] * 2)],
)
def test_pretrainings_have_the_same_images_network_steps_and_rate(settings, labels):
    """They differ in the pretext, and the labels of one are the classes to detect."""
    resolved, lists = [], []
    for name in pretrainings(settings):
        words = commands_of(settings, f"pretrain_{name}")["pretrain.py"]
        cfg = load_config(words[1], words[3:])
        lists.append(cfg.DATASETS.TRAIN[0].rpartition("/")[2])
        cfg.MOCO.PRETEXT = cfg.OUTPUT_DIR = ""
        cfg.DATASETS.TRAIN = ()
        resolved.append(cfg.dump())
    assert len(set(resolved)) == 1
    assert lists == [f"pretrain_{label}.txt" for label in labels]


def test_sentences_hold_the_numbers():
    pretext = [{"loss_contrastive": 6.0 - 0.1 * i} for i in range(16)]
    assert loss_summary("MoCo", pretext, *NETWORKS["resnet18"].chance(255)) == (
        "MoCo's loss ended at 4.50, chance ln(K+1) is 5.55; from the first to the second half of "
        "its last quarter it fell by 0.200."
    )
    assert NETWORKS["vit_tiny"].chance(0)[0] == "4 x 0.2 x ln(64)"
    moco = [{"knn_accuracy": 0.5}, {"loss": 1}, {"knn_accuracy": 0.7}]
    supervised = [{"knn_accuracy": 0.5}, {"knn_accuracy": 0.9}]
    said = knn_summary("MoCo", moco, supervised, 1 / 9)
    assert "random 0.500, MoCo 0.700, supervised 0.900 (chance 0.111)" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "finetune_steps must be a mapping, as in {coco_vitdet_Ti_25ep: 80}"),
        ({"queue": 9, "finetune_steps": {"coco_vitdet_Ti_25ep": 1}}, "has no queue: remove the"),
        ({"same_classes": True, "finetune_steps": {"coco_vitdet_Ti_25ep": 1}}, "network: resnet18"),
        ({"finetune_steps": {"voc_C4": 1}}, "unknown task 'voc_C4'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_suite_with_the_vit_says_what_is_wrong(content, message):
    with pytest.raises(UserError, match=message):
        build_cells({"network": "vit_tiny", **content}, Path("mine.yaml"))
