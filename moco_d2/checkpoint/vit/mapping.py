"""The plain ViT: its names and shapes in a checkpoint and in Detectron2, and the map between them.

The room's names of a checkpoint's tensors are timm's, with one layer each for queries, keys and
values where a project keeps them apart, and one name for LayerScale. Detectron2's ViT has neither:
both are merged into other linear layers.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from moco_d2.checkpoint.families import Input
from moco_d2.checkpoint.network import plain
from moco_d2.errors import UserError

MLP_RATIO = 4  # of Detectron2's ViT; all published ViTs of the known families have it
PREFIX = "backbone.net."  # of the ViT below a simple feature pyramid
_APART = ("attn.q", "attn.k", "attn.v")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class ViT:
    """A plain ViT, as a checkpoint has it.

    Args:
        width: Number of channels.
        depth: Number of blocks.
        heads: Number of attention heads.
        patch: Side of a patch in pixels.
        grid: Rows and columns of the absolute positions.
        extra: Number of positions before those of the grid (class token, registers).
        apart: Whether queries, keys and values have linear layers of their own.
        bias: Whether queries, keys and values have a bias.
        scaled: Whether the branches have LayerScale.
        eps: The epsilon of its LayerNorms.
    """

    width: int
    depth: int
    heads: int
    patch: int
    grid: int
    extra: int = 1
    apart: bool = False
    bias: bool = True
    scaled: bool = False
    eps: float = 1e-6

    def __str__(self) -> str:
        return (
            f"ViT of {self.depth} blocks, {self.width} channels, {self.heads} heads, patch "
            f"{self.patch} and {self.grid}x{self.grid} positions"
        )

    def expected(self) -> dict[str, Size]:
        """Return the tensors of a checkpoint: room's name -> shape."""
        width, hidden = self.width, MLP_RATIO * self.width
        layers = {
            "attn.proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        rows = (
            dict.fromkeys(_APART, (width, width))
            if self.apart
            else {"attn.qkv": (3 * width, width)}
        )
        shapes: dict[str, tuple[int, ...]] = {
            "patch_embed.proj.weight": (width, 3, self.patch, self.patch),
            "patch_embed.proj.bias": (width,),
            "pos_embed": (1, self.extra + self.grid**2, width),
        }
        for i in range(self.depth):
            block = f"blocks.{i}."
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
            for name, shape in (layers | rows).items():
                shapes[f"{block}{name}.weight"] = shape
                if self.bias or name in layers:
                    shapes[f"{block}{name}.bias"] = shape[:1]
            if self.scaled:
                shapes |= {f"{block}ls1": (width,), f"{block}ls2": (width,)}
        return {name: Size(shape) for name, shape in shapes.items()}

    def settings(self, pixels: Input) -> dict[str, Any]:
        """Return the keys of the config that the converted weights need."""
        return {
            "INPUT.FORMAT": pixels.format,
            "MODEL.PIXEL_MEAN": list(pixels.pixel_mean),
            "MODEL.PIXEL_STD": list(pixels.pixel_std),
            "MOCO.VIT.EMBED_DIM": self.width,
            "MOCO.VIT.DEPTH": self.depth,
            "MOCO.VIT.HEADS": self.heads,
            "MOCO.VIT.PATCH_SIZE": self.patch,
            "MOCO.VIT.PRETRAIN_SIZE": self.grid * self.patch,
            "MOCO.VIT.PRETRAIN_CLASS_TOKEN": True,
        }


def count_blocks(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of blocks, with those before the last one."""
    return max((int(m[1]) + 1 for name in tensors if (m := _BLOCK.match(name))), default=0)


def grid_of(positions: Tensor, special: int) -> tuple[int, int]:
    """Return the rows of a square grid, and the number of positions before it.

    Args:
        positions: The absolute positions, (1, P, C).
        special: The number of tokens before the patches (class token, registers).

    Raises:
        UserError: If they are no square grid, with or without positions of these tokens.
    """
    count = positions.shape[1] if positions.ndim == 3 else -1
    for extra in sorted({1, special, 0}, reverse=True):
        if count - extra > 0 and math.isqrt(count - extra) ** 2 == count - extra:
            return math.isqrt(count - extra), extra
    raise UserError(
        f"its positions {list(positions.shape)} are no square grid of patches behind at most "
        f"{max(special, 1)} other token(s), which Detectron2's ViT needs; use a network that was "
        "trained on square images"
    )


def to_detectron2(tensors: Mapping[str, Tensor], vit: ViT) -> dict[str, Tensor]:
    """Return Detectron2's tensors in float32, below its ViT.

    LayerScale is multiplied into the layer before it, which computes the same. A missing bias is
    zero, and so is the position of a class token that has none: Detectron2 never reads it.
    """
    mapped = {
        name: plain(tensors[name].detach())
        for name in vit.expected()
        if not name.endswith((".ls1", ".ls2")) and not any(f".{part}." in name for part in _APART)
    }
    positions = mapped["pos_embed"][:, vit.extra :]
    first = mapped["pos_embed"][:, :1] if vit.extra else torch.zeros_like(positions[:, :1])
    mapped["pos_embed"] = torch.cat([first, positions], dim=1)
    for i in range(vit.depth):
        block = f"blocks.{i}."
        for leaf in ("weight", "bias") if vit.bias else ("weight",):
            if vit.apart:
                parts = [tensors[f"{block}{part}.{leaf}"].float() for part in _APART]
                mapped[f"{block}attn.qkv.{leaf}"] = torch.cat(parts).detach()
        if not vit.bias:
            mapped[f"{block}attn.qkv.bias"] = torch.zeros(3 * vit.width)
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")) if vit.scaled else ():
            factor = tensors[f"{block}{scale}"].detach().double()
            for leaf, factors in (("weight", factor[:, None]), ("bias", factor)):
                name = f"{block}{layer}.{leaf}"
                mapped[name] = (mapped[name].double() * factors).float()
    return mapped
