"""Networks that no tensor tells from a plain ResNet, but a name or a config does."""

import json

import pytest
import torch
from support.checkpoint.dialects import transformers_names
from support.checkpoint.reference import NARROW, QUERY, R18, STRIDE_IN_1X1, Network, parity
from torch import nn

from moco_d2.checkpoint.backbone import load_backbone
from moco_d2.checkpoint.convert import convert, summary
from moco_d2.errors import UserError

# timm's names of networks that have exactly a plain ResNet's tensors and compute other features.
TIMM = ("resnetaa50", "resnetblur18", "resnetblur50")
# Others whose tensors differ as long as nobody has removed some.
OTHERS = (
    *("seresnet50", "ecaresnet50d", "skresnet18", "resnet50d", "resnet50_v1c", "resnetv2_50"),
    *("resnet50_gn", "resnest50d", "resnetrs50", "resnext101d_32x8d", "resnetaa101d"),
)
PLAIN = (
    *(
        "resnet50.a1_in1k",
        "wide_resnet50_2",
        "resnext50_32x4d",
        "tv_resnet34",
        "gluon_resnet50_v1b",
    ),
    *("ResNet50", "resnet50-0676ba61.pth", "mocov2_resnet50_200ep", "resnet50x1", "resnet50_2"),
)


@pytest.fixture
def hub(small, tmp_path):
    """Function: files by name -> a checkpoint beside them, as the Hugging Face hub has it."""

    def write(**files):
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        torch.save(small, tmp_path / "pytorch_model.bin")
        return tmp_path / "pytorch_model.bin"

    return write


@pytest.mark.parametrize("name", [*TIMM, *OTHERS])
def test_the_name_of_another_network_is_refused_wherever_it_is(name, small, save, hub, tmp_path):
    for source, where in (
        (save(small, f"{name}_a1h-4cf422b3.pth"), "its file name"),
        (save({"arch": name, "state_dict": small}), "its entry 'arch'"),
        (hub(config={"architecture": name}), "the config.json beside it"),
    ):
        with pytest.raises(UserError, match=f"{where} says '{name}.*not those of the plain ResNet"):
            convert(source, tmp_path / "w.pth")
        with pytest.raises(UserError, match=where):
            load_backbone(source)
    assert not (tmp_path / "w.pth").exists()


@pytest.mark.parametrize("name", PLAIN)
def test_the_name_of_a_plain_network_is_none_of_these(name, small, save, hub, tmp_path):
    for source in (
        save({"arch": name, "state_dict": small}, f"{name}.pth"),
        hub(config={"architecture": name, "num_classes": 1000}),
    ):
        load_backbone(source)


def test_the_input_is_that_of_the_config_beside_the_file(hub, tmp_path):
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # as one of timm's resnet34
    report = convert(
        hub(config={"architecture": "resnet18", "pretrained_cfg": half}), tmp_path / "w.pth"
    )
    assert report["preprocessing"] == {
        "format": "RGB",
        "pixel_mean": [127.5] * 3,
        "pixel_std": [127.5] * 3,
    }
    report = convert(
        hub(
            config={"architectures": ["ResNetModel"]},
            preprocessor_config={"image_mean": [0, 0.25, 1], "image_std": [1, 0.5, 0.25]},
        ),
        tmp_path / "w.pth",
    )
    assert report["preprocessing"]["pixel_mean"] == [0, 63.75, 255]
    assert report["preprocessing"]["pixel_std"] == [255, 127.5, 63.75]
    report = convert(
        hub(preprocessor_config={"do_normalize": False, "image_mean": [0.5, 0.5, 0.5]}),
        tmp_path / "w.pth",
    )
    assert report["preprocessing"]["pixel_mean"] == [0, 0, 0]
    assert report["preprocessing"]["pixel_std"] == [255, 255, 255]


@pytest.mark.parametrize(
    "content", ["[1]", '{"architecture": 3, "pretrained_cfg": {"mean": [1e9, "x"]}}']
)
def test_a_config_of_another_program_says_nothing(content, hub, tmp_path):
    source = hub()
    (tmp_path / "config.json").write_text(content)
    report = convert(source, tmp_path / "w.pth")
    assert report["preprocessing"]["pixel_mean"] == [123.675, 116.28, 103.53]


