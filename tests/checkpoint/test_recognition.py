import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from moco_d2.checkpoint.dialects import DETECTRON2, INDEXED, TORCHVISION, split
from moco_d2.checkpoint.mapping import Architecture, build_torchvision, infer_architecture
from moco_d2.checkpoint.recognition import check_values, extract
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
    assert architecture == Architecture(18, width_factor=0.25)
    head = 4 if mlp else 2
    assert extracted.dropped == {
        f"{wrapper}encoder_k.*": 120,
        "encoder_k.fc.*": head,
        "encoder_q.fc.*": head,
        "queue": 1,
        "queue_ptr": 1,
        "*.num_batches_tracked": 20,
    }
    # The query encoder, not the key encoder.
    assert torch.equal(extracted.tensors["conv1.weight"], small["conv1.weight"])


def test_the_key_encoder_on_request(small, official):
    extracted, _ = extract(official(small), branch="key")
    assert extracted.prefix == "module.encoder_k."
    assert extracted.dropped["module.encoder_q.*"] == 120
    assert torch.equal(extracted.tensors["conv1.weight"], small["conv1.weight"] + 1)
    assert "has no key encoder" in refusal(small, branch="key")


def test_a_memory_bank_is_a_known_companion(small, official):
    checkpoint = official(small)
    checkpoint["state_dict"]["bank"] = torch.zeros(10, 4)
    assert extract(checkpoint)[0].dropped["bank"] == 1


@pytest.mark.parametrize("wrapper", ["module.", ""])
@pytest.mark.parametrize("nested", [True, False])
def test_torchvision(narrow, wrapper, nested):
    state = {f"{wrapper}{k}": v for k, v in narrow.items()}
    state[f"{wrapper}fc.weight"] = torch.zeros(2, 2)
    checkpoint = {"epoch": 1, "state_dict": state, "optimizer": {}} if nested else state
    extracted, architecture = extract(checkpoint)
    assert (extracted.family, extracted.prefix) == ("torchvision", wrapper)
    assert architecture == Architecture(50, width_per_group=16, width_factor=0.25)
    assert extracted.dropped == {"fc.*": 1, "*.num_batches_tracked": 53}


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
    small["layer2.0.conv1.weight"] = torch.zeros(32, 16, 1, 1)
    message = refusal(small)
    assert (
        "1 of another shape (layer2.0.conv1.weight [32, 16, 1, 1] instead of [32, 16, 3, 3])"
        in message
    )


@pytest.mark.parametrize(
    ("channels", "kind"),
    [(1, "gray images"), (2, "Lab"), (4, "infrared"), (6, "other channels"), (13, "Sentinel-2")],
)
def test_images_of_other_channels_are_named(small, channels, kind):
    small["conv1.weight"] = torch.zeros(16, channels, 7, 7)
    message = refusal(small)
    assert f"takes {channels} channel(s) (" in message and kind in message
    assert "which have 3" in message


@pytest.mark.parametrize(
    ("block", "blocks", "depth"),
    [
        (Bottleneck, [2, 2, 2, 2], 26),
        (Bottleneck, [1, 1, 1, 1], 14),
        (Bottleneck, [3, 24, 36, 3], 200),
        (BasicBlock, [1, 1, 1, 1], 10),
    ],
)
def test_another_depth_is_named(block, blocks, depth):
    with torch.device("meta"):
        state = ResNet(block, blocks, width_per_group=64 if block is BasicBlock else 4).state_dict()
    for drop in ((), ("layer*",)):  # what a ResNet-200 has more than a ResNet-152 is part of it
        with pytest.raises(UserError, match=f"it is a ResNet-{depth}, but Detectron2 builds"):
            extract(state, drop=drop)


def test_group_norm_is_named(official):
    network = ResNet(BasicBlock, [2, 2, 2, 2], norm_layer=lambda width: nn.GroupNorm(32, width))
    state = {name: t for name, t in network.state_dict().items() if not name.startswith("fc.")}
    for checkpoint in (state, official(state)):
        assert "a norm without statistics (GroupNorm)" in refusal(checkpoint)


