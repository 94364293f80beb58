"""Proves a conversion: the source's blocks and those of Detectron2's ViT compute the same.

The source runs with its own tensors as they are in the checkpoint (LayerScale, separate queries,
keys and values), without its class token and registers, on a list of patches. Detectron2's ViT is
written here a second time, as main has it: on a grid, with attention over all of it. Its relative
positions begin at zero and its windows are the whole grid of 14 patches at 224 pixels, so neither
changes this comparison.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moco_d2.checkpoint.mapping import without_values
from moco_d2.checkpoint.proof import relative_difference
from moco_d2.checkpoint.vit.mapping import ViT
from moco_d2.errors import UserError

# Largest relative difference of two correct networks in float32.
TOLERANCE = 1e-4
_SIDE = 224  # of the image in pixels; the nearest smaller multiple of the patch
_EPS = 1e-6  # of LayerNorm in main's ViTDet


def prove(
    content: Mapping[str, Any], source: Mapping[str, Tensor], vit: ViT, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Load Detectron2 weights the way Detectron2 does, and compare with the source's network.

    Args:
        content: The content of the file of weights.
        source: The checkpoint's tensors under the room's names.
        vit: The source's network.
        settings: The keys of the config, from which Detectron2's network is built.

    Returns:
        The largest relative difference of the features of one random image, max|a - b| / max|a| in
        float32, after the last block, and as "max" that after every block.

    Raises:
        UserError: If a tensor did not arrive, or the features differ by more than `TOLERANCE`.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        network = _load(content, settings)
        side = max(_SIDE // vit.patch, 1) * vit.patch
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        tensors = {name: tensor.float() for name, tensor in source.items()}
        differences: dict[str, float] = {}
        pairs = zip(_source_features(tensors, vit, image), network(image), strict=True)
        for i, (expected, actual) in enumerate(pairs):
            stage = f"block {i - 1}" if i else "patches"
            differences[stage] = relative_difference(
                stage, expected, actual.flatten(1, 2), TOLERANCE, "please report this file"
            )
    return {"last_feat": differences[stage], "max": max(differences.values())}


def _source_features(tensors: Mapping[str, Tensor], vit: ViT, image: Tensor) -> Iterator[Tensor]:
    """Yield the patches, (1, P, C), before the first block and after each."""
    x = F.conv2d(
        image,
        tensors["patch_embed.proj.weight"],
        tensors["patch_embed.proj.bias"],
        stride=vit.patch,
    )
    grid, positions = x.shape[-1], tensors["pos_embed"][0, vit.extra :]
    if grid != vit.grid:
        positions = F.interpolate(
            positions.T.reshape(1, vit.width, vit.grid, vit.grid), size=(grid, grid), mode="bicubic"
        ).flatten(2)[0].T  # fmt: skip
    x = x.flatten(2).transpose(1, 2) + positions
    yield x

    def linear(y: Tensor, name: str) -> Tensor:
        return F.linear(y, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    for i in range(vit.depth):
        block = f"blocks.{i}."

        def norm(y: Tensor, name: str, block: str = block) -> Tensor:
            weight, bias = (tensors[f"{block}{name}.{leaf}"] for leaf in ("weight", "bias"))
            return F.layer_norm(y, (vit.width,), weight, bias, vit.eps)

        y = norm(x, "norm1")
        if vit.apart:
            parts = [linear(y, f"{block}attn.{part}") for part in "qkv"]
        else:
            parts = list(linear(y, f"{block}attn.qkv").chunk(3, dim=-1))
        q, k, v = (part.unflatten(2, (vit.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = linear(y, f"{block}attn.proj")
        x = x + (y * tensors[f"{block}ls1"] if vit.scaled else y)
        y = linear(F.gelu(linear(norm(x, "norm2"), f"{block}mlp.fc1")), f"{block}mlp.fc2")
        x = x + (y * tensors[f"{block}ls2"] if vit.scaled else y)
        yield x


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, h, w, width = x.shape
        qkv = self.qkv(x).reshape(count, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, count * self.heads, h * w, -1).unbind(0)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        x = (scores.softmax(dim=-1) @ v).view(count, self.heads, h, w, -1)
        return self.proj(x.permute(0, 2, 3, 1, 4).reshape(count, h, w, width))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=_EPS) for _ in range(2))
        self.attn = _Attention(width, heads)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _Detectron2ViT(nn.Module):
    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        width, patch = settings["MOCO.VIT.EMBED_DIM"], settings["MOCO.VIT.PATCH_SIZE"]
        self.side = settings["MOCO.VIT.PRETRAIN_SIZE"] // patch
        self.special = int(settings["MOCO.VIT.PRETRAIN_CLASS_TOKEN"])
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.pos_embed = nn.Parameter(torch.empty(1, self.side**2 + self.special, width))
        heads, depth = settings["MOCO.VIT.HEADS"], settings["MOCO.VIT.DEPTH"]
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))

    def forward(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the grid, (1, h, w, C), before the first block and after each."""
        x = self.patch_embed["proj"](image).permute(0, 2, 3, 1)
        positions = self.pos_embed[:, self.special :].reshape(1, self.side, self.side, -1)
        if x.shape[1] != self.side:
            positions = F.interpolate(
                positions.permute(0, 3, 1, 2), x.shape[1:3], mode="bicubic", align_corners=False
            ).permute(0, 2, 3, 1)
        x = x + positions
        yield x
        for block in self.blocks:
            x = block(x)
            yield x


def _load(content: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    from detectron2.checkpoint import DetectionCheckpointer

    with without_values():
        net = _Detectron2ViT(settings)
        detector = nn.ModuleDict({"backbone": nn.ModuleDict({"net": net})}).eval()
    detector.to_empty(device="cpu")
    for tensor in detector.state_dict().values():  # NaN reveals a tensor that does not arrive
        tensor.fill_(float("nan"))
    wanted = dict(content["model"])
    # load() calls this with the content of a file.
    DetectionCheckpointer(detector)._load_model({**content, "model": dict(wanted)})
    loaded = detector.state_dict()
    absent = [
        name
        for name in wanted.keys() | loaded.keys()
        if name not in wanted
        or name not in loaded
        or not torch.equal(loaded[name], torch.as_tensor(wanted[name]))
    ]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(loaded)} tensors did not arrive in Detectron2's ViT (first: "
            f"{min(absent)}), so nothing was written; please report this with the versions of "
            "torch and detectron2"
        )
    return net
