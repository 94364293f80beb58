"""MoCo v3 (Chen, Xie and He, arXiv:2104.02057, Algorithm 1): no queue, and a prediction head.

Names of modules, and with them those of tensors in checkpoints, are the official ones.

Legend: N batch of one process, W world size, D features of the backbone, C embedding, T
temperature, m momentum.
"""

import contextlib
import copy
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from moco_d2.engine.exchange import all_gather
from moco_d2.pretrain.model.dictionary import EndToEnd
from moco_d2.pretrain.model.encoder import build_encoder, encoder_options, head_name
from moco_d2.pretrain.model.sync_bn import synchronize_batchnorm
from moco_d2.pretrain.model.vit import VITS

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_VIEWS = ("query", "key")


class MoCoV3(nn.Module):
    """Two encoders and a prediction head; forward gives the symmetric contrastive loss.

    It has the interface of MoCo. A pass over a large batch in parts calls `features`,
    `key_features` and `contrast` itself (accumulation.py).
    """

    def __init__(
        self, encoder: nn.Module, predictor: nn.Module, *, momentum: float, temperature: float
    ):
        """
        Args:
            encoder: The query encoder, images (N, 3, H, W) -> (N, C), whose head is a Projector.
                The momentum encoder starts as its copy.
            predictor: The prediction head, (N, C) -> (N, C).
            momentum: m, which KeyMomentum may change in every step.
            temperature: T.
        """
        super().__init__()
        self.base_encoder = encoder
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = predictor
        self.momentum = momentum
        self.temperature = temperature
        self._keys = EndToEnd()

    @classmethod
    def from_config(cls, cfg: "CfgNode") -> "MoCoV3":
        """Build from ``cfg.MOCO``, with BatchNorm over all processes.

        The projection head has 2 layers behind a ResNet and 3 behind a ViT; that of a ResNet's
        prediction head ends without BatchNorm (official MoCo_ResNet and MoCo_ViT).
        """
        settings = cfg.MOCO.ENCODER
        hidden, dim = settings.MLP_DIM, settings.DIM
        encoder = build_encoder(settings.ARCH, dim=dim, **encoder_options(cfg))
        for block in encoder.modules():  # each begins as the identity, zero_init_residual
            if isinstance(block, Bottleneck):
                nn.init.zeros_(block.bn3.weight)  # type: ignore[arg-type] # torchvision's
            elif isinstance(block, BasicBlock):
                nn.init.zeros_(block.bn2.weight)  # type: ignore[arg-type]
        is_vit, name = settings.ARCH in VITS, head_name(encoder)
        width = getattr(encoder, name).in_features
        widths = [width, hidden, hidden, dim] if is_vit else [width, hidden, dim]
        setattr(encoder, name, Projector(*_mlp(widths)))
        predictor = nn.Sequential(*_mlp([dim, hidden, dim], last_norm=is_vit))
        model = cls(
            encoder, predictor, momentum=cfg.MOCO.MOMENTUM, temperature=cfg.MOCO.TEMPERATURE
        )
        synchronize_batchnorm(model, cfg.MODEL.DEVICE)
        return model

    @property
    def encoder_q(self) -> nn.Module:
        """The query encoder by MoCo's name."""
        return self.base_encoder

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the loss of a batch, 2 T (CE(q1, k2) + CE(q2, k1)), or of a part of it.

        Args:
            batch: ``query`` and ``key`` are two views (N, 3, H, W) of the same images. With
                ``gradient`` (N, 2, D), that of the loss with respect to `features`, they are a
                part of a batch.

        Returns:
            As MoCo.forward. For a part, ``loss_of_part`` is a scalar whose gradient in the backbone
            is that of the batch's loss through these images; that in the heads is 0.
        """
        if "gradient" in batch:
            product = (self.features(batch) * batch["gradient"]).sum()
            heads = (getattr(self.base_encoder, head_name(self.base_encoder)), self.predictor)
            # All parameters take part, as DistributedDataParallel expects of its last pass.
            unused = [p.sum() for head in heads for p in head.parameters()]
            return {"loss_of_part": product + 0 * torch.stack(unused).sum()}
        return self.contrast(self.features(batch), self.key_features(batch))

    def features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the query encoder's features (N, 2, D) of both views, before the heads."""
        return _features(self.base_encoder, batch)

    @torch.no_grad()
    def key_features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the momentum encoder's features (N, 2, D) of both views, before the head."""
        return _features(self.momentum_encoder, batch)

    def contrast(
        self, features: torch.Tensor, key_features: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the outputs of `forward` for features (N, 2, D) of a process's whole batch."""
        project = getattr(self.base_encoder, head_name(self.base_encoder))
        queries = [_unit(self.predictor(project(view))) for view in features.unbind(1)]
        with torch.no_grad():
            project = getattr(self.momentum_encoder, head_name(self.momentum_encoder))
            keys = [all_gather(_unit(project(view))) for view in key_features.unbind(1)]
        losses, accuracies, spreads = [], [], []
        # Similarities stay in fp32, as in MoCo.
        with torch.autocast(features.device.type, enabled=False):
            for query, key in zip(queries, reversed(keys), strict=True):
                similarities, labels = self._keys.contrast(query, key, None)
                logits = similarities / self.temperature
                losses.append(2 * self.temperature * F.cross_entropy(logits, labels))
                accuracies.append((logits.detach().argmax(dim=1) == labels).float().mean())
                spreads.append(query.detach().std(dim=0).mean() * query.shape[1] ** 0.5)
        return {
            "loss_contrastive": sum(losses[1:], losses[0]),
            "pretext_accuracy": torch.stack(accuracies).mean(),
            "feature_std": torch.stack(spreads).mean(),
        }

    @contextlib.contextmanager
    def running_statistics_kept(self) -> Iterator[None]:
        """Keep BatchNorm's running statistics of the query encoder as they are in a block."""
        norms = [
            layer
            for layer in self.base_encoder.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats
        ]
        for layer in norms:
            layer.track_running_stats = False
        try:
            yield
        finally:
            for layer in norms:
                layer.track_running_stats = True

    def finish_step(self) -> None:
        """Update the momentum encoder, after the optimizer's step."""
        self.update_key_encoder()

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Move the parameters of the momentum encoder towards those of the query encoder.

        As in the official code, the momentum encoder computes its own BatchNorm statistics.
        """
        torch._foreach_lerp_(
            list(self.momentum_encoder.parameters()),
            list(self.base_encoder.parameters()),
            1.0 - self.momentum,
        )


class Projector(nn.Sequential):
    """A projection head (N, D) -> (N, C), which can let the features (N, D) pass."""

    passes = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.passes:
            return x
        return super().forward(x)  # type: ignore[no-untyped-call] # torch has no type for it


def _mlp(widths: list[int], *, last_norm: bool = True) -> list[nn.Module]:
    """Return layers without biases; BatchNorm follows each, without parameters after the last."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs, bias=False))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(outputs, affine=False))
    return layers


def _features(encoder: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    projector = getattr(encoder, head_name(encoder))
    projector.passes = True
    try:
        return torch.stack([encoder(batch[view]).float() for view in _VIEWS], dim=1)
    finally:
        projector.passes = False


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    return F.normalize(embeddings.float(), dim=1)
