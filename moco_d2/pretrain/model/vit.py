"""The ViTs of MoCo v3 (Chen et al., arXiv:2104.02057, section 4.1): fixed sin-cos positions.

Tensors have timm's names, as in the official checkpoints. checkpoint/vit has the same network twice
for its proof, without class token, last norm and head, which a detector does not use.

Legend: N batch, G patches in each direction, P = G^2 + 1 tokens, C channels.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

from moco_d2.checkpoint.vit.mapping import MLP_RATIO, ViT
from moco_d2.errors import UserError

_PATCH = 16
EPS = 1e-6  # of LayerNorm, as in facebookresearch/moco-v3
# Those of facebookresearch/moco-v3, and DeiT's vit_tiny. The grid is that of the images.
VITS = {
    "vit_tiny": ViT(width=192, depth=12, heads=3, patch=_PATCH, grid=0),
    "vit_small": ViT(width=384, depth=12, heads=12, patch=_PATCH, grid=0),
    "vit_base": ViT(width=768, depth=12, heads=12, patch=_PATCH, grid=0),
}


class VisionTransformer(nn.Module):
    """A ViT with a linear head on its class token: images (N, 3, H, W) -> (N, num_classes)."""

    def __init__(
        self, vit: ViT, num_classes: int, *, freeze_patches: bool = False, others: int = 0
    ):
        """
        Args:
            vit: The network.
            num_classes: Outputs of the head.
            freeze_patches: Whether the patch projection keeps its random values (section 4.2).
            others: Number of tokens between the class token and the patches, which MoCo v3 has not
                (distillation token, registers).
        """
        super().__init__()
        self.vit, width = vit, vit.width
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 1e-6)
        self.other_tokens = nn.Parameter(torch.zeros(1, others, width)) if others else None
        self.pos_embed = nn.Parameter(sincos_positions(width, vit.grid), requires_grad=False)
        projection = nn.Conv2d(3, width, vit.patch, vit.patch)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.blocks = nn.Sequential(*(_Block(width, vit.heads) for _ in range(vit.depth)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, num_classes)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):  # queries, keys and values count as three layers
                outputs = layer.out_features // (3 if name.endswith("qkv") else 1)
                _xavier(layer, layer.in_features, outputs)
        _xavier(projection, 3 * vit.patch**2, width)
        projection.requires_grad_(not freeze_patches)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        x = x + self.pos_embed
        if self.other_tokens is not None:
            others = self.other_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], others, x[:, 1:]], dim=1)
        return self.head(self.norm(self.blocks(x))[:, 0])


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        hidden = MLP_RATIO * width
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


def _xavier(layer: nn.Linear | nn.Conv2d, inputs: int, outputs: int) -> None:
    bound = math.sqrt(6 / (inputs + outputs))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def sincos_positions(width: int, grid: int) -> torch.Tensor:
    """Return fixed positions (1, P, C): 0 for the class token, then sines and cosines of the row
    and of the column, each with C / 4 frequencies from 1 down to 1 / 10000.
    """
    frequencies = 1 / 10000 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies  # (G, C / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves.repeat_interleave(grid, dim=0), waves.repeat(grid, 1)
    positions = torch.cat([rows, columns], dim=1)
    return torch.cat([torch.zeros(1, width), positions])[None]


def build_vit(
    arch: str, num_classes: int, *, size: int, width_factor: float = 1, freeze_patches: bool = False
) -> VisionTransformer:
    """Build a ViT for images of `size` pixels.

    Args:
        arch: A key of VITS.
        num_classes: Outputs of the head.
        size: Side of the images, pixels.
        width_factor: Factor on the number of channels.
        freeze_patches: See VisionTransformer.

    Raises:
        UserError: If the patches do not fill the images, or the heads cannot share the channels.
    """
    vit = VITS[arch]
    width = vit.width * width_factor
    if size % vit.patch:
        raise UserError(
            f"MOCO.AUGMENTATION.SIZE {size} is no multiple of the {vit.patch} pixels of a patch of "
            f"{arch}: set {max(round(size / vit.patch), 1) * vit.patch}"
        )
    common = math.lcm(vit.heads, 4)  # 4: a sine and a cosine of row and column
    if width % common:
        raise UserError(
            f"MOCO.ENCODER.WIDTH_FACTOR {width_factor} gives {arch} {width:g} channels: choose a "
            f"factor that gives a multiple of {common}"
        )
    vit = dataclasses.replace(vit, width=int(width), grid=size // vit.patch)
    return VisionTransformer(vit, num_classes, freeze_patches=freeze_patches)
