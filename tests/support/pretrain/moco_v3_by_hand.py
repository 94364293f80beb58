"""MoCo v3 written down from its paper (Algorithm 1) and the official settings, in plain torch.

Nothing of the package is imported, so that a mistake cannot be on both sides. Names of tensors are
those of official checkpoints.
"""

import math
import re

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


class ViT(nn.Module):
    """A ViT of torch's own encoder layers; positions and patches as timm's."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(sincos(width, side), requires_grad=False)
        self.patches = nn.Conv2d(3, width, 16, stride=16).requires_grad_(False)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                *(width, heads, 4 * width, 0.0),
                activation="gelu",
                layer_norm_eps=1e-6,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(12)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Identity()

    def forward(self, x):
        x = self.patches(x)
        cells = [x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])]
        x = torch.stack(cells, dim=1)
        x = torch.cat([self.cls_token.repeat(len(x), 1, 1), x], dim=1) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


def sincos(width: int, side: int) -> torch.Tensor:
    """Token by token and number by number: sine and cosine of the row, then of the column."""
    quarter = width // 4
    table = [[0.0] * width]
    for row in range(side):
        for column in range(side):
            waves = [
                wave(at / 10000 ** (i / quarter))
                for at in (row, column)
                for wave in (math.sin, math.cos)
                for i in range(quarter)
            ]
            table.append(waves)
    return torch.tensor([table])


_TORCHS = (
    (r"patch_embed\.proj\.", "patches."),
    (r"blocks\.(\d+)\.", r"layers.\1."),
    (r"attn\.qkv\.", "self_attn.in_proj_"),
    (r"attn\.proj\.", "self_attn.out_proj."),
    (r"mlp\.fc", "linear"),
)


def torchs_name(name: str) -> str:
    for pattern, replacement in _TORCHS:
        name = re.sub(pattern, replacement, name)
    return name


class Run:
    """A training: ``step`` takes two views and returns the loss.

    Args:
        encoders: The query and the momentum encoder, without heads.
        heads: Name of the head -> widths of its layers; "predictor" among them.
        state: The state_dict to start from.
        optimizer: "LARS" or "AdamW".
    """

    def __init__(self, encoders, heads, state, optimizer, *, t, m, lr, wd, warmup, length):
        self.base, self.momentum = encoders
        (name, projector), (_, predictor) = heads.items()
        self.predictor = mlp(predictor, norm_at_end=optimizer == "AdamW")
        for encoder in encoders:
            setattr(encoder, name, mlp(projector, norm_at_end=True))
        parts = {
            "base_encoder.": self.base,
            "momentum_encoder.": self.momentum,
            "predictor.": self.predictor,
        }
        for prefix, module in parts.items():
            own = {
                key.removeprefix(prefix): value.clone()
                for key, value in state.items()
                if key.startswith(prefix)
            }
            if isinstance(module, ViT):
                own = {torchs_name(key): value for key, value in own.items()}
            module.load_state_dict(own)
        self.update = {"LARS": self.lars, "AdamW": self.adamw}[optimizer]
        self.t, self.m, self.lr, self.wd = t, m, lr, wd
        self.warmup, self.length, self.done = warmup, length, 0
        self.memory: dict[torch.Tensor, list[torch.Tensor]] = {}

    def official(self, epoch):
        """The content of an official checkpoint, of LARS."""
        parts = {
            "base_encoder": self.base,
            "momentum_encoder": self.momentum,
            "predictor": self.predictor,
        }
        state = {
            f"module.{part}.{name}": tensor.clone()
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        numbered = enumerate(p for module in parts.values() for p in module.parameters())
        mu = {i: {"mu": self.memory[p][0].clone()} for i, p in numbered if p in self.memory}
        return {
            "epoch": epoch,
            "arch": "resnet50",
            "state_dict": state,
            "optimizer": {"state": mu, "param_groups": []},
            "scaler": {},
        }

    def ctr(self, q, k):
        q, k = (x / x.square().sum(1, keepdim=True).sqrt() for x in (q, k))
        logits = q @ k.T / self.t
        losses = [row.exp().sum().log() - row[i] for i, row in enumerate(logits)]
        return 2 * self.t * sum(losses) / len(losses)

    def step(self, x1, x2):
        if self.done < self.warmup:
            lr = self.lr * self.done / self.warmup
        else:
            progress = (self.done - self.warmup) / (self.length - self.warmup)
            lr = self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        m = 1 - 0.5 * (1 + math.cos(math.pi * self.done / self.length)) * (1 - self.m)
        q1, q2 = self.predictor(self.base(x1)), self.predictor(self.base(x2))
        with torch.no_grad():
            for k, q in zip(self.momentum.parameters(), self.base.parameters(), strict=True):
                k.copy_(k * m + q * (1 - m))
            k1, k2 = self.momentum(x1), self.momentum(x2)
        loss = self.ctr(q1, k2) + self.ctr(q2, k1)
        both = [*self.base.parameters(), *self.predictor.parameters()]
        trained = [p for p in both if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained)
        self.done += 1
        with torch.no_grad():
            for p, gradient in zip(trained, gradients, strict=True):
                self.update(p, gradient, lr)
        return loss.item()

    def lars(self, p, gradient, lr):
        if p.dim() > 1:
            gradient = gradient + self.wd * p
            if p.norm() > 0 and gradient.norm() > 0:
                gradient = gradient * 0.001 * p.norm() / gradient.norm()
        (velocity,) = self.memory.get(p, [torch.zeros_like(p)])
        self.memory[p] = [0.9 * velocity + gradient]
        p -= lr * self.memory[p][0]

    def adamw(self, p, gradient, lr):
        first, second = self.memory.get(p, [torch.zeros_like(p)] * 2)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        self.memory[p] = [first, second]
        unbiased = first / (1 - 0.9**self.done), second / (1 - 0.999**self.done)
        p -= lr * (unbiased[0] / (unbiased[1].sqrt() + 1e-8) + self.wd * p)


def mlp(widths, *, norm_at_end):
    layers = []
    for i in range(len(widths) - 1):
        layers.append(nn.Linear(widths[i], widths[i + 1], bias=False))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(widths[i + 1]), nn.ReLU()]
    if norm_at_end:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


class SlimResNet50(ResNet):
    """torchvision's, with an eighth of all channels."""

    def __init__(self):
        super().__init__(Bottleneck, [3, 4, 6, 3])
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        self.inplanes = {64: 8}.get(planes, self.inplanes)
        return super()._make_layer(block, planes // 8, blocks, stride, dilate)
