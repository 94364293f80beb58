import pytest
import torch
from torchvision import models

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.pretrain.model.encoder import ARCHITECTURES, build_encoder, encoder_options


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_linear_head_is_torchvisions_network(arch):
    with torch.device("meta"):
        found, wanted = build_encoder(arch, dim=128), models.get_model(arch, num_classes=128)
    assert shapes(found) == shapes(wanted)


@pytest.mark.parametrize(("arch", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_mlp_head_has_the_official_names(arch, width):
    with torch.device("meta"):
        network = build_encoder(arch, dim=128, mlp=True)
    head = {name: shape for name, shape in shapes(network).items() if name.startswith("fc")}
    assert head == {
        "fc.0.weight": (width, width),
        "fc.0.bias": (width,),
        "fc.2.weight": (128, width),
        "fc.2.bias": (128,),
    }
    assert isinstance(network.fc[1], torch.nn.ReLU)


def test_width_and_groups_are_those_of_the_config():
    words = ["MOCO.ENCODER.WIDTH_PER_GROUP", "16", "MOCO.ENCODER.GROUPS", "2"]
    options = encoder_options(load_config("moco_v2_R50_200ep.yaml", words))
    with torch.device("meta"):
        network = build_encoder("resnet50", dim=8, **options)
    assert shapes(network)["layer1.0.conv2.weight"] == (32, 16, 3, 3)


def test_width_per_group_is_torchvisions():
    with torch.device("meta"):
        found = shapes(build_encoder("resnet50", dim=8, width_per_group=16))
        wanted = shapes(models.resnet50(num_classes=8, width_per_group=16))
    assert found == wanted
    assert found["layer1.0.conv2.weight"] == (16, 16, 3, 3)


def test_resnext_50_32x8d_has_the_papers_size():
    """Table 1: 46 million parameters."""
    with torch.device("meta"):
        network = build_encoder("resnet50", dim=128, groups=32, width_per_group=8)
    assert network.layer1[0].conv2.weight.shape == (256, 8, 3, 3)
    backbone = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("fc"))
    assert backbone / 1e6 == pytest.approx(46, abs=1)


@pytest.mark.parametrize(("factor", "millions"), [(1, 24), (2, 94), (4, 375)])
def test_wider_networks_have_the_papers_sizes(factor, millions):
    """Table 1's parameters: R50 24, R50w2x 94, R50w4x 375 million, of the backbone."""
    with torch.device("meta"):
        network = build_encoder("resnet50", dim=128, width_factor=factor)
    found, plain = shapes(network), shapes(models.resnet50(num_classes=128))
    assert found.keys() == plain.keys()
    fixed = {"outputs": ("fc.weight", "fc.bias"), "inputs": ("conv1.weight",)}
    for name, shape in plain.items():
        wanted = list(shape)
        if shape and name not in fixed["outputs"]:
            wanted[0] *= factor
        if len(shape) > 1 and name not in fixed["inputs"]:
            wanted[1] *= factor
        assert found[name] == tuple(wanted), name
    backbone = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("fc"))
    assert round(backbone / 1e6) == pytest.approx(millions, rel=0.02)


def test_wider_networks_start_as_torchvisions():
    """Kaiming's initialization, also of the stem, which is made anew."""
    network = build_encoder("resnet18", dim=8, width_factor=2, mlp=True)
    stem = network.conv1.weight
    assert stem.std().item() == pytest.approx((2 / (128 * 7 * 7)) ** 0.5, rel=0.05)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 8)


def test_a_factor_without_whole_channels_is_refused():
    with pytest.raises(UserError, match=r"WIDTH_FACTOR 0\.3 gives 19\.2 channels"):
        build_encoder("resnet18", dim=8, width_factor=0.3)


def test_a_small_stem_keeps_the_resolution():
    network = build_encoder("resnet18", dim=8, small_stem=True)
    sides = []
    network.layer1.register_forward_hook(lambda module, inputs, output: sides.append(output.shape))
    network(torch.zeros(2, 3, 32, 32))
    assert sides == [(2, 64, 32, 32)]


def test_gives_embeddings():
    assert build_encoder("resnet18", dim=5, mlp=True)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_unknown_architecture_is_refused():
    with pytest.raises(KeyError, match="resnet51"):
        build_encoder("resnet51", dim=8)


@pytest.mark.parametrize("option", ["width_per_group", "groups"])
def test_width_and_groups_of_a_basic_block_network_are_refused(option):
    with pytest.raises(UserError, match=r"set MOCO\.ENCODER\.WIDTH_PER_GROUP 64"):
        build_encoder("resnet18", dim=8, **{option: 16})
