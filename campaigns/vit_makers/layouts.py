"""The layouts of official projects, around the networks of timm that have the same names."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from made import TINY, made_by, of_timm
from timm_files import timm_network
from torch import Tensor, nn


def official(folder: Path, name: str, content: Any, network: nn.Module | None):
    torch.save(content, folder / name)
    return name, of_timm(network) if network is not None else None


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def head(prefix: str) -> dict[str, Tensor]:
    """DINO's head: an MLP, and a layer with weight norm."""
    layers = {f"{prefix}mlp.{i}.{leaf}": (8, 8)[: 2 - (leaf == "bias")]
              for i in (0, 2, 4) for leaf in ("weight", "bias")}  # fmt: skip
    layers |= {f"{prefix}last_layer.weight_g": (16, 1), f"{prefix}last_layer.weight_v": (16, 8)}
    return {name: torch.randn(shape) for name, shape in layers.items()}


@made_by("layout", "MoCo v3", "vit_small, 12 heads")
def _moco_v3(folder):
    both = [timm_network("vit_small_patch16_224", num_heads=12, num_classes=0) for _ in range(2)]
    projector = {f"head.{i}.weight": torch.randn(8, 8) for i in (0, 3, 6)}
    state = under("module.base_encoder.", both[0].state_dict() | projector)
    state |= under("module.momentum_encoder.", both[1].state_dict() | projector)
    state |= {f"module.predictor.{i}.weight": torch.randn(8, 8) for i in (0, 3)}
    content = {
        "epoch": 300,
        "arch": "vit_small",
        "state_dict": state,
        "optimizer": {},
    }
    return official(folder, "vit-s-300ep.pth.tar", content, both[0])


def _self_distilled(folder, name, more):
    networks = [timm_network("vit_tiny_patch16_224", num_classes=0) for _ in range(2)]
    states = [network.state_dict() | more for network in networks]
    projector = head("head.")
    content = {
        "student": under("module.backbone.", states[0]) | under("module.", projector),
        "teacher": under("backbone.", states[1]) | projector,
        "optimizer": {},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=16),
    }
    return official(folder, name, content, networks[0])


@made_by("layout", "DINO", "training")
def _dino(folder):
    return _self_distilled(folder, "checkpoint.pth", {})


@made_by("layout", "DINO", "released backbone")
def _dino_backbone(folder):
    network = timm_network("vit_small_patch16_224", num_classes=0)
    name = "dino_deitsmall16_pretrain.pth"
    return official(folder, name, network.state_dict(), network)


@made_by("layout", "iBOT", "training")
def _ibot(folder):
    name, expected = _self_distilled(
        folder, "checkpoint.pth", {"masked_embed": torch.randn(1, 192)}
    )
    content = torch.load(folder / name, weights_only=False)
    for branch, prefix in (("student", "module."), ("teacher", "")):
        more = {
            f"{prefix}head.mlp2.weight": torch.randn(8, 8),
            f"{prefix}head.mlp2.bias": torch.randn(8),
        }
        content[branch] |= more | {f"{prefix}head.last_layer2.weight_g": torch.randn(16, 1)}
    content["ibot_loss"] = {"center": torch.zeros(1, 8), "center2": torch.zeros(1, 1, 8)}
    torch.save(content, folder / name)
    return name, expected


@made_by("layout", "iBOT", "released backbone")
def _ibot_backbone(folder):
    network = timm_network("vit_small_patch16_224", num_classes=0)
    state = {"state_dict": network.state_dict()}
    return official(folder, "ibot_vit_small_patch16_224_teacher.pth", state, network)


@made_by("layout", "MAE", "encoder")
def _mae(folder):
    network = timm_network("vit_base_patch16_224", num_classes=0)
    return official(folder, "mae_pretrain_vit_base.pth", {"model": network.state_dict()}, network)


@made_by("layout", "MAE", "encoder and decoder", heads=3)
def _mae_full(folder):
    network = timm_network("vit_tiny_patch16_224", num_classes=0, **TINY)
    decoder = timm_network(
        "vit_tiny_patch16_224", num_classes=0, **TINY | {"depth": 1}
    ).state_dict()
    more = {"mask_token": torch.randn(1, 1, 48), "decoder_embed.weight": torch.randn(48, 48),
            "decoder_pred.weight": torch.randn(768, 48)}  # fmt: skip
    more |= under(
        "decoder_", {k: v for k, v in decoder.items() if k.startswith(("blocks", "norm", "pos_"))}
    )
    content = {"model": network.state_dict() | more}
    return official(folder, "mae_pretrain_full.pth", content, network)


