"""Files as timm writes them."""

import argparse
from pathlib import Path
from typing import Any

import timm
import timm.models
import timm.utils
import torch
from made import TINY, made_by, of_timm, random
from torch import nn


def timm_network(name: str, **arguments: Any) -> nn.Module:
    return random(timm.create_model(name, **arguments))


def saved_by_timm(folder: Path, name: str, *, plain: bool = True, **arguments: Any):
    """As timm puts it on the hub: safetensors and config.json."""
    network = timm_network(name, **arguments)
    timm.models.save_for_hf(network, folder, model_args=arguments, safe_serialization=True)
    return "model.safetensors", of_timm(network) if plain else None


for _name, _arguments, _plain in (
    ("vit_tiny_patch16_224", TINY, True),
    ("vit_small_patch16_224", TINY | {"img_size": 96}, True),
    ("vit_base_patch32_224", TINY, True),
    ("vit_small_patch8_224", TINY | {"img_size": 64}, True),
    ("vit_base_patch16_224_miil", TINY, True),
    ("deit3_small_patch16_224", TINY, True),
    ("vit_small_patch14_dinov2", TINY, True),
    ("vit_small_patch14_reg4_dinov2", TINY, True),
    ("vit_base_patch16_siglip_gap_224", TINY, False),
    ("vit_base_patch16_clip_224", TINY, False),
    ("vit_base_patch16_clip_quickgelu_224", TINY, False),
    ("vit_base_patch16_rpn_224", TINY, False),
    ("vit_relpos_small_patch16_224", TINY, False),
    ("vit_small_patch16_18x2_224", TINY, False),
    ("vit_tiny_patch16_224", TINY | {"qk_norm": True}, False),
    ("beit_base_patch16_224", TINY, False),
    ("beitv2_base_patch16_224", TINY, False),
    ("eva02_tiny_patch14_224", TINY, False),
    ("vit_small_patch16_dinov3", TINY, False),
    ("samvit_base_patch16", TINY | {"img_size": 224}, False),
    ("convnext_atto", {}, False),
    ("convnextv2_atto", {}, False),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1)}, False),
    ("swinv2_tiny_window8_256", {"embed_dim": 24, "depths": (1, 1, 1, 1)}, False),
    ("mvitv2_tiny", {}, False),
    ("hiera_tiny_224", {}, False),
):  # fmt: skip

    def _save(folder: Path, name=_name, arguments=_arguments, plain=_plain):
        return saved_by_timm(folder, name, plain=plain, **arguments)

    _more = ", query norm" if "qk_norm" in _arguments else ""
    made_by("timm", _name, f"on the hub{_more}")(_save)


@made_by("timm", "vit_tiny_patch16_224", "state_dict, 12 blocks, heads by the file's name")
def _timm_state(folder):
    network = timm_network("vit_tiny_patch16_224")
    torch.save(network.state_dict(), folder / "vit_tiny_patch16_224.pth")
    return "vit_tiny_patch16_224.pth", of_timm(network)


@made_by("timm", "vit_tiny_patch16_224", "augreg by the file's name: another input")
def _timm_augreg(folder):
    network = timm_network("vit_tiny_patch16_224", num_classes=0)
    name = "vit_tiny_patch16_224.augreg_in21k.pth"
    torch.save(network.state_dict(), folder / name)
    return name, of_timm(network)


@made_by("timm", "deit_tiny_patch16_224", "training, with its moving average")
def _timm_training(folder):
    network = timm_network("deit_tiny_patch16_224", num_classes=5)
    average = timm.utils.ModelEmaV3(network)
    random(average.module)
    saver = timm.utils.CheckpointSaver(
        network,
        torch.optim.AdamW(network.parameters()),
        args=argparse.Namespace(model="deit_tiny_patch16_224"),
        model_ema=average,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(0, 1.0)
    for path in folder.iterdir():
        if path.name != "checkpoint-0.pth.tar":
            path.unlink()
    return "checkpoint-0.pth.tar", of_timm(network)