def test_the_summary_says_what_the_proof_cannot_see(hub, tmp_path):
    text = summary(convert(hub(), tmp_path / "w.pth"), tmp_path / "w.pth")
    (line,) = (line for line in text.splitlines() if line.startswith("assumed: "))
    assert "torchvision's ResNet-18" in line
    assert all(word in line for word in ("cannot see", "strides", "anti-aliasing", "input format"))


class HuggingFaceResNet(nn.Module):
    """ResNetModel of transformers."""

    def __init__(self, *, bottleneck: bool, depths, sizes, reduced, downsample_in_bottleneck=False):
        super().__init__()
        self.embedder = nn.Module()
        inputs = sizes[0] // 4 if bottleneck else sizes[0]
        self.embedder.embedder = self.convolution(3, inputs, 7, stride=2)
        self.encoder = nn.Module()
        self.encoder.stages = nn.ModuleList()
        for stage, (depth, outputs) in enumerate(zip(depths, sizes, strict=True)):
            layers = nn.Sequential()
            for block in range(depth):
                stride = 2 if stage and not block else 1
                layer = nn.Module()
                if bottleneck:
                    inner = reduced * 2**stage
                    strides = (stride, 1) if downsample_in_bottleneck else (1, stride)
                    layer.layer = nn.Sequential(
                        self.convolution(inputs, inner, 1, stride=strides[0]),
                        self.convolution(inner, inner, 3, stride=strides[1]),
                        self.convolution(inner, outputs, 1, activation=nn.Identity()),
                    )
                else:
                    layer.layer = nn.Sequential(
                        self.convolution(inputs, outputs, 3, stride=stride),
                        self.convolution(outputs, outputs, 3, activation=nn.Identity()),
                    )
                if inputs != outputs or stride != 1:
                    layer.shortcut = self.convolution(inputs, outputs, 1, stride=stride)
                    del layer.shortcut.activation
                inputs = outputs
                layers.append(layer)
            holder = nn.Module()
            holder.layers = layers
            self.encoder.stages.append(holder)

    @staticmethod
    def convolution(inputs, outputs, size, stride=1, activation=None):
        module = nn.Sequential()
        module.convolution = nn.Conv2d(
            inputs, outputs, size, stride=stride, padding=size // 2, bias=False
        )
        module.normalization = nn.BatchNorm2d(outputs)
        module.activation = activation or nn.ReLU()
        return module

    def forward(self, x):
        x = nn.functional.max_pool2d(self.embedder.embedder(x), 3, stride=2, padding=1)
        for stage in self.encoder.stages:
            for layer in stage.layers:
                shortcut = layer.shortcut(x) if hasattr(layer, "shortcut") else x
                x = torch.relu(layer.layer(x) + shortcut)
        return x


BOTTLENECK = {"bottleneck": True, "depths": (3, 4, 6, 3), "sizes": (64, 128, 256, 512)}
BASIC = {"bottleneck": False, "depths": (2, 2, 2, 2), "sizes": (64, 128, 256, 512), "reduced": 0}


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (R18, BASIC),
        (NARROW, {**BOTTLENECK, "reduced": 4}),
        (STRIDE_IN_1X1, {**BOTTLENECK, "reduced": 4, "downsample_in_bottleneck": True}),
    ],
    ids=["basic", "bottleneck", "downsample_in_bottleneck"],
)
@torch.inference_mode()
def test_transformers_network_computes_the_same_features(network: Network, options, tmp_path):
    state = network.state(QUERY)
    theirs = HuggingFaceResNet(**options).eval()
    theirs.load_state_dict(transformers_names(state))
    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": options.get("downsample_in_bottleneck", False),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    report = convert(tmp_path / "pytorch_model.bin", tmp_path / "w.pth")
    assert (report["family"], report["stride_in_1x1"]) == ("transformers", network.stride_in_1x1)
    assert parity(network, state, tmp_path / "w.pth") < 1e-5
    image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    ours = network.build(0)
    ours.load_state_dict(state)
    x = ours.maxpool(ours.relu(ours.bn1(ours.conv1(image))))
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(ours, layer)(x)
    torch.testing.assert_close(theirs(image), x)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
    ids=["downsample", "activation"],
)
def test_other_arithmetic_of_transformers_is_refused(setting, words, tmp_path):
    config = {"architectures": ["ResNetModel"], "model_type": "resnet", **setting}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(transformers_names(R18.state(QUERY)), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"config\.json says .*{words}"):
        convert(tmp_path / "pytorch_model.bin", tmp_path / "w.pth")
