"""The network whose features are evaluated: a ResNet, or a ViT with its class token."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moco_d2.checkpoint.backbone import Origin, load_backbone
from moco_d2.checkpoint.catalog import source_file
from moco_d2.checkpoint.hub_names import origin_of
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.network import Request
from moco_d2.checkpoint.pretraining import pretraining_run
from moco_d2.checkpoint.stated import read_stated
from moco_d2.checkpoint.states import tensors_by_dict
from moco_d2.checkpoint.vit.architecture import ViT
from moco_d2.checkpoint.vit.recognition import extract, is_vit
from moco_d2.errors import UserError
from moco_d2.files import sha256
from moco_d2.pretrain.model.vit import EPS, VisionTransformer

# Tensors of the class token's way to the features, which no detector has.
_CLASS_TOKEN = ("cls_token", "norm.weight", "norm.bias")


class ViTBackbone(nn.Module):
    """A ViT whose head is called ``fc``: images (N, 3, H, W) -> class tokens (N, C) -> ``fc``."""

    def __init__(self, vit: ViT):
        super().__init__()
        self.vit = VisionTransformer(vit, num_classes=1)
        self.vit.add_module("head", nn.Identity())
        self.fc = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.fc(self.vit(images))
        return features


def load_network(
    source: str | Path, *, branch: str = "query", size: int
) -> tuple[nn.Module, str, int, Origin]:
    """Return a checkpoint's network without its head, its description, D, and its origin.

    The network maps images (N, 3, size, size) to features (N, D), and its ``fc`` is the identity.

    Raises:
        UserError: As load_backbone, and if a ViT has no class token or other positions.
    """
    path = source_file(source)
    checkpoint = load_checkpoint(path)
    if not is_vit(checkpoint):
        network, architecture, origin = load_backbone(source, branch=branch)
        return network, str(architecture), architecture.num_features, origin
    try:
        backbone, vit, family = _load_vit(checkpoint, path, branch)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if size != vit.grid * vit.patch:
        raise UserError(
            f"{path}: its positions are those of images of {vit.grid * vit.patch} pixels: give "
            f"--size {vit.grid * vit.patch}"
        )
    name = str(source) if "://" in str(source) else path.name
    if (fetched := origin_of(path)) is not None:
        name = "@".join((fetched["name"].rpartition("@")[0], fetched.get("commit", "unknown")))
    origin = Origin(name, sha256(path), family, branch, pretraining_run(checkpoint))
    return backbone, str(vit), vit.width, origin


def _load_vit(
    checkpoint: Mapping[Any, Any], path: Path, branch: str
) -> tuple[ViTBackbone, ViT, str]:
    request = Request(branch, file_name=path.name, stated=read_stated(path))
    extracted, vit = extract(checkpoint, request)
    state = tensors_by_dict(checkpoint)[extracted.container]
    names = {name: extracted.prefix + name for name in _CLASS_TOKEN}
    is_whole = all(name in state for name in names.values())
    plain = dataclasses.replace(vit, apart=False, bias=True, scaled=False, extra=1, eps=EPS)
    if extracted.dialect != "timm" or vit != plain or not is_whole:
        raise UserError(
            f"it is a {vit} of {extracted.family}, and only plain ViTs of timm's names, with a "
            "class token and a last norm, are evaluated here (MoCo v3, DeiT, DINO, MAE)"
        )
    backbone = ViTBackbone(vit)
    backbone.vit.load_state_dict(
        extracted.tensors | {name: state[key] for name, key in names.items()}
    )
    return backbone, vit, extracted.family