def test_small_image_stem_is_refused(small):
    small["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    assert "3x3 convolution for small images" in refusal(small)


@pytest.mark.parametrize(
    "extra", ["layer1.0.se.weight", "module.predictor.weight", "layer1.7.conv1.weight"]
)
def test_unknown_tensor_is_named(small, extra):
    small[extra] = torch.zeros(1)
    assert f"100 of 100 tensors found, 1 unknown ({extra})" in refusal(small)


def test_a_tensor_without_a_name_is_unknown(small):
    small["layer1.0.note"] = "text"  # is no weight
    small[3] = torch.zeros(1)
    assert "1 unknown (3)" in refusal(small)


def test_batchnorm_statistics_are_needed(small):
    message = refusal({k: v for k, v in small.items() if "running" not in k})
    assert "60 of 100" in message and "BatchNorm statistics" in message


@pytest.mark.parametrize(
    ("container", "prefix"),
    [("state_dict", "backbone."), ("", "model.encoder."), ("a.b.c", "x.y."), ("model", "")],
)
def test_a_backbone_is_one_wherever_it_is(small, container, prefix):
    checkpoint = {f"{prefix}{k}": v for k, v in small.items()}
    for name in reversed(container.split(".") if container else []):
        checkpoint = {name: checkpoint, "optimizer": {"state": {0: torch.zeros(64, 3, 7, 7)}}}
    extracted, _ = extract(checkpoint)
    assert (extracted.family, extracted.container, extracted.prefix) == ("other", container, prefix)
    assert "assumed" in extracted.traits.caveats[0]
    assert torch.equal(extracted.tensors["conv1.weight"], small["conv1.weight"])


def test_what_is_unknown_beside_the_backbone_can_be_left_behind(small):
    checkpoint = {f"backbone.{k}": v for k, v in small.items()} | {"gate.weight": torch.zeros(1)}
    assert "1 unknown (gate.weight)" in refusal(checkpoint) and "--drop" in refusal(checkpoint)
    assert extract(checkpoint, drop=("gate.*",))[0].dropped["gate.*"] == 1


@pytest.mark.parametrize(
    ("extra", "prefix"),
    [
        ("layer1.0.se.fc1.weight", ""),
        ("layer4.1.conv_eca.conv.weight", "module."),
        ("layer2.attention.weight", "module."),
        ("conv1.bias", ""),
        ("layer3.1.conv1.bias", "encoder_q."),
    ],
)
def test_no_tensor_among_the_layers_can_be_left_out(small, extra, prefix):
    """Not by --drop, and not as a known companion of a family, either."""
    checkpoint = {f"{prefix}{k}": v for k, v in small.items()} | {prefix + extra: torch.zeros(1)}
    for drop in ((), ("*",), (f"*{extra}",)):
        with pytest.raises(UserError) as caught:
            extract({"state_dict": checkpoint, "meta": {}}, drop=drop)
        assert f"1 unknown ({prefix}{extra})" in str(caught.value)
        assert "another architecture" in str(caught.value) and "--drop" not in str(caught.value)


def test_a_companion_pattern_drops_nothing_of_the_network(small):
    """OpenSelfSup's training files: encoder_[qk].* are companions, and the network is in them."""
    state = {f"encoder_{b}.0.{k}": v for b in "qk" for k, v in small.items()}
    state["encoder_q.1.mlp.0.weight"] = torch.zeros(2)
    assert extract({"meta": {}, "state_dict": state})[0].family == "openselfsup_training"
    state["encoder_q.0.layer1.0.se.fc1.weight"] = torch.zeros(2)
    with pytest.raises(UserError, match=r"1 unknown \(encoder_q\.0\.layer1\.0\.se"):
        extract({"meta": {}, "state_dict": state})


def test_wrappers_inside_the_network(small):
    """torch.compile of a stage or a block."""
    compiled = {
        k.replace("layer2.", "layer2._orig_mod.").replace("layer3.0.", "layer3.0._orig_mod."): v
        for k, v in small.items()
    }
    assert compiled.keys() != small.keys()
    extracted, _ = extract(compiled)
    assert all(torch.equal(extracted.tensors[k], small[k]) for k in extracted.tensors)
    with pytest.raises(UserError, match=r"two tensors layer2\.0\.conv1\.weight"):
        extract(small | compiled)


def test_two_different_networks_are_refused_and_two_equal_ones_are_one(small):
    first = {f"a.{k}": v for k, v in small.items()}
    assert extract(first | {f"b.{k}": v.clone() for k, v in small.items()})[0].prefix == "a."
    other = {f"b.{k}": v + (v.dtype == torch.float32) for k, v in small.items()}
    assert "two different networks, under ':a.' and ':b.'" in refusal(first | other)


def test_a_damaged_network_is_not_replaced_by_its_average(small, official):
    checkpoint = official(small)
    del checkpoint["state_dict"]["module.encoder_q.layer1.0.conv1.weight"]
    assert "1 missing (module.encoder_q.layer1.0.conv1.weight)" in refusal(checkpoint)
    alone = {f"teacher.{k}": v for k, v in small.items()}
    assert "moving average" in " ".join(extract(alone)[0].traits.caveats)


def test_nesting_without_end(small):
    checkpoint = {"state_dict": small}
    checkpoint["state_dict"]["again"] = checkpoint
    checkpoint["list"] = [checkpoint]
    checkpoint["list"].append(checkpoint["list"])
    assert len(extract(checkpoint)[0].tensors) == 100


def test_the_backbone_of_a_detector(small):
    from moco_d2.checkpoint.mapping import to_detectron2

    tensors = {k: v for k, v in small.items() if not k.endswith("num_batches_tracked")}
    names = {k: to_detectron2(k) for k in tensors}
    c4 = {
        ("roi_heads." if theirs.startswith("res5.") else "backbone.") + theirs: tensors[ours]
        for ours, theirs in names.items()
    }
    fpn = {f"backbone.bottom_up.{theirs}": tensors[ours] for ours, theirs in names.items()}
    heads = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(2)}
    fpn["backbone.fpn_lateral2.weight"] = torch.zeros(2)
    c4["roi_heads.res5.norm.weight"] = torch.zeros(2)
    for detector in (c4, fpn):
        extracted, _ = extract({"model": detector | heads, "iteration": 3})
        assert extracted.family == extracted.dialect == "detectron2"
        assert all(torch.equal(extracted.tensors[name], tensors[name]) for name in tensors)
        assert "does not state its input format" in extracted.traits.caveats[0]


