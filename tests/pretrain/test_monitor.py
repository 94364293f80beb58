"""The monitoring hooks on Detectron2's own loop and storage."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.engine import hooks
from detectron2.utils.events import JSONWriter
from PIL import Image
from support.scripted_trainer import Scripted, run_scripted
from support.toy_data import make_class_folders

from moco_d2.pretrain.data.sources import list_images
from moco_d2.pretrain.model.encoder import build_encoder
from moco_d2.pretrain.monitor import PretextChance, build_monitors
from moco_d2.pretrain.probe.neighbor_sheet import neighbor_sheet
from moco_d2.pretrain.schedule import scale_recipe


def test_chance_stands_beside_the_accuracy(caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="moco_d2")
    writers = [hooks.PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=2)]
    run_scripted([PretextChance(65537), *writers], lambda iteration: {}, 4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert len(lines) == 2
    assert all(line["pretext_chance"] == 1 / 65537 and "pretext_accuracy" in line for line in lines)
    assert "loss of 11.09" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "logits"),
    [
        ({"MOCO.DICTIONARY.SIZE": 20}, 21),
        ({"MOCO.DICTIONARY.NAME": "MemoryBank", "MOCO.DICTIONARY.SIZE": 5}, 6),
        ({"MOCO.DICTIONARY.NAME": "EndToEnd"}, 8),
    ],
)
def test_chance_knows_the_dictionary(make_config, overrides, logits):
    monitors = build_monitors(make_config(overrides), is_main=True)
    assert [m.chance for m in monitors if isinstance(m, PretextChance)] == [1 / logits]


def names(monitors):
    return {type(m).__name__ for m in monitors}


def test_a_run_has_the_monitors_that_its_config_asks_for(make_config, images, held_out):
    knn = {"MOCO.KNN.TRAIN": images, "MOCO.KNN.TEST": held_out}
    alarms = {"PretextChance", "CollapseAlarm", "LeakAlarm", "DataTimeAdvice"}
    assert names(build_monitors(make_config(), is_main=True)) == alarms
    assert names(build_monitors(make_config(knn), is_main=True)) == {*alarms, "KNNEvaluation"}
    band = make_config({"MOCO.MONITOR.EXPECTED_LOSS": (6.5, 6.9)})
    assert names(build_monitors(band, is_main=True)) == {*alarms, "ExpectedLoss"}
    supervised = make_config({"MOCO.PRETEXT": "supervised"})
    assert names(build_monitors(supervised, is_main=True)) == {"DataTimeAdvice"}
    # The other processes take part in the evaluation, by waiting, and in nothing else.
    assert names(build_monitors(make_config(knn), is_main=False)) == {"KNNEvaluation"}
    assert build_monitors(make_config(), is_main=False) == []


def test_knn_is_evaluated_at_the_start_each_period_and_the_end(
    make_config, images, held_out, tmp_path
):
    cfg = make_config(
        {
            "MOCO.KNN.TRAIN": images,
            "MOCO.KNN.TEST": held_out,
            "MOCO.KNN.EPOCHS": 2,
            "MOCO.KNN.NEIGHBOURS": 1,
            "MOCO.MONITOR.NEIGHBOURS": 3,
        }
    )
    cfg, _ = scale_recipe(cfg, world_size=1, num_images=24)  # an epoch is 3 iterations
    trainer = Scripted()
    trainer.model.encoder_q = build_encoder("resnet18", dim=8)
    trainer.register_hooks(
        [
            *build_monitors(cfg, is_main=True),
            hooks.PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=1),
        ]
    )
    trainer.train(0, 8)
    assert [at for _, at in trainer.storage.history("knn_accuracy").values()] == [0, 5, 8]
    sheets = tmp_path / "out" / "neighbours"
    assert sorted(p.name for p in sheets.iterdir()) == ["0000000.png", "0000005.png", "0000008.png"]
    with Image.open(sheets / "0000005.png") as sheet:
        sheet.verify()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {line["iteration"]: line.get("knn_accuracy") for line in lines}[5] == 1.0


def test_a_resumed_run_does_not_evaluate_at_its_start(make_config, images, held_out):
    cfg = make_config({"MOCO.KNN.TRAIN": images, "MOCO.KNN.TEST": held_out})
    trainer = Scripted()
    trainer.model.encoder_q = build_encoder("resnet18", dim=8)
    trainer.register_hooks(build_monitors(cfg, is_main=True))
    trainer.train(4, 6)
    assert [at for _, at in trainer.storage.history("knn_accuracy").values()] == [6]


def test_the_sheet_frames_right_and_wrong_neighbors(tmp_path):
    folder = make_class_folders(tmp_path / "images", per_class=2)
    listed = list_images(folder)
    # dark/0 is near dark/1 and far from light; light/0 is nearer to dark than to light/1.
    angles = torch.tensor([0.0, 0.1, 1.0, 2.5])
    features = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 1])
    sheet = np.asarray(
        neighbor_sheet(listed, listed, features, features, queries=2, title="iteration 0")
    )
    blue, orange = ((sheet == color).all(axis=2) for color in ((0, 114, 178), (213, 94, 0)))
    cells = range(6 + 112, sheet.shape[1], 112)  # the columns of the neighbors' frames
    frames = [[(blue[top, x + 1], orange[top, x + 1]) for x in cells] for top in (38, 38 + 128)]
    right, wrong = (True, False), (False, True)
    assert frames[0] == [right, right, wrong, wrong]  # dark: itself, the other, light, light
    assert frames[1] == [right, wrong, wrong, right]  # light: itself, dark, dark, light
