import re

import pytest
import torch

from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.checkpoint.sources import extract, infer_architecture
from moco_d2.errors import UserError


def refusal(checkpoint, branch="query") -> str:
    with pytest.raises(UserError) as caught:
        extract(checkpoint, branch)
    message = str(caught.value)
    assert "\n" not in message and "; " in message
    return message


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("wrapper", ["module.", ""])
def test_official_moco(small, official, wrapper, mlp):
    extracted, architecture = extract(official(small, wrapper, mlp))
    assert (extracted.family, extracted.prefix) == ("moco", f"{wrapper}encoder_q.")
    assert architecture == Architecture(18)
    assert extracted.leftover == []
    head = 4 if mlp else 2
    assert extracted.dropped == {
        f"{wrapper}encoder_k.*": 120 + head,
        f"{wrapper}encoder_q.fc.*": head,
        f"{wrapper}queue": 1,
        f"{wrapper}queue_ptr": 1,
        "*.num_batches_tracked": 20,
    }
    # The query encoder, not the key encoder.
    assert torch.equal(extracted.tensors["conv1.weight"], small["conv1.weight"])


def test_the_key_encoder_on_request(small, official):
    extracted, _ = extract(official(small), branch="key")
    assert extracted.prefix == "module.encoder_k."
    assert extracted.dropped["module.encoder_q.*"] == 122
    assert torch.equal(extracted.tensors["conv1.weight"], small["conv1.weight"] + 1)
    assert "has no key encoder" in refusal(small, branch="key")


def test_a_memory_bank_is_a_known_companion(small, official):
    checkpoint = official(small)
    checkpoint["state_dict"]["module.bank"] = torch.zeros(10, 4)
    assert extract(checkpoint)[0].dropped["module.bank"] == 1


@pytest.mark.parametrize("wrapper", ["module.", ""])
@pytest.mark.parametrize("nested", [True, False])
def test_torchvision(narrow, wrapper, nested):
    state = {f"{wrapper}{k}": v for k, v in narrow.items()}
    state[f"{wrapper}fc.weight"] = torch.zeros(2, 2)
    checkpoint = {"epoch": 1, "state_dict": state, "optimizer": {}} if nested else state
    extracted, architecture = extract(checkpoint)
    assert (extracted.family, extracted.prefix) == ("torchvision", wrapper)
    assert architecture == Architecture(50, width_per_group=16)
    assert extracted.dropped == {f"{wrapper}fc.*": 1, "*.num_batches_tracked": 53}


def test_files_without_trackers_are_complete(small):
    state = {k: v for k, v in small.items() if not k.endswith("num_batches_tracked")}
    assert len(extract(state)[0].tensors) == 100


@pytest.mark.parametrize(
    "architecture",
    [Architecture(d) for d in (18, 34, 50, 101, 152)]
    + [
        Architecture(50, 16),
        Architecture(50, 4, 32),
        Architecture(101, 128),
        Architecture(152, 8, 8),
        Architecture(18, width_factor=2),
        Architecture(50, width_factor=4),
        Architecture(50, 8, 32, width_factor=2),
    ],
    ids=str,
)
def test_architecture_from_shapes(architecture):
    with torch.device("meta"):
        tensors = build_torchvision(architecture).state_dict()
    assert infer_architecture(tensors) == architecture


def test_missing_tensor_is_named(small, official):
    del small["layer3.0.conv1.weight"]
    message = refusal(official(small))
    assert "family 'moco'" in message and "99 of 100" in message and "ResNet-18" in message
    assert "1 missing (module.encoder_q.layer3.0.conv1.weight)" in message


def test_missing_stage_is_counted(small):
    message = refusal({k: v for k, v in small.items() if not k.startswith("layer4")})
    assert "75 of 100" in message and "25 missing" in message and "..." in message


def test_wrong_shape_is_named(small):
    small["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    message = refusal(small)
    assert (
        "1 of another shape (layer2.0.conv1.weight [128, 64, 1, 1] instead of [128, 64, 3, 3])"
        in message
    )


def test_small_image_stem_is_refused(small):
    small["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    assert "conv1.weight [64, 3, 3, 3] instead of [64, 3, 7, 7]" in refusal(small)


@pytest.mark.parametrize(
    "extra", ["layer1.0.se.weight", "module.predictor.weight", "layer1.7.conv1.weight"]
)
def test_unknown_tensor_is_named(small, extra):
    small[extra] = torch.zeros(1)
    assert f"100 of 100 tensors found, 1 unknown ({extra})" in refusal(small)


def test_an_entry_that_is_no_tensor_is_unknown(small):
    small["layer1.0.note"] = "text"
    small[3] = torch.zeros(1)
    assert "2 unknown (layer1.0.note, 3)" in refusal(small)


def test_batchnorm_statistics_are_needed(small):
    message = refusal({k: v for k, v in small.items() if "running" not in k})
    assert "60 of 100" in message and "BatchNorm statistics" in message


@pytest.mark.parametrize(
    ("prefix", "nested"),
    [("backbone.", True), ("model.encoder.", False), ("module.base_encoder.", True)],
)
def test_foreign_prefix_is_named(small, prefix, nested):
    state = {f"{prefix}{k}": v for k, v in small.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(64, 3, 7, 7)}}}
    message = refusal({"state_dict": state, "optimizer": optimizer} if nested else state)
    assert f"stem [64, 3, 7, 7] is there under prefix '{prefix}'" in message
    for accepted in ("'module.encoder_q.'", "'encoder_q.'", "'module.'", "''"):
        assert accepted in message
    assert "momentum_buffer" not in message


def test_indexed_names_are_shown_in_full():
    assert "under 0.weight, where" in refusal({"0.weight": torch.zeros(64, 3, 7, 7)})


def test_foreign_container_is_named(small):
    assert "under prefix '' of checkpoint['model'], where" in refusal({"model": small})


@pytest.mark.parametrize("checkpoint", [{}, {"a": torch.zeros(2)}, {"state_dict": 3}, {1: 2}])
def test_no_network_at_all(checkpoint):
    assert re.search(r"no ResNet backbone among its [01] tensors", refusal(checkpoint))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(small, official, bad):
    small["layer1.0.bn1.running_var"][3] = bad
    message = refusal(official(small))
    assert "module.encoder_q.layer1.0.bn1.running_var holds 1 NaN or infinite" in message


def test_not_floating_point(small):
    small["layer1.0.bn1.weight"] = torch.ones(64, dtype=torch.int8)
    assert "torch.int8" in refusal(small)


def test_converted_already(small):
    assert "already" in refusal({"model": {"stem.conv1.weight": small["conv1.weight"]}})
    assert "already" in refusal({"model": {"backbone.stem.conv1.weight": small["conv1.weight"]}})