@made_by("layout", "DeiT", "distilled")
def _deit(folder):
    network = timm_network("deit_tiny_distilled_patch16_224")
    name = "deit_tiny_distilled_patch16_224-b40b3cf7.pth"
    return official(folder, name, {"model": network.state_dict()}, network)


@made_by("layout", "DeiT-3", "LayerScale as gamma_1 and gamma_2")
def _deit3(folder):
    network = timm_network("deit3_small_patch16_224")
    state = {re.sub(r"ls([12])\.gamma", r"gamma_\1", k): v for k, v in network.state_dict().items()}
    return official(folder, "deit_3_small_224_1k.pth", {"model": state}, network)


def _dinov2_layout(folder, name, network):
    state = network.state_dict() | {"mask_token": torch.randn(1, network.embed_dim)}
    if "reg_token" in state:
        # Here the positions have one for the class token, and none for the registers.
        state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.randn(1, 1, network.embed_dim), state["pos_embed"]], 1)
    return official(folder, name, state, network)


@made_by("layout", "DINOv2", "12 blocks, 37 x 37 positions")
def _dinov2(folder):
    network = timm_network("vit_small_patch14_dinov2", no_embed_class=True)
    return _dinov2_layout(folder, "dinov2_vits14_pretrain.pth", network)


@made_by("layout", "DINOv2", "with four registers")
def _dinov2_registers(folder):
    network = timm_network("vit_small_patch14_reg4_dinov2")
    return _dinov2_layout(folder, "dinov2_vits14_reg4_pretrain.pth", network)


@made_by("layout", "DINOv3", "ViT")
def _dinov3(folder):
    state = {}
    for name, tensor in timm_network("vit_small_patch16_224", **TINY).state_dict().items():
        if name == "pos_embed" or name.startswith("head"):
            continue
        state[name] = tensor
        if name.endswith("attn.qkv.bias"):
            state[name + "_mask"] = torch.full_like(tensor, torch.nan)
        if name.endswith("mlp.fc2.bias"):
            block = name.removesuffix("mlp.fc2.bias")
            state |= {f"{block}ls{i}.gamma": torch.randn(48) for i in (1, 2)}
    state |= {"storage_tokens": torch.randn(1, 4, 48), "mask_token": torch.randn(1, 48),
              "rope_embed.periods": torch.randn(4)}  # fmt: skip
    return official(folder, "dinov3_vits16_pretrain_lvd1689m-08c60483.pth", state, None)


@made_by("layout", "ConvNeXt and DINOv3's", "downsample_layers and stages")
def _convnext(folder):
    state = {}
    for full, tensor in timm_network("convnext_atto").state_dict().items():
        name = full.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv")
        for old, new in (
            (r"stages\.(\d+)\.downsample", r"downsample_layers.\1"),
            (r"(stages\.\d+)\.blocks", r"\1"),
            (r"mlp\.fc([12])", r"pwconv\1"),
            (r"head\.(?:norm)", "norm"),
            (r"head\.fc", "head"),
        ):
            name = re.sub(old, new, name)
        state[name] = tensor
    return official(folder, "convnext_tiny_1k_224_ema.pth", {"model": state}, None)


@made_by("layout", "Swin", "released")
def _swin(folder):
    network = timm_network("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1))
    state = {name.replace("head.fc", "head"): t for name, t in network.state_dict().items()}
    return official(folder, "swin_tiny_patch4_window7_224.pth", {"model": state}, None)


@made_by("layout", "BEiT", "pretraining, with positions shared by all blocks")
def _beit(folder):
    network = timm_network("beit_base_patch16_224", **TINY)
    state = {k: v for k, v in network.state_dict().items() if "relative_position" not in k}
    table = network.state_dict()["blocks.0.attn.relative_position_bias_table"]
    state["rel_pos_bias.relative_position_bias_table"] = table
    state |= {"mask_token": torch.randn(1, 1, 48), "lm_head.weight": torch.randn(8, 48)}
    return official(folder, "beit_base_patch16_224_pt22k.pth", {"model": state}, None)
