"""A step of pretraining whose encoders and augmentation are compiled.

What is not compiled is counted in a step in which the graphs cost nothing, and the graphs are
counted by compiled.py. This takes minutes, so only the benchmark does it.
"""

from pathlib import Path
from typing import Any

import torch
from support.rehearsal import pretraining
from support.rehearsal.compiled import step_graphs, view_graph
from torch import nn

from moco_d2.pretrain.augmentation.batched import DeviceAugmentation
from moco_d2.pretrain.augmentation.views import AUGMENTATIONS
from moco_d2.pretrain.engine import Pretrainer
from moco_d2.pretrain.model.encoder import build_encoder
from moco_d2.pretrain.model.shuffle_bn import norm_layer

_SIZE = torch.Size((256, 3, 224, 224))
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
    if isinstance(trainer.data.device_augmentation, DeviceAugmentation):
        trainer.data.device_augmentation.finish.forward = finish


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the counts of the recipes of R50 in pretraining.py."""
    encoders = {}
    for splits in (1, 8):
        network = build_encoder("resnet50", dim=_DIM, mlp=True, norm_layer=norm_layer(splits))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoders[splits] = step_graphs(network, _SIZE, torch.bfloat16, keys=True)
    view = view_graph(DeviceAugmentation(AUGMENTATIONS["v2"]), _SIZE)
    counts = {}
    for i, (recipe, (_, settings)) in enumerate(list(pretraining.RECIPES.items())[:3]):
        outside = pretraining.step(folder / "compiled" / str(i), recipe, _replace_graphs).summary()
        graphs = encoders[settings["MOCO.BN_SPLITS"]]
        views = 2 if "MOCO.AUGMENTATION.WHERE" in settings else 0
        compiled = (graphs.bytes + views * view.bytes) / 1e9
        counts[f"{recipe}, compiled"] = {
            **{name: outside[name] for name in ("calls", "waits", "copies", "MB copied")},
            "kernels of graphs": graphs.kernels + views * view.kernels,
            "GB of graphs": round(compiled, 2),
            "GB": round(outside["GB"] + compiled, 2),
            "places": outside["places"],
        }
    return counts
