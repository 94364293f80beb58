"""The network whose features are evaluated: a ResNet, or a ViT with its class token."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco_d2.checkpoint.backbone import (
    RANDOM,
    RESNETS,
    Origin,
    load_backbone,
    origin_of_file,
    random_backbone,
    take_torchvisions_input,
)
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.network import Request
from moco_d2.checkpoint.recognition import Extracted
from moco_d2.checkpoint.stated import read_stated
from moco_d2.checkpoint.tensor_dicts import tensors_by_dict
from moco_d2.checkpoint.vit.mapping import ViT, to_detectron2
from moco_d2.checkpoint.vit.names import (
    CLASS_TOKENS,
    DISTILLATION_TOKENS,
    LAST_NORMS,
    REGISTERS,
)
from moco_d2.checkpoint.vit.recognition import extract, is_vit
from moco_d2.checkpoint.weights_by_name import source_file
from moco_d2.errors import UserError
from moco_d2.pretrain.model.vit import VITS, VisionTransformer

_LAST_NORM = ("norm.weight", "norm.bias")


class ViTBackbone(nn.Module):
    """A ViT whose head is called ``fc``: images (N, 3, H, W) -> class tokens (N, C) -> ``fc``."""

    def __init__(self, vit: ViT, *, others: int = 0):
        """
        Args:
            vit: The network.
            others: Number of tokens between the class token and the patches.
        """
        super().__init__()
        self.vit = VisionTransformer(vit, num_classes=1, others=others)
        self.vit.add_module("head", nn.Identity())
        self.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.fc(self.vit(images))
        return features


def random_network(
    arch: str, *, size: int, heads: int | None = None
) -> tuple[nn.Module, str, int, Origin]:
    """Return the same as load_network, with random weights from torch's generator.

    Args:
        arch: A name in RESNETS or VITS.
        size: Side of the images in pixels.
        heads: The number of attention heads of a ViT; None for that of its name.

    Raises:
        UserError: If there is no such network, or it has no such images or heads.
    """
    if arch not in VITS:
        network, resnet, origin = random_backbone(arch, known=(*RESNETS, *VITS))
        _check_no_heads(heads, str(resnet))
        return network, str(resnet), resnet.num_features, origin
    vit = VITS[arch]
    if size % vit.patch:
        nearest = max(round(size / vit.patch), 1) * vit.patch
        raise UserError(
            f"--size {size} is no multiple of the {vit.patch} pixels of a patch of {arch}: give "
            f"--size {nearest}"
        )
    if heads is not None and (heads < 1 or vit.width % heads):
        raise UserError(
            f"--heads {heads} does not divide the {vit.width} channels of {arch}: leave it out for "
            f"{vit.heads}"
        )
    vit = dataclasses.replace(vit, grid=size // vit.patch, heads=heads or vit.heads)
    return ViTBackbone(vit), str(vit), vit.width, Origin(RANDOM, None, RANDOM, None)


def load_network(
    source: str | Path, *, branch: str = "query", size: int, heads: int | None = None
) -> tuple[nn.Module, str, int, Origin]:
    """Return a checkpoint's network without its head, its description, D, and its origin.

    The network maps images (N, 3, size, size) of torchvision's input to features (N, D), and its
    ``fc`` is the identity.

    Args:
        source: As in load_backbone.
        branch: As in load_backbone.
        size: Side of the images in pixels.
        heads: The number of attention heads of a ViT that does not say it.

    Raises:
        UserError: As load_backbone, and if a ViT has no class token, last norm or number of heads,
            or other positions.
    """
    path = source_file(source)
    checkpoint = load_checkpoint(path)
    if not is_vit(checkpoint):
        network, architecture, origin = load_backbone(source, branch=branch)
        _check_no_heads(heads, str(architecture))
        return network, str(architecture), architecture.num_features, origin
    request = Request(branch, file_name=path.name, stated=read_stated(path), heads=heads)
    try:
        extracted, vit = extract(checkpoint, request)
        backbone = _with_class_token(checkpoint, extracted, vit)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if size != vit.grid * vit.patch:
        raise UserError(
            f"{path}: its positions are those of images of {vit.grid * vit.patch} pixels: give "
            f"--size {vit.grid * vit.patch}"
        )
    take_torchvisions_input(backbone, extracted.traits.input)
    origin = origin_of_file(source, path, checkpoint, extracted.family, branch)
    return backbone, str(vit), vit.width, origin


def _with_class_token(checkpoint: Mapping[Any, Any], extracted: Extracted, vit: ViT) -> ViTBackbone:
    """Return the network that computes the class token of a checkpoint.

    The blocks are those of the converter, which are plain whatever the source has.
    """
    if extracted.dialect == "detectron2":
        raise UserError(
            "it is converted for Detectron2, without the class token and the last norm, which the "
            "features of a ViT need: give the checkpoint that it was converted from"
        )
    prefix, state = extracted.prefix, tensors_by_dict(checkpoint)[extracted.container]

    def below(names: Iterable[str]) -> list[Tensor]:
        return [state[prefix + name].float() for name in names if prefix + name in state]

    tokens = below(CLASS_TOKENS)
    norm = below(f"{name}.{leaf}" for name in LAST_NORMS for leaf in ("weight", "bias"))
    if len(tokens) != 1 or len(norm) != len(_LAST_NORM):
        missing = "last norm" if tokens else "class token"
        raise UserError(
            f"it is a {vit} of {extracted.family} without {missing}, which the features of a ViT "
            "need: use a network that has one"
        )
    others = below((*DISTILLATION_TOKENS, *REGISTERS))
    for token in (*tokens, *others):
        if token.ndim != 3 or token.shape[::2] != (1, vit.width):  # 1, any number, C
            raise UserError(_damaged("token", token))
    beside = {"cls_token": tokens[0], **dict(zip(_LAST_NORM, norm, strict=True))}
    if others:
        # Their positions are behind that of the class token, if they have any.
        beside["other_tokens"] = torch.cat(others, dim=1)
        positions = extracted.tensors["pos_embed"][:, 1 : vit.extra].float()
        beside["other_tokens"][:, : positions.shape[1]] += positions
    backbone = ViTBackbone(vit, others=sum(token.shape[1] for token in others))
    wanted = backbone.vit.state_dict()
    for name, tensor in beside.items():
        if tensor.shape != wanted[name].shape or not tensor.isfinite().all():
            raise UserError(_damaged(name, tensor))
    backbone.vit.load_state_dict(to_detectron2(extracted.tensors, vit) | beside)
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = vit.eps
    return backbone


def _damaged(name: str, tensor: Tensor) -> str:
    return (
        f"its {name} of the shape {list(tensor.shape)} does not fit the network or is not finite: "
        "use the complete, unmodified checkpoint"
    )


def _check_no_heads(heads: int | None, architecture: str) -> None:
    if heads is not None:
        raise UserError(f"--heads is only for ViTs, and it is a {architecture}: leave it out")
