import pytest
import torch
import torchvision

import moco_d2  # noqa: F401  before detectron2
from moco_d2.checkpoint.mapping import (
    Architecture,
    detectron2_settings,
    expected_tensors,
    to_detectron2,
    to_torchvision,
)

# Tensors without num_batches_tracked: 5 for each convolution and its BatchNorm.
ARCHITECTURES = [
    (Architecture(18), 100),
    (Architecture(34), 180),
    (Architecture(50), 265),
    (Architecture(50, width_per_group=16), 265),
    (Architecture(50, width_per_group=4, groups=32), 265),
    (Architecture(101), 520),
    (Architecture(152), 775),
]


@pytest.mark.parametrize(("architecture", "count"), ARCHITECTURES, ids=str)
def test_template_is_detectron2s_backbone(architecture, count):
    """Names and shapes, against the independent implementation in Detectron2."""
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    cfg = get_cfg()
    cfg.merge_from_list([x for item in detectron2_settings(architecture).items() for x in item])
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    with torch.device("meta"):
        backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    theirs = {
        name: tensor.shape
        for name, tensor in backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    template = expected_tensors(architecture)
    assert len(template) == count
    assert {to_detectron2(name): shape for name, shape in template.items()} == theirs
    assert [to_torchvision(to_detectron2(name)) for name in template] == list(template)


def test_resnet50_counts():
    """318 tensors without fc, 53 of them num_batches_tracked."""
    with torch.device("meta"):
        names = [n for n in torchvision.models.resnet50().state_dict() if not n.startswith("fc.")]
    trackers = [n for n in names if n.endswith("num_batches_tracked")]
    assert (len(names), len(trackers)) == (318, 53)
    assert set(expected_tensors(Architecture(50))) == set(names) - set(trackers)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv2.weight", "res2.0.conv2.weight"),
        ("layer3.5.bn3.bias", "res4.5.conv3.norm.bias"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
    ],
)
def test_names_of_the_official_converter(theirs, ours):
    assert to_detectron2(theirs) == ours
    assert to_torchvision(ours) == theirs


@pytest.mark.parametrize(
    "name", ["fc.weight", "layer5.0.conv1.weight", "layer1.x.conv1.weight", ""]
)
def test_foreign_names_are_refused(name):
    with pytest.raises(ValueError, match="not a tensor of a ResNet backbone"):
        to_detectron2(name)
