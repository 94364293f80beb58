import pytest
import torch

import moco_d2  # noqa: F401  before detectron2
from moco_d2.checkpoint import proof
from moco_d2.checkpoint.mapping import Architecture, detectron2_settings, to_detectron2
from moco_d2.checkpoint.proof import TOLERANCE, prove
from moco_d2.errors import UserError

NARROW = Architecture(50, width_per_group=16, width_factor=0.25)


@pytest.fixture
def reference(narrow):
    return {k: v for k, v in narrow.items() if not k.endswith("num_batches_tracked")}


def weights(tensors):
    content = {to_detectron2(k): v for k, v in tensors.items()}
    return {"model": content, "matching_heuristics": True}


def test_same_network_and_untouched_random_numbers(reference):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    figures = prove(weights(reference), reference, NARROW)
    assert torch.equal(torch.rand(3), expected)
    assert list(figures) == ["res2", "res3", "res4", "res5", "max"]
    assert 0 <= figures["max"] < TOLERANCE


def test_swapped_and_missing_tensors_are_noticed(reference):
    swapped = dict(reference)
    first, second = "layer1.0.conv1.weight", "layer1.0.bn1.bias"
    swapped[first] = reference[first].flip(0)
    with pytest.raises(UserError, match=r"1 of 265 tensors did not arrive.*res2.0.conv1.weight"):
        prove(weights(swapped), reference, NARROW)
    del swapped[second]
    with pytest.raises(UserError, match=r"2 of 265 tensors did not arrive"):
        prove(weights(swapped), reference, NARROW)


def test_a_stride_in_the_wrong_place_is_noticed(reference, monkeypatch):
    """All tensors arrive, yet the network is another one: the MSRA networks' stride in the 1x1."""
    monkeypatch.setattr(
        proof,
        "detectron2_settings",
        lambda a: {**detectron2_settings(a), "MODEL.RESNETS.STRIDE_IN_1X1": True},
    )
    with pytest.raises(UserError, match="res3 features of the converted network differ"):
        prove(weights(reference), reference, NARROW)


def test_a_dead_network_proves_nothing(reference):
    for name in reference:
        if name.startswith("layer4.2"):
            reference[name] = torch.zeros_like(reference[name])
    for name in ("layer4.0.bn3", "layer4.1.bn3", "layer4.0.downsample.1"):
        reference[f"{name}.weight"].zero_()
        reference[f"{name}.bias"].zero_()
    with pytest.raises(UserError, match="every res5 feature of a random image is zero"):
        prove(weights(reference), reference, NARROW)