@pytest.mark.parametrize(
    "checkpoint", [{}, {"state_dict": 3}, {1: 2}, {"optimizer": {"state": {}, "param_groups": []}}]
)
def test_no_tensors_of_a_network(checkpoint):
    assert "it holds no tensors of a network" in refusal(checkpoint)


def test_no_network_at_all():
    assert "no ResNet backbone among its 1 tensors" in refusal({"a": torch.zeros(2)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(small, official, bad):
    small["layer1.0.bn1.running_var"][3] = bad
    message = refusal(official(small))
    assert "module.encoder_q.layer1.0.bn1.running_var holds 1 NaN or infinite" in message


def test_a_negative_variance(small, official):
    small["layer1.0.bn1.running_var"][3] = -1e-9
    assert "module.encoder_q.layer1.0.bn1.running_var holds a neg" in refusal(official(small))


def test_a_number_that_float32_does_not_hold(small):
    small["layer1.0.bn1.weight"] = torch.full((16,), 1e300, dtype=torch.float64)
    assert "layer1.0.bn1.weight holds 16 NaN or infinite" in refusal(small)


def test_a_name_is_split_in_the_order_of_the_dialects_with_the_shortest_prefix():
    assert split("a.stem.conv1.weight") == [
        (TORCHVISION, "a.stem.", "conv1.weight"),
        (DETECTRON2, "a.", "conv1.weight"),
    ]
    assert split("4.0.downsample.0.weight")[-1] == (INDEXED, "", "layer1.0.downsample.0.weight")


def test_finite_values_may_have_a_sum_that_is_not_finite():
    check_values({}, {"a": torch.full((2,), 3e38)})
    with pytest.raises(UserError, match="a holds 1 NaN or infinite"):
        check_values({}, {"a": torch.tensor([3e38, 3e38, float("-inf")])})


FLOAT_8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


@pytest.mark.parametrize("precision", FLOAT_8)
def test_eight_bits_are_those_of_a_quantized_network(small, precision):
    small["layer1.0.conv1.weight"] = small["layer1.0.conv1.weight"].to(getattr(torch, precision))
    message = refusal(small)
    assert "layer1.0.conv1.weight is not a dense floating-point tensor of 16 bits" in message
    assert f"(torch.{precision}); use the unquantized checkpoint" in message


def test_not_floating_point(small):
    small["layer1.0.bn1.weight"] = torch.ones(16, dtype=torch.int8)
    assert "torch.int8" in refusal(small)
