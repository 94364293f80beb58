"""A plain Vision Transformer as a backbone of detectors (Li et al., arXiv 2203.16527).

Tensors have the names and shapes of Detectron2 main's ViT, so one file of weights serves both; v0.6
has no ViT. Shapes: N images, C channels, a grid of h x w patches, A attention heads.
"""

from collections.abc import Iterable

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

OUTPUT = "last_feat"  # main's name
_STD = 0.02  # of initial values (ViT)
EPS = 1e-6  # of LayerNorm (main's ViTDet)


class Attention(nn.Module):
    """Attention of all cells of a grid to each other, with optional relative positions.

    Relative positions are learned vectors per distance in rows and in columns; their products with
    the queries are added to the scores (main's "decomposed" ones). They begin at zero.
    """

    def __init__(self, dim: int, heads: int, *, side: int | None):
        """
        Args:
            dim: Number of channels.
            heads: Number of heads, which divides `dim`.
            side: Rows and columns of the grid for which relative positions are learned; None for
                none. On another grid, they are interpolated.
        """
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.has_positions = side is not None
        if side is not None:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, h, w, C) of (N, h, w, C)."""
        count, height, width, dim = x.shape
        qkv = self.qkv(x).reshape(count, height * width, 3, self.heads, dim // self.heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        if not self.has_positions:
            x = F.scaled_dot_product_attention(*qkv.unbind(0))
        else:
            if on_cpu := x.device.type == "cpu":
                qkv = qkv.contiguous()  # once for all products
            q, k, v = qkv.unbind(0)
            bias = self._scores_of_positions(q, height, width)
            attend = _attend_on_cpu if on_cpu else F.scaled_dot_product_attention
            x = attend(q, k, v, bias)
        return self.proj(x.transpose(1, 2).reshape(count, height, width, dim))

    def _scores_of_positions(self, q: Tensor, height: int, width: int) -> Tensor:
        """Return what is added to the scores, (N, A, h w, h w)."""
        q = q.unflatten(2, (height, width))
        rows = torch.einsum("nahwc,hkc->nahwk", q, vectors_of_distances(self.rel_pos_h, height))
        columns = torch.einsum("nahwc,wkc->nahwk", q, vectors_of_distances(self.rel_pos_w, width))
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


def _attend_on_cpu(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return what torch's scaled_dot_product_attention does, (N, A, h w, C / A).

    For a bias with a gradient, torch's passes four times more over the scores on a CPU, to find
    rows that are masked completely.
    """
    keys = k.flatten(0, 1).transpose(1, 2)
    scores = torch.baddbmm(
        bias.flatten(0, 1), q.flatten(0, 1), keys, alpha=float(q.shape[-1]) ** -0.5
    )
    return (scores.softmax(dim=-1) @ v.flatten(0, 1)).view_as(v)


