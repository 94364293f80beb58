"""The files of other libraries, with the layouts that campaigns/vit_files.py has recorded: each is
converted or refused as the page says, and the converted ones arrive whole in a detector's ViT.
"""

import json

import pytest
import torch
from support.checkpoint.outcomes import COMMITTED_TABLE
from support.checkpoint.vit_files import (
    RESULT,
    arrived,
    differences,
    layout_of,
    section,
    write_again,
)
from support.checkpoint.vits import HEADS, WIDTH
from support.transfer.mains_vit import mains_vit
from torchvision.models import VisionTransformer

import moco_d2  # noqa: F401  before detectron2
from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.vit.names import FAMILIES
from moco_d2.errors import UserError
from moco_d2.transfer.modeling.vit import ViT

RESULTS = json.loads(RESULT.read_text())
FILES = RESULTS["files"]
REFUSED = [file for file in FILES if "refused" in file["outcome"]]
CONVERTED = [file for file in FILES if "refused" not in file["outcome"]]


def each(files):
    return pytest.mark.parametrize(
        "file", files, ids=[f"{file['library']}-{file['class']}-{file['title']}" for file in files]
    )


def test_the_page_is_made_from_the_result():
    assert COMMITTED_TABLE.read_text().endswith(section(RESULTS))


def test_at_least_25_files_of_all_libraries_are_converted():
    assert len(CONVERTED) >= 25
    libraries = {"timm", "lightly", "transformers", "torchvision", "layout"}
    assert {file["library"] for file in CONVERTED} == libraries
    assert {file["library"] for file in REFUSED} >= {"timm", "transformers", "open_clip", "layout"}
    for file in CONVERTED:
        assert max(file["outcome"][of] for of in ("v0.6", "main")) < 1e-4
    known = {family.name for family in FAMILIES}
    assert {file["outcome"]["family"] for file in CONVERTED} >= known - {"other_vit"}


@each(CONVERTED)
def test_a_converted_file_arrives_whole(file, tmp_path):
    outcome = file["outcome"]
    report = convert(write_again(file, tmp_path), tmp_path / "w.pth", **file["arguments"])
    assert (report["family"], report["prefix"]) == (outcome["family"], outcome["prefix"])
    assert report["tensors_found"] == report["tensors_expected"] == outcome["tensors"]
    assert (report["vit"]["heads"], report["caveats"]) == (outcome["heads"], outcome["caveats"])
    arrived(ViT, report, tmp_path / "w.pth", 224)
    with mains_vit() as module:
        if module is not None:
            arrived(module.ViT, report, tmp_path / "w.pth", 224)


AVERAGES = {
    ("layout", "MoCo v3", "vit_small, 12 heads"): "state_dict:module.momentum_encoder.",
    ("layout", "DINO", "training"): "teacher:backbone.",
    ("layout", "iBOT", "training"): "teacher:backbone.",
    ("timm", "deit_tiny_patch16_224", "training, with its moving average"): "state_dict_ema:",
    ("lightly", "MaskedVisionTransformerTIMM, DINOProjectionHead", "DINO"):
        "state_dict:teacher_backbone.vit.",
    ("lightly", "MaskedVisionTransformerTIMM, MSNProjectionHead", "MSN"):
        "state_dict:backbone.vit.",
}  # fmt: skip


@pytest.mark.parametrize("of", AVERAGES, ids=" ".join)
def test_a_moving_average_is_converted_if_asked_for(of, tmp_path):
    (file,) = (f for f in FILES if (f["library"], f["class"], f["title"]) == of)
    source, weights = write_again(file, tmp_path), tmp_path / "w.pth"
    report = convert(source, weights, branch="key", **file["arguments"])
    assert f"{report['container']}:{report['prefix']}" == AVERAGES[of]


@each(REFUSED)
def test_a_refused_file_has_its_reason(file, tmp_path):
    source = write_again(file, tmp_path)
    with pytest.raises(UserError) as caught:
        convert(source, tmp_path / "w.pth", **file["arguments"])
    assert str(caught.value) == f"{source}: {file['outcome']['refused']}"
    assert not (tmp_path / "w.pth").exists()


def test_a_layout_keeps_names_shapes_and_types(tmp_path):
    content = {
        "state_dict": {
            "a.0.weight": torch.zeros(2, 3),
            "a.1.weight": torch.zeros(2, 3),
            "b.0.weight": torch.zeros(2),
            "b.1.weight": torch.zeros(3),
            "index": torch.zeros(2, dtype=torch.int64),
        },
        "arch": "vit",
    }
    layout = layout_of(content)
    assert layout["state_dict"].keys() == {"a.#.weight", "b.0.weight", "b.1.weight", "index"}
    file = {"layout": layout, "file": "file.pth", "beside": {}}
    again = load_checkpoint(write_again(file, tmp_path))
    assert again["arch"] == "vit" and layout_of(again) == layout
    assert {name: tensor.shape for name, tensor in again["state_dict"].items()} == {
        name: tensor.shape for name, tensor in content["state_dict"].items()
    }


@torch.inference_mode()
def test_the_measured_difference_sees_other_heads(save, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(224, 16, 2, HEADS, WIDTH, 4 * WIDTH, num_classes=5).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0.05, 0.2)
        image = torch.randn(1, 3, 224, 224)
    x = network.conv_proj(image).flatten(2).transpose(1, 2)
    x = network.encoder.layers(x + network.encoder.pos_embedding[:, 1:])
    features = x.transpose(1, 2).reshape(1, WIDTH, 14, 14)
    for heads, is_right in ((HEADS, True), (2 * HEADS, False)):
        report = convert(save(network.state_dict()), tmp_path / "w.pth", heads=heads)
        found = differences(report, tmp_path / "w.pth", {"image": image, "features": features})
        assert found["v0.6"] is not None
        assert all((d < 1e-5) is is_right for d in found.values() if d is not None)
