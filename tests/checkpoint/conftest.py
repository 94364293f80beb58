"""Real checkpoints of small networks, in the layouts people have."""

import io
from pathlib import Path

import pytest
import torch
from support.checkpoint.reference import NARROW, QUERY, SLIM_18


@pytest.fixture
def small() -> dict[str, torch.Tensor]:
    """A ResNet-18 of a quarter of the width under torchvision's names, without fc."""
    return {name: tensor.clone() for name, tensor in SLIM_18.state(QUERY).items()}


@pytest.fixture
def narrow() -> dict[str, torch.Tensor]:
    """A ResNet-50 of a quarter of the width, with groups of width 16."""
    return {name: tensor.clone() for name, tensor in NARROW.state(QUERY).items()}


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
def checkpoint(official, small) -> bytes:
    """The file of an official MoCo checkpoint of a small network."""
    buffer = io.BytesIO()
    torch.save(official(small), buffer)
    return buffer.getvalue()


@pytest.fixture
def save(tmp_path):
    """Function: content -> path of a file written by torch.save."""

    def write(content, name="source.pth.tar") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write