def vectors_of_distances(table: Tensor, size: int) -> Tensor:
    """Return the vector for each pair of places on a line.

    Args:
        table: A vector for each distance from -(n - 1) to n - 1, (2 n - 1, C). If n is not `size`,
            the table is interpolated linearly.
        size: Number of places.

    Returns:
        (size, size, C), for the places of the query and of the key.
    """
    distances = 2 * size - 1
    if len(table) != distances:
        table = F.interpolate(table.T[None], size=distances, mode="linear")[0].T
    place = torch.arange(size, device=table.device)
    return table[place[:, None] - place[None, :] + size - 1]


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C) of (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A transformer block, whose attention may be limited to windows."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float,
        drop_path: float,
        window: int,
        side: int | None,
    ):
        """
        Args:
            dim: Number of channels.
            heads: Number of attention heads.
            mlp_ratio: Ratio of the hidden channels of the MLP to `dim`.
            drop_path: Probability with which a branch is left out for an image in training.
            window: Rows and columns of a window; 0 for attention over the whole grid.
            side: As in Attention, for attention over the whole grid.
        """
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads, side=window if window and side is not None else side)
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, h, w, C) of (N, h, w, C)."""
        x = x + self.drop_path(self._attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attention(self, x: Tensor) -> Tensor:
        if not self.window:
            return self.attn(x)
        height, width = x.shape[1:3]
        windows, rows = to_windows(x, self.window)
        return from_windows(self.attn(windows), rows, height, width)


def to_windows(x: Tensor, window: int) -> tuple[Tensor, int]:
    """Cut a grid into windows. As in main, zeros at the right and the bottom fill the last ones.

    Args:
        x: The grid, (N, h, w, C).
        window: Rows and columns of a window.

    Returns:
        The windows, (N windows, window, window, C), and the number of rows of windows of an image.
    """
    height, width = x.shape[1:3]
    if width % window or height % window:  # torch copies also for no zeros
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # N, row, h, column, w, C
    return x.transpose(2, 3).flatten(0, 2), x.shape[1]


def from_windows(windows: Tensor, rows: int, height: int, width: int) -> Tensor:
    """Return the grid (N, height, width, C) that to_windows has cut into `rows` rows of windows."""
    columns = -(-width // windows.shape[1])
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class PatchEmbed(nn.Module):
    """The projection of each patch of pixels to C channels."""

    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, h, w, C) of images (N, 3, H, W)."""
        return self.proj(images).permute(0, 2, 3, 1)


class ViT(Backbone):
    """A plain ViT without class token. It maps images (N, 3, H, W) to ``{"last_feat": (N, C, h,
    w)}``, where h and w are H and W divided by the patch size.

    The arguments are those of Detectron2 main's ViT with the same names. The first row of
    `pos_embed` belongs to the class token of pretraining, and is not used.
    """

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        use_rel_pos: bool = True,
        window_size: int = 0,
        window_block_indexes: Iterable[int] = (),
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
    ):
        """
        Args:
            img_size: Side of the images in pixels, for the relative positions of global attention.
            patch_size: Side of a patch in pixels.
            embed_dim: Number of channels.
            depth: Number of blocks.
            num_heads: Number of attention heads.
            mlp_ratio: Ratio of the hidden channels of the MLPs to `embed_dim`.
            drop_path_rate: Drop path of the last block. It rises linearly from 0 in the first.
            use_rel_pos: Whether attention has relative positions.
            window_size: Rows and columns of a window, in patches.
            window_block_indexes: The blocks whose attention is limited to windows.
            pretrain_img_size: Side of the pretraining images in pixels, for the absolute positions.
            pretrain_use_cls_token: Whether pretraining had a class token.
        """
        super().__init__()
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        positions = (pretrain_img_size // patch_size) ** 2 + pretrain_use_cls_token
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim))
        windowed = set(window_block_indexes)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                window=window_size if i in windowed else 0,
                side=img_size // patch_size if use_rel_pos else None,
            )
            for i in range(depth)
        )
        self._out_features = [OUTPUT]
        self._out_feature_channels = {OUTPUT: embed_dim}
        self._out_feature_strides = {OUTPUT: patch_size}
        nn.init.trunc_normal_(self.pos_embed, std=_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return ``{"last_feat": (N, C, h, w)}`` of images (N, 3, H, W)."""
        x = self.patch_embed(images)
        x = x + self._positions(x.shape[1], x.shape[2])
        for block in self.blocks:
            x = block(x)
        return {OUTPUT: x.permute(0, 3, 1, 2)}

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the absolute positions (1, h, w, C), interpolated if the grid is another one."""
        positions = self.pos_embed[:, int(self.pretrain_use_cls_token) :]
        side = round(positions.shape[1] ** 0.5)
        grid = positions.unflatten(1, (side, side))
        if (height, width) == (side, side):
            return grid
        resized = F.interpolate(
            grid.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False
        )
        return resized.permute(0, 2, 3, 1)
