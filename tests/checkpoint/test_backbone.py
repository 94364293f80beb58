"""A backbone from a checkpoint: the same features as the network that was saved."""

import pytest
import torch

from moco_d2.checkpoint.backbone import load_backbone, random_backbone
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.errors import UserError
from moco_d2.files import sha256


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", ["moco", "torchvision"])
def test_features_are_those_of_the_saved_network(small, official, save, images, layout):
    head = {"fc.weight": torch.zeros(3, 128), "fc.bias": torch.zeros(3)}
    path = save(official(small) if layout == "moco" else {**small, **head})
    network, architecture, origin = load_backbone(path)
    reference = build_torchvision(architecture)
    reference.load_state_dict(small, strict=False)
    reference.fc = torch.nn.Identity()
    with torch.no_grad():
        features = network.eval()(images)
        torch.testing.assert_close(features, reference.eval()(images), rtol=0, atol=0)
    assert features.shape == (2, architecture.num_features)
    assert architecture.depth == 18
    assert (origin.source, origin.sha256, origin.family) == (path.name, sha256(path), layout)


def test_bottleneck_and_width_are_read_from_the_file(narrow, official, save, images):
    network, architecture, _ = load_backbone(save(official(narrow)))
    assert (architecture.depth, architecture.width_per_group) == (50, 16)
    assert architecture.num_features == network.eval()(images).shape[1] == 512


def test_random_backbone_follows_the_seed(images):
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network, _, origin = random_backbone("resnet18")
        outputs.append(network.eval()(images))
    assert origin.sha256 is None
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_refusals_name_file_and_fix(save, small, tmp_path):
    with pytest.raises(UserError, match=r"resnet19.*did you mean"):
        random_backbone("resnet19")
    with pytest.raises(UserError, match="there is no file"):
        load_backbone(tmp_path / "absent.pth")
    del small["layer1.0.conv1.weight"]
    with pytest.raises(UserError, match=r"cut\.pth.*layer1\.0\.conv1\.weight"):
        load_backbone(save(small, "cut.pth"))
    with pytest.raises(UserError, match="must be query or key"):
        load_backbone(tmp_path / "absent.pth", branch="teacher")


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("width_factor", [1, 2, 0.5])
def test_an_architecture_knows_the_width_of_its_features(depth, width_factor):
    architecture = Architecture(depth, width_factor=width_factor)
    with torch.device("meta"):
        network = build_torchvision(architecture).eval()
        network.fc = torch.nn.Identity()
        features = network(torch.empty(1, 3, 64, 64))
    assert architecture.num_features == features.shape[1]
