"""Real checkpoints of small networks, in the layouts people have."""

from pathlib import Path

import pytest
import torch

from moco_d2.checkpoint.mapping import Architecture, build_torchvision

SMALL = Architecture(depth=18)
NARROW = Architecture(depth=50, width_per_group=16)


def _state_dict(architecture: Architecture) -> dict[str, torch.Tensor]:
    """A ResNet whose BatchNorm has seen data, without ``fc``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_torchvision(architecture)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.1)
    return {name: t for name, t in network.state_dict().items() if not name.startswith("fc.")}


@pytest.fixture(scope="session")
def _small() -> dict[str, torch.Tensor]:
    return _state_dict(SMALL)


@pytest.fixture(scope="session")
def _narrow() -> dict[str, torch.Tensor]:
    return _state_dict(NARROW)


@pytest.fixture
def small(_small) -> dict[str, torch.Tensor]:
    """A ResNet-18 under torchvision names, without fc."""
    return {name: tensor.clone() for name, tensor in _small.items()}


@pytest.fixture
def narrow(_narrow) -> dict[str, torch.Tensor]:
    """A ResNet-50 of width 16."""
    return {name: tensor.clone() for name, tensor in _narrow.items()}


@pytest.fixture
def official():
    """Function: backbone -> checkpoint as main_moco.py saves it."""

    def build(state, wrapper="module.", mlp=False, extra=None):
        features = state["layer4.1.bn2.weight"].numel() if "layer4.1.bn2.weight" in state else 2048
        head = (
            {"fc.0.weight": torch.zeros(8, features), "fc.0.bias": torch.zeros(8)}
            | {"fc.2.weight": torch.zeros(4, 8), "fc.2.bias": torch.zeros(4)}
            if mlp
            else {"fc.weight": torch.zeros(4, features), "fc.bias": torch.zeros(4)}
        )
        encoder = {**state, **head}
        names = {f"{wrapper}encoder_q.{k}": v for k, v in encoder.items()}
        names |= {f"{wrapper}encoder_k.{k}": v + 1 for k, v in encoder.items()}
        names |= {f"{wrapper}queue": torch.zeros(4, 16)}
        names |= {f"{wrapper}queue_ptr": torch.zeros(1, dtype=torch.long)}
        return {
            "epoch": 3,
            "arch": "resnet",
            "state_dict": names,
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(64, 3, 7, 7)}}},
            **(extra or {}),
        }

    return build


@pytest.fixture
def save(tmp_path):
    """Function: content -> path of a file written by torch.save."""

    def write(content, name="source.pth.tar") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write
