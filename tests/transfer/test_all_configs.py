"""Every task x initialization: its values, its model, two steps and an evaluation on real files."""

import argparse
import functools
import itertools
import json
import re

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from detectron2.modeling import build_model
from support.transfer.dataset_files import make_datasets
from support.transfer.paper_settings import (
    DENSEPOSE_TASKS,
    EVERY_TASK,
    MATCHED_INITIALIZATIONS,
    TASKS,
    UNMATCHED_INITIALIZATIONS,
)

from moco_d2.benchmark.paper_tables import paper_tables
from moco_d2.config.load import config_root, load_config, task_configs
from moco_d2.config.plain import flatten
from moco_d2.transfer.data.voc_segmentation import register_voc_segmentation
from moco_d2.transfer.main import train
from moco_d2.transfer.weights import pretrained_tensors

PACKAGED = sorted(path.stem for path in (config_root() / "task").glob("*.yaml"))
# The others are in tests/config/test_densepose.py.
OURS = [task for task in PACKAGED if task not in DENSEPOSE_TASKS]
# Their models are those of the task without the ending, and one of each kind is run.
SAME_MODEL = {"voc_C4_1pct", "coco_FPN_1x_10pct", "coco_FPN_1x_1pct", "voc_dilated_C5_frozen"}
SAME_MODEL |= {task for task in PACKAGED if "_vitdet_" in task} - {
    *("coco_vitdet_Ti_25ep", "lvis_v1_vitdet_B_100ep")
}
SAME_MODEL |= {"coco_FPN_lsj_100ep"}
RUN = [task for task in OURS if task not in SAME_MODEL]

# A slim ResNet-50 on images of 64 pixels: every layer of the task in a step of a second.
SHRUNKEN = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MOCO.VIT.EMBED_DIM": 32,
    "MOCO.VIT.DEPTH": 2,
    "MOCO.VIT.HEADS": 2,
    "MOCO.VIT.GLOBAL_BLOCKS": 1,
    "MOCO.VIT.WINDOW_SIZE": 2,
    "MOCO.VIT.IMAGE_SIZE": 128,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,  # detections to evaluate, of an untrained model
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (16, 16),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.CROP.SIZE": [65, 65],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "TEST.DETECTIONS_PER_IMAGE": 5,
    "TEST.PRECISE_BN.NUM_ITER": 1,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (1,),
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BASE_LR": 0.0002,
    "DATALOADER.NUM_WORKERS": 0,
}


@functools.cache
def resolved(config):
    """The values of a packaged config by dotted key."""
    return flatten(load_config(f"{config}.yaml"))


