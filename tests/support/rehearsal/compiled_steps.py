"""A step of pretraining whose encoders and augmentation are compiled.

What is not compiled is counted in a step in which the graphs cost nothing, and the graphs are
counted by compiled.py. With R50 this takes minutes, so only the benchmark does it.
"""

from pathlib import Path
from typing import Any

import torch
from support.rehearsal import pretraining
from support.rehearsal.compiled import Graphs, step_graphs, view_graph
from torch import nn

from moco_d2.pretrain.augmentation.batched import DeviceAugmentation
from moco_d2.pretrain.augmentation.normalization import Normalization
from moco_d2.pretrain.augmentation.views import AUGMENTATIONS
from moco_d2.pretrain.model.encoder import build_encoder
from moco_d2.pretrain.model.shuffle_bn import norm_layer
from moco_d2.pretrain.pretrainer import Pretrainer

_DIM = 128


class _Graph(torch.autograd.Function):
    """Embeddings and gradients that cost nothing."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*parameters)
        return images.new_empty(len(images), _DIM, dtype=torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return None, *map(torch.empty_like, ctx.saved_tensors)


def _replace_graphs(trainer: Pretrainer) -> None:
    def encode(encoder: nn.Module) -> Any:
        return lambda images: _Graph.apply(images, *encoder.parameters())

    def finish(crops: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(crops, dtype=torch.float32)

    for encoder in (trainer.model.encoder_q, trainer.model.encoder_k):
        encoder.forward = encode(encoder)
    compiled = getattr(trainer.data.device_augmentation, "finish", None)
    if compiled is not None:
        compiled.forward = finish


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the counts of the recipes of R50 in pretraining.py."""
    return steps(folder / "compiled", list(pretraining.RECIPES)[:3], "resnet50", side=224)


def steps(folder: Path, recipes: list[str], arch: str, *, side: int) -> dict[str, dict[str, Any]]:
    """Return the counts of recipes of v2 in bf16, whose views have `side` pixels."""
    size = torch.Size((256, 3, side, side))
    encoders: dict[int, Graphs] = {}
    on_device = view_graph(DeviceAugmentation(AUGMENTATIONS["v2"]), size)
    on_workers = view_graph(Normalization(), size)
    counts = {}
    for i, recipe in enumerate(recipes):
        settings = pretraining.RECIPES[recipe][1]
        splits = settings["MOCO.BN_SPLITS"]
        if splits not in encoders:
            network = build_encoder(arch, dim=_DIM, mlp=True, norm_layer=norm_layer(splits))
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            encoders[splits] = step_graphs(network, size, torch.bfloat16, keys=True)
        outside = pretraining.step(folder / str(i), recipe, _replace_graphs).summary()
        graphs = encoders[splits]
        view = on_device if "MOCO.AUGMENTATION.WHERE" in settings else on_workers
        compiled = (graphs.bytes + 2 * view.bytes) / 1e9
        counts[f"{recipe}, compiled"] = {
            **{name: outside[name] for name in ("calls", "waits", "copies", "MB copied")},
            "kernels of graphs": graphs.kernels + 2 * view.kernels,
            "GB of graphs": round(compiled, 2),
            "GB": round(outside["GB"] + compiled, 2),
            "places": outside["places"],
        }
    return counts
