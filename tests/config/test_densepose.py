"""Dense pose configs, with a stand-in for the project where it is not installed: its keys."""

import importlib.util
import re
import sys

import pytest
from support.transfer.paper_settings import (
    DENSEPOSE_TASKS,
    EVERY_TASK,
    MATCHED_INITIALIZATIONS,
    UNMATCHED_INITIALIZATIONS,
)

from moco_d2.benchmark.paper_tables import find_row
from moco_d2.config.load import load_config
from moco_d2.config.plain import flatten
from moco_d2.errors import UserError
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import Refusal

TASK = "coco_densepose_FPN_s1x"
INSTALLED = importlib.util.find_spec("densepose") is not None

# Names and defaults of the project's densepose/config.py, as far as our config sets them.
STAND_IN = """
def add_densepose_config(cfg):
    cfg.MODEL.DENSEPOSE_ON = True
    cfg.MODEL.ROI_DENSEPOSE_HEAD = type(cfg)()
    cfg.MODEL.ROI_DENSEPOSE_HEAD.NAME = ""
    cfg.MODEL.ROI_DENSEPOSE_HEAD.POOLER_TYPE = "ROIAlignV2"
    cfg.MODEL.ROI_DENSEPOSE_HEAD.NUM_COARSE_SEGM_CHANNELS = 2
"""


@pytest.fixture
def densepose(tmp_path, monkeypatch):
    if not INSTALLED:
        (tmp_path / "densepose.py").write_text(STAND_IN)
        monkeypatch.syspath_prepend(tmp_path)
    yield
    if not INSTALLED:
        sys.modules.pop("densepose", None)


def test_values_and_differences_are_those_of_the_tables(densepose):
    expected = EVERY_TASK | DENSEPOSE_TASKS[TASK] | {"MOCO.TASK": TASK}
    reference = flatten(load_config(f"{TASK}_random.yaml"))
    assert {key: reference[key] for key in expected} == expected
    for name, weights in MATCHED_INITIALIZATIONS.items():
        resolved = flatten(load_config(f"{TASK}_{name}.yaml"))
        assert resolved == reference | {"MODEL.WEIGHTS": weights}
    for name, differences in UNMATCHED_INITIALIZATIONS.items():
        assert flatten(load_config(f"{TASK}_{name}.yaml")) == reference | differences


def test_a_run_stands_beside_the_papers(densepose):
    cfg = load_config(f"{TASK}_moco.yaml")
    table, row = find_row(TASK, "moco")
    images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    assert table.setting.matches(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, images)
    assert row.values == (50.1, 86.8, 53.9)


def test_our_command_sends_the_run_to_the_projects_own(densepose):
    cfg = load_config(f"{TASK}_moco.yaml")
    (found,) = check_datasets(cfg)
    assert isinstance(found, Refusal)
    assert re.search(r"DensePose/train_net.py --config-file .*s1x_moco.yaml", str(found))


@pytest.mark.skipif(INSTALLED, reason="DensePose is installed")
def test_without_the_project_it_is_one_sentence():
    with pytest.raises(UserError, match="needs Detectron2's DensePose project: pip install"):
        load_config(f"{TASK}_moco.yaml")
