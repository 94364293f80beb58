import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone, build_model
from torch import nn
from torch.nn import functional as F

from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.weights import measure_coverage

# A slim ResNet-50: torchvision's width_per_group=4.
SLIM = ["MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.NORM", "BN", "MODEL.DEVICE", "cpu"]
FC = ["MODEL.ROI_BOX_HEAD.FC_DIM", "8"]
SEGMENTATION_NORM = ["MODEL.SEM_SEG_HEAD.NORM", "BN"]
DILATED = ("voc_dilated_C5", "voc_semantic", "cityscapes_semantic")


def config(task, *overrides):
    return load_config(f"{task}_random.yaml", [*SLIM, *FC, *SEGMENTATION_NORM, *overrides])


@pytest.fixture(scope="module")
def torchvision_network():
    """Random weights, and BatchNorm that does something."""
    torch.manual_seed(0)
    network = build_torchvision(Architecture(50, width_per_group=4)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return network


@pytest.fixture(scope="module")
def converted(torchvision_network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(torchvision_network.state_dict(), folder / "resnet50.pth")
    convert(folder / "resnet50.pth", folder / "converted.pth")
    return folder / "converted.pth"


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("kind", ["", "_fpn"])
@torch.no_grad()
def test_basic_resnets_of_plain_width_are_detectron2s(depth, kind):
    """Names, values and features, against the builder that refuses other widths."""
    task = "coco_FPN_1x" if kind else "voc_C4"
    cfg = config(task, "MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.RES2_OUT_CHANNELS", "64")
    cfg.MODEL.BACKBONE.NAME = f"build_resnet{kind}_backbone"
    theirs = build_backbone(cfg).eval()
    cfg.MODEL.BACKBONE.NAME = f"build_basic_resnet{kind}"
    ours = build_backbone(cfg).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.output_shape() == theirs.output_shape()
    images = torch.randn(1, 3, 64, 96)
    for name, wanted in theirs(images).items():
        assert torch.equal(ours(images)[name], wanted)


@pytest.mark.parametrize("kind", ["", "_fpn"])
def test_a_detector_of_half_the_width(kind):
    task = "coco_FPN_1x" if kind else "coco_C4_1x"
    cfg = config(task, "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32")
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 32
    cfg.MODEL.BACKBONE.NAME = f"build_basic_resnet{kind}"
    backbone = build_model(cfg).backbone
    stages = getattr(backbone, "bottom_up", backbone)
    (last,) = stages(torch.randn(2, 3, 64, 64))[stages._out_features[-1]].shape[1:2]
    assert last == (256 if kind else 128)


@pytest.mark.parametrize("task", DILATED)
@torch.no_grad()
def test_converted_weights_arrive_completely_and_compute_what_torchvision_computes(
    task, converted, torchvision_network
):
    model = build_model(config(task)).eval()
    with measure_coverage(model) as coverage:
        DetectionCheckpointer(model).load(str(converted))
    assert (coverage.result.expected, coverage.result.missing) == (265, ())

    images = torch.randn(2, 3, 70, 97)
    resnet = getattr(model.backbone, "bottom_up", model.backbone)
    torch.testing.assert_close(
        resnet(images)["res5"], dilated_conv5(torchvision_network, images), rtol=1e-4, atol=1e-4
    )


def dilated_conv5(network, images):
    """conv5 of a torchvision ResNet, every 3x3 convolution dilated by 2 and of stride 1."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    x = network.layer3(network.layer2(network.layer1(x)))
    for block in network.layer4:
        identity = x
        if block.downsample is not None:
            convolution, norm = block.downsample
            identity = norm(F.conv2d(x, convolution.weight))
        x = block.relu(block.bn1(block.conv1(x)))
        x = F.conv2d(x, block.conv2.weight, padding=2, dilation=2)
        x = block.bn3(block.conv3(block.relu(block.bn2(x))))
        x = block.relu(x + identity)
    return x


@torch.no_grad()
def test_the_neck_is_a_3x3_convolution_to_512_channels_with_batchnorm_and_relu():
    backbone = build_backbone(config("voc_dilated_C5")).eval()
    shape = backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shape.items()} == {"c5": (512, 16)}
    neck = backbone.neck
    assert neck.weight.shape == (512, 2048, 3, 3)
    assert neck.bias is None
    nn.init.uniform_(neck.norm.running_var, 0.5, 2)
    nn.init.normal_(neck.norm.running_mean)

    images = torch.randn(1, 3, 64, 90)
    c5 = backbone(images)["c5"]
    assert c5.shape == (1, 512, 4, 6)
    norm = neck.norm
    expected = F.conv2d(backbone.bottom_up(images)["res5"], neck.weight, padding=1)
    expected = F.batch_norm(
        expected, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    torch.testing.assert_close(c5, expected.clamp(min=0))


def test_rpn_and_box_head_read_the_neck():
    model = build_model(config("voc_dilated_C5"))
    assert model.proposal_generator.rpn_head.conv.in_channels == 512
    assert model.proposal_generator.in_features == ["c5"]
    assert model.roi_heads.box_in_features == ["c5"]
    assert model.roi_heads.box_head.fc1.in_features == 512 * 7 * 7
    assert len(model.roi_heads.box_head.fcs) == 2


def test_the_necks_norm_is_the_backbones():
    assert build_backbone(config("voc_dilated_C5", "MODEL.RESNETS.NORM", "")).neck.norm is None


@pytest.mark.parametrize("task", DILATED)
@pytest.mark.parametrize("depth", [18, 34])
def test_a_resnet_without_bottlenecks_is_refused(task, depth):
    cfg = config(task, "MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.RES2_OUT_CHANNELS", "64")
    with pytest.raises(UserError, match=f"DEPTH is {depth}.*set DEPTH 50 .* or RES5_DILATION 1"):
        build_backbone(cfg)


def test_a_resnet_without_bottlenecks_nor_dilation_is_built():
    cfg = config(
        "voc_dilated_C5",
        *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
        *("MODEL.RESNETS.RES5_DILATION", "1"),
    )
    assert build_backbone(cfg).output_shape()["c5"].stride == 32