@pytest.fixture(scope="module")
def real_names(tmp_path_factory):
    """Detectron2's built-in names lead to files of the tests."""
    root = str(make_datasets(tmp_path_factory.mktemp("datasets")))
    before = [dict(catalog.data) for catalog in (DatasetCatalog, MetadataCatalog)]
    register = (
        builtin.register_all_coco,
        builtin.register_all_lvis,
        builtin.register_all_cityscapes,
        builtin.register_all_pascal_voc,
        register_voc_segmentation,
    )
    for prefix in ("coco_", "keypoints_coco_", "lvis_", "cityscapes_fine_", "voc_20"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            for name in [name for name in catalog.data if name.startswith(prefix)]:
                catalog.data.pop(name)
    for function in register:
        function(root)
    yield root
    for catalog, data in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data.clear()
        catalog.data.update(data)


# Methods of published rows without a packaged config. A record may call MoCo v2 after 200 epochs
# just moco_v2.
OTHERS = {
    *("moco_v2", "byol", "densecl", "infomin", "simclr", "pixpro", "soco", "swav", "barlow_twins"),
    *("barlowtwins", "simsiam", "instdis", "pirl", "detco"),
}


def test_every_config_is_in_the_tables_of_this_test():
    assert set(PACKAGED) == set(TASKS)
    initializations = {path.stem for path in (config_root() / "init").glob("*.yaml")}
    assert initializations == {*MATCHED_INITIALIZATIONS, *UNMATCHED_INITIALIZATIONS}
    assert set(task_configs()) == {
        f"{task}_{name}.yaml" for task, name in itertools.product(PACKAGED, initializations)
    }


@pytest.mark.parametrize("task", OURS)
def test_values_are_the_papers(task):
    expected = EVERY_TASK | TASKS[task] | {"MOCO.TASK": task}
    values = resolved(f"{task}_moco")
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("task", OURS)
def test_every_run_is_evaluated_six_times(task):
    """The curve over iterations comes without asking, and its last point is the end."""
    values = resolved(f"{task}_moco")
    assert values["SOLVER.MAX_ITER"] == 6 * values["TEST.EVAL_PERIOD"]


@pytest.mark.parametrize("task", OURS)
def test_matched_initializations_differ_in_their_weights_only(task):
    reference = resolved(f"{task}_random")
    for name, weights in MATCHED_INITIALIZATIONS.items():
        assert resolved(f"{task}_{name}") == reference | {"MODEL.WEIGHTS": weights}


@pytest.mark.parametrize("task", OURS)
def test_unmatched_initializations_differ_in_exactly_what_is_listed(task):
    reference = resolved(f"{task}_supervised")
    for name, differences in UNMATCHED_INITIALIZATIONS.items():
        assert resolved(f"{task}_{name}") == reference | differences


@pytest.mark.parametrize(
    "table", [t for t in paper_tables() if t.task in OURS], ids=lambda table: table.name
)
def test_every_published_row_has_its_run_under_the_published_setting(table):
    for row in table.rows:
        for name in row.names:
            packaged = f"{table.task}_{name}"
            if f"{packaged}.yaml" not in task_configs():
                assert re.sub(r"_(\d+ep|optimal|aa)$", "", name) in OTHERS
                packaged = f"{table.task}_random"  # the task has the setting
            values = resolved(packaged)
            if table.setting:
                images = values["SOLVER.MAX_ITER"] * values["SOLVER.IMS_PER_BATCH"]
                names = values["DATASETS.TRAIN"], values["DATASETS.TEST"]
                assert table.setting.matches(*names, images)


@pytest.mark.parametrize("task", RUN)
def test_full_size_model_builds(task):
    with torch.device("meta"):  # shapes without memory
        model = build_model(load_config(f"{task}_random.yaml", ["MODEL.DEVICE", "meta"]))
    assert sum(p.numel() for p in model.parameters()) > 25e6


@pytest.mark.parametrize("task", [task for task in OURS if task.endswith("_frozen")])
def test_a_frozen_backbone_is_the_whole_resnet_and_nothing_else(task):
    with torch.device("meta"):
        model = build_model(load_config(f"{task}_moco.yaml", ["MODEL.DEVICE", "meta"]))
    tuned = {name for name, p in model.named_parameters() if p.requires_grad}
    resnet = set(pretrained_tensors(model))
    assert resnet and not tuned & resnet
    assert tuned == {name for name, _ in model.named_parameters()} - resnet
    norms = {type(m).__name__ for m in model.backbone.bottom_up.modules() if "Norm" in str(type(m))}
    assert norms == {"FrozenBatchNorm2d"}


@pytest.mark.parametrize("task", RUN)
def test_two_steps_and_an_evaluation(task, real_names, tmp_path, words):
    args = argparse.Namespace(config_file=f"{task}_random.yaml", resume=False, eval_only=False)
    args.force = True  # the shrunken schedule is not the task's
    args.opts = words(SHRUNKEN | {"OUTPUT_DIR": str(tmp_path)})
    train(args)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["run"]["task"] == task
    assert record["run"]["initialisation"] == "random"
    assert record["schedule"]["max_iter"] == 2
    wanted = {metric for t in paper_tables() if t.task == task for metric in t.metrics}
    reported = {f"{group}/{key}" for group, of in record["metrics"].items() for key in of}
    assert wanted <= reported
