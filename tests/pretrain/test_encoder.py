import pytest
import torch
from torchvision import models

from moco_d2.errors import UserError
from moco_d2.pretrain.encoder import ARCHITECTURES, build_encoder


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


def test_width_per_group_is_torchvisions():
    with torch.device("meta"):
        found = shapes(build_encoder("resnet50", dim=8, width_per_group=16))
        wanted = shapes(models.resnet50(num_classes=8, width_per_group=16))
    assert found == wanted
    assert found["layer1.0.conv2.weight"] == (16, 16, 3, 3)


def test_gives_embeddings():
    assert build_encoder("resnet18", dim=5, mlp=True)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_unknown_architecture_names_the_closest():
    with pytest.raises(UserError, match=r"MOCO\.ENCODER\.ARCH 'resnet51'.*did you mean 'resnet5"):
        build_encoder("resnet51", dim=8)
    with pytest.raises(UserError) as caught:
        build_encoder("vit", dim=8)
    assert str(caught.value).endswith("choose one of them")


def test_width_of_a_basic_block_network_is_refused():
    with pytest.raises(UserError, match=r"set MOCO\.ENCODER\.WIDTH_PER_GROUP 64"):
        build_encoder("resnet18", dim=8, width_per_group=16)
