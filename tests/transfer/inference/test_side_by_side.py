"""Detections of finished runs in the same images."""

import shutil

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from matplotlib.axes import Axes
from PIL import Image

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.evaluation.tide import Detections
from moco_d2.transfer.inference import side_by_side
from moco_d2.transfer.inference.side_by_side import draw_side_by_side


@pytest.fixture(scope="module")
def finished_run(tiny, voc, tmp_path_factory):
    """OUTPUT_DIR of a finished run, as train_net leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("run")
    words = [str(word) for pair in voc.items() for word in pair]
    words += ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"]
    cfg = load_config("voc_C4_random.yaml", [*tiny, *words])
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture
def texts(monkeypatch):
    """Every label that is drawn."""
    found = []
    original = Axes.text

    def text(self, x, y, s, **style):
        found.append(s)
        return original(self, x, y, s, **style)

    monkeypatch.setattr(Axes, "text", text)
    return found


def test_rows_are_images_and_columns_are_runs(finished_run, tmp_path, texts):
    path = tmp_path / "picture.png"
    names = draw_side_by_side({"$random": finished_run, "moco": finished_run}, path, images=2)
    assert names == ["test000.jpg", "test005.jpg"]  # the first and the last of six
    width, height = Image.open(path).size
    assert width == pytest.approx(6.7 * 200, abs=2)
    assert height == pytest.approx((6.7 / 3 * 2 + 0.35) * 200, abs=2)
    assert [t for t in texts if t in ("dark", "light")] == ["dark", "light"]
    jpeg = tmp_path / "picture.jpg"
    draw_side_by_side({"moco": finished_run}, jpeg, images=1)
    assert Image.open(jpeg).format == "JPEG"


@pytest.mark.parametrize("found", [True, False])
def test_right_and_wrong_detections_have_other_lines(finished_run, tmp_path, monkeypatch, found):
    """Of two that find the object, the one with the higher score is right."""
    drawn = []
    monkeypatch.setattr(side_by_side, "_draw", lambda axis, box, text, style: drawn.append(style))

    def detect(cfg, samples):
        (item,) = samples[0]["annotations"]
        boxes = np.array([item["bbox"]] * 2, dtype=float) + (0 if found else 50)
        labels = np.full(2, item["category_id"])
        return [Detections(np.zeros(2, dtype=int), labels, np.array([0.5, 0.9]), boxes)]

    monkeypatch.setattr(side_by_side, "_detect", detect)
    draw_side_by_side({"moco": finished_run}, tmp_path / "a.png", images=1)
    right, wrong = side_by_side._RIGHT, side_by_side._WRONG
    assert drawn[1:] == [wrong, right if found else wrong]
    assert right["linestyle"] != wrong["linestyle"]  # not by color alone


def test_what_lacks_is_named(finished_run, tmp_path):
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        draw_side_by_side({"moco": tmp_path}, tmp_path / "a.png")
    shutil.copy(finished_run / "config.yaml", tmp_path)
    with pytest.raises(UserError, match=r"has no model_final\.pth"):
        draw_side_by_side({"moco": tmp_path}, tmp_path / "a.png")
    (tmp_path / "model_final.pth").touch()
    other = (finished_run / "config.yaml").read_text().replace(":test", ":trainval")
    (tmp_path / "config.yaml").write_text(other)
    with pytest.raises(UserError, match="no test set in common"):
        draw_side_by_side({"random": finished_run, "moco": tmp_path}, tmp_path / "a.png")
    gone = (finished_run / "config.yaml").read_text().replace("VOC2007:test", "VOC1066:test")
    (tmp_path / "config.yaml").write_text(gone)
    with pytest.raises(UserError, match="VOC1066"):
        draw_side_by_side({"moco": tmp_path}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
