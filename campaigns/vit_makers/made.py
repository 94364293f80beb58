"""What the makers share: random values, and the features of a library's own blocks."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
Expected = tuple[Tensor, Tensor] | None
Make = Callable[[Path], tuple[str, Expected]]  # folder -> the file in it; an image, its features


class Maker(NamedTuple):
    """A function that writes a file, and what the table says about it."""

    make: Make
    library: str
    of: str
    title: str
    arguments: dict[str, Any]


MAKERS: list[Maker] = []


def made_by(library: str, of: str, title: str, **arguments: Any):
    """Register a function that writes a file, and the arguments that it is converted with."""

    def add(function: Make) -> Make:
        MAKERS.append(Maker(function, library, of, title, arguments))
        return function

    return add


def random(network: nn.Module) -> nn.Module:
    """Give every parameter a value that matters: nothing is zero or one."""
    for name, parameter in network.named_parameters():
        std = 1.5 * (parameter.numel() / len(parameter)) ** -0.5 if parameter.ndim > 1 else 0.1
        is_scale = re.search(r"norm[^.]*\.weight$|ln_\w+\.weight$", name)
        mean = 1.0 if is_scale else 0.5 if re.search(r"gamma|lambda", name) else 0.0
        if "pos" in name or "token" in name:
            std = 0.5
        nn.init.normal_(parameter.data, mean, std)
    return network.eval()


def image_of(side: int) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))


def as_map(x: Tensor) -> Tensor:
    side = round(x.shape[1] ** 0.5)
    return x.transpose(1, 2).reshape(1, -1, side, side)


@torch.inference_mode()
def of_timm(network: nn.Module) -> Expected:
    """The patches' features of timm's blocks: the first positions are those of other tokens."""
    image = image_of(network.patch_embed.img_size[0])
    x = network.patch_embed(image)
    x = x.flatten(1, 2) if x.ndim == 4 else x
    return image, as_map(network.blocks(x + network.pos_embed[:, -x.shape[1] :]))


@torch.inference_mode()
def of_transformers(network: nn.Module) -> Expected:
    image = image_of(network.config.image_size)
    x = network.embeddings.patch_embeddings(image)
    x = x + network.embeddings.position_embeddings[:, -x.shape[1] :]
    for layer in layers_of(network):
        x = layer(x)
        x = x[0] if isinstance(x, tuple) else x
    return image, as_map(x)


def layers_of(network: nn.Module) -> nn.ModuleList:
    """The blocks, wherever the version of transformers has them."""
    lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


@torch.inference_mode()
def of_torchvision(network: nn.Module) -> Expected:
    image = image_of(network.image_size)
    x = network.conv_proj(image).flatten(2).transpose(1, 2)
    return image, as_map(network.encoder.layers(x + network.encoder.pos_embedding[:, 1:]))
