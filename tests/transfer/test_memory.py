import os

import pytest
import torch
from torch import nn

from moco_d2.config import load_config
from moco_d2.transfer.memory import _SavedBytes, available_bytes, training_bytes

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


def test_what_is_saved_is_counted_once_and_without_the_weights():
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(4, 7)
    saved = _SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda packed: packed):
        model(x).sum()
    # The first layer's input, and the ReLU's output, which the next layer saves too.
    assert saved.elements == x.numel() + 4 * 5


def test_the_machines_memory_is_shared_by_its_processes():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes("cpu", 1) <= physical
    assert available_bytes("cpu", 4) == available_bytes("cpu", 1) // 4
    assert available_bytes("meta", 1) is None
