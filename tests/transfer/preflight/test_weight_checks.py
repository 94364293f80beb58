"""Weights of ViTs: what would be missing, left out, or read in another way than it was trained."""

import dataclasses

import pytest
import torch
from support.checkpoint.vits import HEADS, vit

from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.vit.mapping import ViT
from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.plan import LoadedRun, plan_run
from moco_d2.transfer.preflight.check import check, check_arrival
from moco_d2.transfer.preflight.weight_checks import check_coverage, check_provenance
from moco_d2.transfer.weights import Coverage, describe_weights

TASK = "coco_vitdet_Ti_25ep_random.yaml"
TI = ViT(192, 12, 3, 16, 14)
SMALL = (
    *("MOCO.VIT.EMBED_DIM", "48", "MOCO.VIT.DEPTH", "2", "MOCO.VIT.GLOBAL_BLOCKS", "1"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.DEVICE", "cpu", "MOCO.TASK", "own"),
)


def of(network: ViT) -> dict:
    pixels = {"format": "RGB", "pixel_mean": [123.675, 116.28, 103.53]}
    pixels["pixel_std"] = [58.395, 57.12, 57.375]
    return {"preprocessing": pixels, "network": "vit", "vit": dataclasses.asdict(network)}


@pytest.mark.parametrize(
    "changes, key, value, wanted",
    [
        ({"heads": 12}, "HEADS", 3, 12),  # MAE-Lite's ViT-Ti, and no shape shows it
        ({"width": 384}, "EMBED_DIM", 192, 384),
        ({"depth": 24}, "DEPTH", 12, 24),
        ({"grid": 24}, "PRETRAIN_SIZE", 224, 384),
        ({"patch": 8, "grid": 28}, "PATCH_SIZE", 16, 8),
    ],
)
def test_the_network_of_a_config_is_that_of_its_weights(changes, key, value, wanted):
    cfg = load_config(TASK)
    assert check_provenance(cfg, of(TI)) == []
    (found,) = check_provenance(cfg, of(dataclasses.replace(TI, **changes)))
    assert str(found) == (
        f"MOCO.VIT.{key} is {value}: MODEL.WEIGHTS was made with {wanted}; set MOCO.VIT.{key} to "
        "that"
    )
    cfg.MOCO.VIT[key] = wanted
    assert check_provenance(cfg, of(dataclasses.replace(TI, **changes))) == []


def test_the_pixels_of_a_vit_are_those_of_its_weights():
    weights = of(TI)
    weights["preprocessing"]["pixel_mean"] = [127.5] * 3
    (found,) = check_provenance(load_config(TASK), weights)
    assert str(found).startswith("MODEL.PIXEL_MEAN is [123.675, 116.28, 103.53]: MODEL.WEIGHTS was")


def run_of(file, *words):
    cfg = load_config(TASK, [*SMALL, *words, "MODEL.WEIGHTS", str(file)])
    return plan_run(LoadedRun("own.yaml", cfg, describe_weights(str(file))), 1)


def test_weights_arrive_whole_or_the_first_missing_tensor_is_named(tmp_path):
    torch.save(vit(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "whole.pth", heads=HEADS)
    heads = ("MOCO.VIT.HEADS", str(HEADS))
    assert check_arrival(run_of(tmp_path / "whole.pth", *heads)) == []
    content = torch.load(tmp_path / "whole.pth")
    del content["model"]["backbone.net.blocks.1.mlp.fc2.bias"]
    torch.save(content, tmp_path / "part.pth")
    (found,) = check_arrival(run_of(tmp_path / "part.pth", *heads))
    assert (
        "only 26 of 27 backbone tensors arrived, first missing backbone.net.blocks.1.mlp.fc2"
        in (str(found))
    )
    assert "check MOCO.VIT.EMBED_DIM, DEPTH, PATCH_SIZE and PRETRAIN_SIZE" in str(found)


@pytest.mark.parametrize(
    "key, value, count", [("PRETRAIN_SIZE", "384", 577), ("PRETRAIN_CLASS_TOKEN", "False", 196)]
)
def test_positions_of_another_grid_do_not_begin_from_random_values(tmp_path, key, value, count):
    """Detectron2 skips them with a warning."""
    torch.save(vit(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "whole.pth", heads=HEADS)
    (found,) = check_arrival(run_of(tmp_path / "whole.pth", f"MOCO.VIT.{key}", value))
    assert str(found).startswith(
        f"MOCO.VIT.PRETRAIN_SIZE is {384 if count == 577 else 224}: the {count} absolute positions "
        "of the model did not arrive"
    )


@pytest.mark.parametrize("names", ["ls{}.gamma", "gamma_{}", "layer_scale{}.lambda1"])
def test_layer_scale_is_not_left_out(tmp_path, names):
    """A file under timm's names, below the prefix of Detectron2, that nobody has converted."""
    model = {f"backbone.net.{name}": tensor for name, tensor in vit(scaled=True).items()}
    for block in range(2):
        for i in (1, 2):
            tensor = model.pop(f"backbone.net.blocks.{block}.ls{i}.gamma")
            model[f"backbone.net.blocks.{block}.{names.format(i)}"] = tensor
    torch.save({"model": model}, tmp_path / "a.pth")
    plan = run_of(tmp_path / "a.pth", "MOCO.VIT.HEADS", str(HEADS))
    assert check_arrival(plan) == []  # everything that the detector has arrives
    (found,) = (f for f in check(plan, data=False) if f.key == "MODEL.WEIGHTS")
    assert "it has LayerScale (4 tensors, first backbone.net.blocks.0." in str(found)


def test_converted_weights_have_no_layer_scale(tmp_path):
    torch.save(vit(scaled=True), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "w.pth", heads=HEADS)
    plan = run_of(tmp_path / "w.pth", "MOCO.VIT.HEADS", str(HEADS))
    assert [f for f in check(plan, data=False) if f.key.startswith(("MODEL.W", "MOCO.VIT"))] == []


def test_a_patch_that_a_pyramid_cannot_have_is_refused(tmp_path):
    torch.save(vit(patch=14, positions=257), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "w.pth", heads=HEADS)
    words = ("MOCO.VIT.PATCH_SIZE", "14", "MOCO.VIT.IMAGE_SIZE", "448")
    with pytest.raises(UserError, match=r"PATCH_SIZE is 14, and the levels .* power of two"):
        check_arrival(run_of(tmp_path / "w.pth", "MOCO.VIT.HEADS", str(HEADS), *words))


def test_a_resnet_is_no_vit():
    cfg = load_config("coco_vitdet_Ti_25ep_moco.yaml")
    missing = tuple(f"backbone.net.blocks.{i}.norm1.bias" for i in range(12))
    (found,) = check_coverage(cfg, Coverage(12, missing))
    assert "only 0 of 12 backbone tensors arrived" in str(found)
