import contextlib
import os

import pytest
import torch
from torch import nn

from moco_d2.config.load import load_config
from moco_d2.transfer.preflight import memory
from moco_d2.transfer.preflight.memory import _SavedTensors, available_bytes, training_bytes

# Detectron2's baselines freeze the first stages and all BatchNorm.
FROZEN = (
    *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "2"),
    *("MODEL.FPN.NORM", ""),
)


@pytest.mark.parametrize(
    ("config", "overrides", "published"),
    [
        ("voc_C4_random.yaml", FROZEN, 4.8),
        ("coco_C4_1x_random.yaml", FROZEN, 5.2),
        ("coco_FPN_1x_random.yaml", (*FROZEN, "MODEL.MASK_ON", "False"), 3.0),
        ("coco_FPN_1x_random.yaml", FROZEN, 3.4),
        ("coco_FPN4conv1fc_1x_random.yaml", ("MODEL.BACKBONE.FREEZE_AT", "2"), 5.5),
        ("coco_keypoint_FPN_2x_random.yaml", FROZEN, 5.0),
        ("lvis_v0.5_FPN_1x_random.yaml", FROZEN, 7.1),
    ],
)
def test_near_the_figures_of_detectron2s_model_zoo(config, overrides, published):
    """GB a GPU of 2 images, from its MODEL_ZOO.md."""
    estimate = training_bytes(load_config(config, overrides), 2) / 1e9
    assert estimate == pytest.approx(published, rel=0.15)


def test_tuned_batchnorm_and_more_images_take_more():
    def gigabytes(*overrides, images=2):
        return training_bytes(load_config("coco_FPN_1x_random.yaml", overrides), images) / 1e9

    assert gigabytes() > 1.5 * gigabytes(*FROZEN)
    assert gigabytes("SOLVER.AMP.ENABLED", "True") < 0.7 * gigabytes()
    one, two, three = (gigabytes(images=n) for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=0.01)


@pytest.mark.parametrize(
    ("config", "key", "few", "many", "values", "times"),
    [
        # Once the loss saves all of the logits; they and their gradient are there three times.
        ("cityscapes_semantic", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 9, 19, 769 * 769, 1 + 3),
        ("voc_semantic", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11, 21, 513 * 513, 1 + 3),
        ("coco_keypoint_FPN_2x", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 7, 17, 128 * 56**2, 4),
        # An object's own map is all that the loss needs.
        ("lvis_v0.5_FPN_1x", "MODEL.ROI_HEADS.NUM_CLASSES", 1130, 1230, 128 * 28**2, 3),
    ],
)
def test_logits_of_every_class_are_counted(config, key, few, many, values, times):
    """Values of an image and class: pixels, or 128 objects with a map each. 4 bytes a value."""
    few_classes, many_classes = (
        training_bytes(load_config(f"{config}_random.yaml", [key, str(classes)]), 2)
        for classes in (few, many)
    )
    of_one = (many_classes - few_classes) / (many - few)
    assert of_one == pytest.approx(2 * values * 4 * times, rel=0.1)


@pytest.mark.parametrize("config", ["coco_FPN_1x_random.yaml", "coco_vitdet_Ti_25ep_random.yaml"])
def test_what_torch_is_spared_changes_no_byte(config, monkeypatch):
    cfg = load_config(config)
    faster = training_bytes(cfg, 2)
    monkeypatch.setattr(memory, "shapes_only", contextlib.nullcontext)
    assert training_bytes(cfg, 2) == faster


def test_what_is_saved_is_counted_once_and_without_the_weights():
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(4, 7)
    saved = _SavedTensors(model)
    with saved.counting():
        model(x).sum()
    # The first layer's input, and the ReLU's output, which the next layer saves too.
    assert saved.elements == x.numel() + 4 * 5
    assert saved.largest == x.numel()


def test_the_machines_memory_is_shared_by_its_processes():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes("cpu", 1) <= physical
    assert available_bytes("cpu", 4) == available_bytes("cpu", 1) // 4
    assert available_bytes("meta", 1) is None
