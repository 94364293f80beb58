"""Small ViTs under the names of several projects, with random values."""

import functools

import torch
from torch import Tensor

State = dict[str, Tensor]
WIDTH, DEPTH, HEADS = 48, 2, 3


def vit(*, width=WIDTH, depth=DEPTH, patch=16, positions=197, scaled=False, seed=0) -> State:
    """Return the tensors of a ViT under timm's names, with class token and last norm."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, std: float = 0.1, mean: float = 0.0) -> Tensor:
        most = 3**0.5 * std  # of uniform numbers, which are drawn faster than normal ones
        return torch.empty(shape).uniform_(mean - most, mean + most, generator=generator)

    state = {
        "cls_token": random(1, 1, width),
        "pos_embed": random(1, positions, width),
        "patch_embed.proj.weight": random(width, 3, patch, patch),
        "patch_embed.proj.bias": random(width),
    }
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            state[f"blocks.{i}.{norm}.weight"] = random(width, mean=1.0)
            state[f"blocks.{i}.{norm}.bias"] = random(width)
        for layer, shape in layers.items():
            state[f"blocks.{i}.{layer}.weight"] = random(*shape, std=1.5 * width**-0.5)
            state[f"blocks.{i}.{layer}.bias"] = random(shape[0])
        if scaled:
            state |= {f"blocks.{i}.ls{j}.gamma": random(width, mean=0.5) for j in (1, 2)}
    return state | {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}


def under(prefix: str, state: State) -> State:
    """Return the state with a prefix before all names."""
    return {prefix + name: tensor for name, tensor in state.items()}


_TRANSFORMERS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.": "encoder.layer.",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def of_transformers(state: State) -> State:
    """Return the state as Hugging Face's ViTModel saves it."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("norm."):
            renamed["layernorm" + name.removeprefix("norm")] = tensor
            continue
        full = functools.reduce(lambda n, pair: n.replace(*pair), _TRANSFORMERS.items(), name)
        if "attn.qkv" in full:
            for part, values in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[full.replace("attn.qkv", f"attention.attention.{part}")] = values.clone()
        else:
            renamed[full] = tensor
    return renamed
