"""An exported detector runs in Detectron2 as it is, and finds what it found here."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

import moco_d2.plugin.compat
from moco_d2.config.load import load_config
from moco_d2.config.plain import flatten
from moco_d2.errors import UserError
from moco_d2.plugin.compat import LAYER_NORM, SUPPLIED
from moco_d2.transfer.inference.export import export_detector, needs, parts_of_moco_d2
from moco_d2.transfer.inference.predict import Predictor

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)

# Detectron2 without moco_d2. If it cannot be imported alone, it gets what the export says it lacks.
STOCK = """
import importlib.util, sys
import numpy as np
compat, config_file, pixels, found = sys.argv[1:]
try:
    from detectron2.engine import DefaultPredictor
except (ImportError, AttributeError):
    spec = importlib.util.spec_from_file_location("patches", compat)
    patches = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(patches)
    patches._supply_pillow_names()
    patches._supply_compiled_operator_placeholder()
    print(*patches.SUPPLIED)
    from detectron2.engine import DefaultPredictor
from detectron2.config import get_cfg
cfg = get_cfg()
cfg.merge_from_file(config_file)
cfg.MODEL.DEVICE = "cpu"
assert "MOCO" not in cfg
instances = DefaultPredictor(cfg)(np.load(pixels))["instances"]
np.save(found, instances.pred_boxes.tensor.numpy())
assert "moco_d2" not in sys.modules
"""


@pytest.fixture
def finished(tiny, tmp_path):
    """The config of a finished run, and its model_final.pth."""

    def make(config):
        cfg = load_config(config, tiny)
        cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN"
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
        model = build_model(cfg)
        torch.save({"model": model.state_dict(), "iteration": 7}, cfg.MODEL.WEIGHTS)
        return cfg

    return make


def _boxes(cfg):
    """What our own predictor finds. DefaultPredictor takes BGR, ours the model's format."""
    assert cfg.INPUT.FORMAT == "RGB"
    return Predictor(cfg)(PIXELS[:, :, ::-1])["instances"].pred_boxes.tensor.numpy()


def test_stock_model_runs_in_detectron2_alone(finished, tmp_path):
    cfg = finished("coco_FPN_1x_random.yaml")
    config_file, ours = export_detector(cfg, tmp_path / "plain.pth")
    assert ours == {}
    np.save(tmp_path / "pixels.npy", PIXELS)
    script = [
        moco_d2.plugin.compat.__file__,
        config_file,
        tmp_path / "pixels.npy",
        tmp_path / "found.npy",
    ]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, *script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # What it says at the top of the config is what has happened.
    about = " ".join(config_file.read_text().partition("MODEL")[0].replace("#", " ").split())
    lacking = sorted(done.stdout.split())
    assert about.startswith("An export of moco_d2") and needs({}, lacking) in about
    models_need = {n for n in SUPPLIED if not n.startswith("numpy.")} - {LAYER_NORM}
    assert sorted(models_need) == lacking
    found = np.load(tmp_path / "found.npy")
    assert len(found) > 0
    np.testing.assert_array_equal(found, _boxes(cfg))


def test_what_a_complete_detectron2_needs_is_nothing():
    assert needs({}, ["numpy.bool"]).endswith("stock Detectron2's: it runs without moco_d2")


def test_model_with_a_part_of_ours_says_which_and_runs_after_import(finished, tmp_path):
    cfg = finished("voc_C4_random.yaml")
    config_file, ours = export_detector(cfg, tmp_path / "plain.pth")
    assert ours == {"MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm"}
    assert "the model has parts of moco_d2: call `import moco_d2` before" in config_file.read_text()
    exported = get_cfg()
    exported.merge_from_file(str(config_file))
    exported.MODEL.DEVICE = "cpu"
    found = DefaultPredictor(exported)(PIXELS)["instances"].pred_boxes.tensor.numpy()
    assert len(found) > 0
    np.testing.assert_array_equal(found, _boxes(cfg))


@pytest.mark.skipif(LAYER_NORM not in SUPPLIED, reason="this Detectron2 has the norm LN")
def test_a_norm_that_we_supply_is_a_part_of_ours():
    cfg = load_config("coco_FPN_1x_random.yaml")
    assert parts_of_moco_d2(cfg) == {}
    cfg.MODEL.FPN.NORM = "LN"
    assert parts_of_moco_d2(cfg) == {"MODEL.FPN.NORM": "LN"}


def test_files_hold_the_detector_and_nothing_of_the_run(finished, tmp_path):
    cfg = finished("coco_FPN_1x_random.yaml")
    config_file, _ = export_detector(cfg, tmp_path / "plain.pth")
    assert config_file == tmp_path / "plain.yaml"
    content = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert set(content) == {"model", "__author__"}
    original = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    assert set(content["model"]) == set(original)
    assert all(torch.equal(content["model"][name], original[name]) for name in original)
    exported = get_cfg()
    exported.merge_from_file(str(config_file))
    here, there = flatten(cfg), flatten(exported)
    different = {key for key in here if here[key] != there[key]}
    of_the_run = ("MODEL.WEIGHTS", "SOLVER.", "DATASETS.", "DATALOADER.", "MOCO.", "OUTPUT_DIR")
    rest = {key for key in different if not key.startswith(of_the_run)}
    assert rest <= {"SEED", "MODEL.DEVICE"}
    weights = str(tmp_path / "plain.pth")
    assert weights == exported.MODEL.WEIGHTS
    text = config_file.read_text()
    assert not any(word in text for word in ("SOLVER", "DATASETS", "MOCO", "OUTPUT_DIR"))


def test_config_of_a_run_gives_the_same_export(finished, tmp_path):
    """A run writes its config.yaml with lists where Detectron2's defaults have tuples."""
    cfg = finished("coco_FPN_1x_random.yaml")
    first, _ = export_detector(cfg, tmp_path / "plain.pth")
    text = first.read_text()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    second, _ = export_detector(load_config(tmp_path / "config.yaml"), tmp_path / "plain.pth")
    assert second.read_text() == text
    assert "CASCADE" not in text


def test_what_cannot_be_exported_is_refused_and_nothing_written(finished, tmp_path):
    cfg = finished("coco_FPN_1x_random.yaml")
    before = sorted(Path(tmp_path).iterdir())
    with pytest.raises(UserError, match=r"must end in \.pth"):
        export_detector(cfg, tmp_path / "plain.pkl")
    with pytest.raises(UserError, match=r"is MODEL\.WEIGHTS itself"):
        export_detector(cfg, cfg.MODEL.WEIGHTS)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    with pytest.raises(UserError, match="is not this config's detector"):
        export_detector(cfg, tmp_path / "plain.pth")
    assert sorted(Path(tmp_path).iterdir()) == before
