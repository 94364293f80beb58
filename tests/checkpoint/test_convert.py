import argparse
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint.reference import QUERY, R18
from support.commands import run_tool
from support.doc_commands import parse
from support.paths import ROOT, TOOLS

import moco_d2  # noqa: F401  before detectron2
from moco_d2.checkpoint.convert import convert, settings_for, summary
from moco_d2.checkpoint.io import load_checkpoint, read_provenance
from moco_d2.checkpoint.mapping import (
    Architecture,
    build_torchvision,
    detectron2_settings,
    expected_tensors,
    to_detectron2,
)
from moco_d2.checkpoint.targets import TARGETS
from moco_d2.config.load import load_config_of
from moco_d2.errors import UserError
from moco_d2.files import sha256
from moco_d2.pretrain.model.encoder import build_encoder

QUARTER = Architecture(50, width_per_group=16, width_factor=0.25)
SLIM_18 = Architecture(18, width_factor=0.25)


def listing(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*"))


def refusal(src, dst, **arguments) -> str:
    before = listing(src.parent)
    with pytest.raises(UserError) as caught:
        convert(src, dst, **arguments)
    assert listing(src.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_our_pretraining_checkpoint(small, official, save, tmp_path):
    ours = {
        "version": "0.1.0",
        "iteration": 77,
        "rng": {"torch": torch.get_rng_state()},
        "config": {
            "MOCO": {"LR_STEPS": (1, float("inf"))},
            "DATASETS": {"TRAIN": [str(tmp_path / "images")]},
            "OUTPUT_DIR": "output",
        },
    }
    src = save(official(small, mlp=True, extra={"moco_d2": ours}))
    dst, report_file = tmp_path / "new" / "w.pth", tmp_path / "new" / "report.json"
    report = convert(src, dst, report=report_file, expect_depth=18)

    written = load_checkpoint(dst)
    assert written["provenance"] == report == json.loads(report_file.read_text())
    assert len(written["model"]) == report["tensors_found"] == report["tensors_expected"] == 100
    for name in expected_tensors(Architecture(18)):
        assert torch.equal(written["model"][to_detectron2(name)], small[name])
    assert report["source"] == "source.pth.tar" and report["source_sha256"] == sha256(src)
    assert (report["family"], report["prefix"]) == ("moco", "module.encoder_q.")
    assert (report["depth"], report["width_per_group"], report["groups"]) == (18, 64, 1)
    assert report["dropped_keys"]["module.encoder_k.*"] == 120
    assert report["parity"]["max"] < report["parity"]["tolerance"] == 1e-5
    assert report["pretraining"] == {
        "epoch": 3,
        "arch": "resnet",
        "version": "0.1.0",
        "iteration": 77,
        "config": {"MOCO": {"LR_STEPS": [1, "inf"]}, "DATASETS": {"TRAIN": ["images"]}},
    }
    assert str(tmp_path) not in json.dumps(report)
    assert sorted(os.listdir(dst.parent)) == ["report.json", "w.pth"]

    text = summary(report, dst)
    assert (
        "ResNet-18" in text and "100 of 100" in text and "MODEL.RESNETS.STRIDE_IN_1X1 False" in text
    )
    assert "already" in refusal(dst, tmp_path / "again.pth")

    # Without this entry, Detectron2 would load nothing from it.
    bare = {key: value for key, value in written.items() if key != "matching_heuristics"}
    for source in (bare, bare["model"]):
        torch.save(source, tmp_path / "bare.pth")
        convert(tmp_path / "bare.pth", tmp_path / "again.pth")
        again = load_checkpoint(tmp_path / "again.pth")
        assert again["matching_heuristics"] is True
        assert again["model"].keys() == written["model"].keys()


def test_supervised_nested_narrow_half_precision_channels_last(narrow, save, tmp_path):
    """Stored in float16 or with other strides, written as plain float32."""
    state = {
        f"module.{k}": v.to(memory_format=torch.channels_last).half() if v.ndim == 4 else v
        for k, v in narrow.items()
    }
    state["module.fc.weight"] = torch.zeros(5, 512)
    src = save(
        {"epoch": 9, "arch": "resnet50", "state_dict": state, "optimizer": {}, "moco_d2": {}}
    )
    report = convert(src, tmp_path / "w.pth")
    assert (report["family"], report["depth"], report["width_per_group"]) == ("torchvision", 50, 16)
    tensors = load_checkpoint(tmp_path / "w.pth")["model"]
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors.values())


def test_a_view_does_not_drag_its_storage_along(small, save, tmp_path):
    big = torch.randn(200, 16, 3, 7, 7)
    small["conv1.weight"] = big[0]
    convert(save(small), tmp_path / "w.pth")
    expected = sum(4 * shape.numel() for shape in expected_tensors(SLIM_18).values())
    assert (tmp_path / "w.pth").stat().st_size < expected + 200_000


def test_resnet50_at_full_width(save, tmp_path):
    import torchvision

    torch.manual_seed(0)
    report = convert(save(torchvision.models.resnet50().state_dict()), tmp_path / "w.pth")
    assert report["tensors_found"] == 265
    assert report["dropped_keys"] == {"fc.*": 2, "*.num_batches_tracked": 53}
    assert report["parity"]["max"] < 1e-5


def test_a_network_of_twice_the_width(save, tmp_path):
    torch.manual_seed(0)
    state = build_encoder("resnet50", dim=4, width_factor=2, width_per_group=8).state_dict()
    report = convert(save(state), tmp_path / "w.pth")
    assert (report["width_factor"], report["width_per_group"]) == (2, 8)
    assert report["parity"]["max"] < 1e-5
    text = summary(report, tmp_path / "w.pth")
    assert "ResNet-50 of 2 times the width" in text
    assert "MODEL.RESNETS.STEM_OUT_CHANNELS 128" in text


def test_a_wider_network_that_detectron2s_builder_refuses(save, tmp_path):
    state = build_encoder("resnet18", dim=4, width_factor=2).state_dict()
    report = convert(save(state), tmp_path / "w.pth")
    assert report["parity"]["max"] < 1e-5
    assert "MODEL.BACKBONE.NAME build_basic_resnet\n" in summary(report, tmp_path / "w.pth")


def test_the_key_encoder(small, official, save, tmp_path):
    checkpoint = official(small)
    swap = {"encoder_q": "encoder_k", "encoder_k": "encoder_q"}
    checkpoint["state_dict"] = {
        re.sub("encoder_[qk]", lambda found: swap[found[0]], name): tensor
        for name, tensor in checkpoint["state_dict"].items()
    }
    report = convert(save(checkpoint), tmp_path / "w.pth", branch="key")
    assert (report["branch"], report["prefix"]) == ("key", "module.encoder_k.")
    content = torch.load(tmp_path / "w.pth", weights_only=True)["model"]
    assert torch.equal(content["stem.conv1.weight"], small["conv1.weight"])


def test_resnext(save, tmp_path):
    torch.manual_seed(0)
    state = build_torchvision(Architecture(50, width_per_group=2, groups=8)).state_dict()
    report = convert(save(state), tmp_path / "w.pth")
    assert (report["depth"], report["width_per_group"], report["groups"]) == (50, 2, 8)


def test_refusals_write_nothing(small, official, save, tmp_path):
    dst = tmp_path / "folder" / "w.pth"
    good = save(official(small), "good.pth")
    assert "it is a ResNet-18, not a ResNet-50" in refusal(good, dst, expect_depth=50)
    assert ".pth" in refusal(good, tmp_path / "w.bin")
    assert ".pth or .safetensors" in refusal(good, tmp_path / "w.pkl", to="torchvision")
    assert "not one of detectron2, torchvision" in refusal(good, dst, to="keras")
    assert "must be different files" in refusal(good, good.with_suffix(".pth"))
    assert "w.pth is named twice" in refusal(good, dst, report=dst)
    (tmp_path / "circle.pth").symlink_to("circle.pth")
    assert "there is no file" in refusal(tmp_path / "circle.pth", dst)
    # The lock of the destination, which exists meanwhile, is not what was meant.
    meant = refusal(tmp_path / "goood.pth", tmp_path / "gooood.pth")
    assert meant.endswith("goood.pth; did you mean 'good.pth'?")
    assert "is a folder" in refusal(good, dst, report=tmp_path)
    assert "cannot write" in refusal(good, dst, report=good / "report.json")
    assert "cannot write" in refusal(good, good / "w.pth")

    foreign = save({"other.weight": torch.zeros(3)}, "foreign.pth")
    assert str(foreign) in refusal(foreign, dst)
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(good.read_bytes()[:100_000])
    assert "damaged" in refusal(truncated, dst)


def test_a_failed_proof_writes_nothing(small, official, save, tmp_path):
    """Complete and finite, but float32 overflows."""
    for conv in ("conv1", "conv2"):
        small[f"layer2.0.{conv}.weight"].fill_(1e30)
    src = save(official(small))
    dst = tmp_path / "w.pth"
    message = refusal(src, dst, report=tmp_path / "report.json")
    assert "the res3 features that the original network computes" in message
    assert "float32 overflows" in message and "BatchNorm" not in message
    dst.write_bytes(b"the weights of yesterday")
    refusal(src, dst)
    assert dst.read_bytes() == b"the weights of yesterday"


def _cyclic() -> dict:
    cycle: dict = {"list": []}
    cycle["list"].append(cycle)
    return {**cycle, "itself": cycle}


@pytest.mark.parametrize(
    "report",
    [
        3,
        {"preprocessing": {}},
        {"preprocessing": {"format": "RGB", "pixel_mean": ["a"], "pixel_std": 3}},
        {"preprocessing": {"format": "RGB", "pixel_mean": [1, 2, 3], "pixel_std": [0, 0, 0]}},
        {
            "preprocessing": {
                "format": "RGB",
                "pixel_mean": [1, 2, float("nan")],
                "pixel_std": [1] * 3,
            }
        },
        {"preprocessing": {"format": "Lab", "pixel_mean": [1, 2, 3], "pixel_std": [1, 2, 3]}},
        {"preprocessing": _cyclic(), "caveats": 3},
        {
            "preprocessing": {"format": "BGR", "pixel_mean": [1, 2, 3], "pixel_std": [1, 2, 3]},
            "caveats": [_cyclic()],
        },
    ],
    ids=str,
)
def test_a_report_of_anyone_is_no_report(report, small, save, tmp_path):
    named = {
        f"backbone.{to_detectron2(name)}": tensor
        for name, tensor in small.items()
        if not name.endswith("num_batches_tracked")
    }
    converted = convert(save({"model": named, "provenance": report}), tmp_path / "w.pth")
    assert "does not state its input format" in converted["caveats"][0]
    assert converted["preprocessing"]["pixel_mean"] == [123.675, 116.28, 103.53]


@pytest.mark.parametrize("key", ["meta", "cfg", "arch", "args", "epoch", "moco_d2", "provenance"])
def test_what_contains_itself_is_converted_all_the_same(key, small, save, tmp_path):
    cycle = _cyclic()
    for value in (
        cycle,
        cycle["list"],
        argparse.Namespace(a=cycle),
        {"cfg": cycle, "config": cycle},
    ):
        state = {f"backbone.{name}": tensor for name, tensor in small.items()}
        src = save({"meta": {}, "state_dict": state, key: value})
        assert convert(src, tmp_path / "w.pth")["tensors_found"] == 100


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("to", ["detectron2", "torchvision", "timm", "mmdet"])
def test_there_and_back(to, suffix, small, official, save, tmp_path):
    """Every target, and from each back to torchvision's names: not a bit is lost."""
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    if to == "timm":  # which builds no other widths
        small = R18.state(QUERY)
    if suffix not in TARGETS[to].suffixes:
        assert "weights end in" in refusal(save(official(small)), there, to=to)
        return
    first = convert(save(official(small)), there, to=to)
    assert read_provenance(there) == first
    second = convert(there, back, to="torchvision")
    assert second["preprocessing"] == first["preprocessing"]
    state = load_file(back)
    assert state.keys() == set(expected_tensors(Architecture(18)))
    assert all(torch.equal(tensor, small[name]) for name, tensor in state.items())
    convert(back, tmp_path / "again.pth")
    again = load_checkpoint(tmp_path / "again.pth")["model"]
    assert all(torch.equal(again[to_detectron2(name)], small[name]) for name in state)


def test_torchvision_and_detectron2_read_what_is_for_them(narrow, save, tmp_path):
    src = save(narrow)
    convert(src, tmp_path / "tv.pth", to="torchvision")
    network = build_torchvision(QUARTER)
    content = torch.load(tmp_path / "tv.pth", weights_only=True)["state_dict"]
    missing, unexpected = network.load_state_dict(content, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"} and unexpected == []
    convert(src, tmp_path / "w.pkl")
    loaded = _load_in_detector(tmp_path / "w.pkl", QUARTER)
    assert torch.equal(loaded["roi_heads.res5.2.conv3.weight"], narrow["layer4.2.conv3.weight"])


def test_the_config_that_the_weights_need(small, save, tmp_path):
    from detectron2.config import get_cfg

    overlay = tmp_path / "overlay.yaml"
    report = convert(save(small), tmp_path / "w.pth", emit_config=overlay)
    cfg = get_cfg()
    cfg.merge_from_file(str(overlay))
    assert str(tmp_path / "w.pth") == cfg.MODEL.WEIGHTS
    for key, value in settings_for(report).items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value, key
    # The file names no task, so the command that is printed, and stands in the file, does.
    (use,) = re.findall("(?m)^use: (.*)$", summary(report, tmp_path / "w.pth", emit_config=overlay))
    assert use in overlay.read_text().splitlines()[0]
    script, *words = shlex.split(use)
    cfg = load_config_of(parse(ROOT / script, words))
    assert cfg.MOCO.TASK == "voc_C4" and str(tmp_path / "w.pth") == cfg.MODEL.WEIGHTS


def _load_in_detector(weights: Path, architecture: Architecture, *overrides) -> dict:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    settings = {
        **detectron2_settings(architecture),
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    }
    cfg.merge_from_list([x for item in settings.items() for x in item] + list(overrides))
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(weights))
    return model.state_dict()


def test_arrives_in_c4(narrow, official, save, tmp_path):
    convert(save(official(narrow)), tmp_path / "w.pth")
    loaded = _load_in_detector(
        tmp_path / "w.pth",
        QUARTER,
        *("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
    )
    written = load_checkpoint(tmp_path / "w.pth")["model"]
    for name, tensor in written.items():
        where = "roi_heads." if name.startswith("res5.") else "backbone."
        assert torch.equal(loaded[where + name], tensor), name


def test_arrives_in_fpn(narrow, save, tmp_path):
    convert(save(narrow), tmp_path / "w.pth")
    loaded = _load_in_detector(
        tmp_path / "w.pth",
        QUARTER,
        *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.FPN.OUT_CHANNELS", 8),
        *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
        *("MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 8),
    )
    for name, tensor in load_checkpoint(tmp_path / "w.pth")["model"].items():
        assert torch.equal(loaded[f"backbone.bottom_up.{name}"], tensor), name


def test_command_line(small, official, save, tmp_path):
    src, dst, report = save(official(small)), tmp_path / "w.pth", tmp_path / "r.json"

    def run_convert(*arguments):
        return run_tool(TOOLS / "convert.py", *arguments)

    done = run_convert(src, dst, "--report", report)
    assert done.returncode == 0, done.stderr
    assert "100 of 100" in done.stdout and f"MODEL.WEIGHTS {dst}" in done.stdout
    assert json.loads(report.read_text())["depth"] == 18

    text = tmp_path / "text.pth"
    text.write_text("Not Found")
    before = listing(tmp_path)
    refused = run_convert(text, tmp_path / "none.pth")
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert listing(tmp_path) == before
