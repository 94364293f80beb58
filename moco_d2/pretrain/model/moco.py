"""Momentum Contrast (He et al., arXiv:1911.05722, Algorithm 1).

Legend: N batch of one process, C embedding, K dictionary size, T temperature, m momentum, W world
size.
"""

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from moco_d2.engine.exchange import world_size
from moco_d2.pretrain.model import info_nce
from moco_d2.pretrain.model.dictionary import Dictionary, build_dictionary
from moco_d2.pretrain.model.encoder import build_encoder, encoder_options
from moco_d2.pretrain.model.shuffle_bn import encode_shuffled, norm_layer

if TYPE_CHECKING:
    from detectron2.config import CfgNode


class MoCo(nn.Module):
    """Query encoder, key encoder and dictionary; forward gives the contrastive loss.

    One training step is: ``losses = model(batch)``, backward, optimizer step,
    ``model.finish_step()``. With accumulated gradients, several forward and backward passes come
    before the optimizer's step; the dictionary and the key encoder change in ``finish_step`` only.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dictionary: Dictionary,
        *,
        momentum: float,
        temperature: float,
        symmetric: bool = False,
    ):
        """
        Args:
            encoder: The query encoder, images (N, 3, H, W) -> (N, C). A momentum encoder starts as
                its copy.
            dictionary: A dictionary of dictionary.py.
            momentum: m in equation 2.
            temperature: T in equation 1.
            symmetric: Whether the loss with exchanged views is added.
        """
        super().__init__()
        self.encoder_q = encoder
        if dictionary.key_encoder == "momentum":
            self.encoder_k = copy.deepcopy(encoder).requires_grad_(False)
        elif dictionary.key_encoder == "query":
            self.encoder_k = encoder
        self.dictionary = dictionary
        self.momentum = momentum
        self.temperature = temperature
        self.symmetric = symmetric
        # Queries, keys and image indices for the dictionary's update at the end of the step.
        self._seen: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []

    @classmethod
    def from_config(cls, cfg: "CfgNode", *, num_images: int) -> "MoCo":
        """Build from ``cfg.MOCO`` for a dataset of `num_images`."""
        moco = cfg.MOCO
        encoder = build_encoder(
            moco.ENCODER.ARCH,
            dim=moco.ENCODER.DIM,
            mlp=moco.ENCODER.MLP,
            norm_layer=norm_layer(moco.BN_SPLITS),
            **encoder_options(cfg),
        )
        dictionary = build_dictionary(
            moco.DICTIONARY.NAME,
            dim=moco.ENCODER.DIM,
            size=moco.DICTIONARY.SIZE,
            num_images=num_images,
            bank_momentum=moco.DICTIONARY.BANK_MOMENTUM,
        )
        return cls(
            encoder,
            dictionary,
            momentum=moco.MOMENTUM,
            temperature=moco.TEMPERATURE,
            symmetric=moco.SYMMETRIC,
        )

    @property
    def needs_shuffle(self) -> bool:
        """Whether there are several BatchNorm groups over which keys can be shuffled."""
        splits = {getattr(m, "num_splits", 1) for m in self.encoder_q.modules()}
        return self.dictionary.key_encoder is not None and (world_size() > 1 or splits != {1})

    @property
    def may_leak(self) -> bool:
        """Whether query and key share a BatchNorm group, which can give the positive key away
        (paper section 3.3).
        """
        return self.dictionary.key_encoder is not None and not self.needs_shuffle

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the InfoNCE loss of a batch (equation 1).

        Args:
            batch: ``query`` and ``key`` are two views (N, 3, H, W) of the same images. ``index``
                (N,) has their indices in the dataset. A memory bank needs ``index``, and ``key``
                only for the symmetric loss; the others need ``key`` and no ``index``.

        Returns:
            ``loss_contrastive`` is a scalar with gradient, the sum of both directions if symmetric.
            ``pretext_accuracy`` is the fraction of queries whose positive is the nearest key.
            ``feature_std`` is the standard deviation of the queries over the batch, times sqrt(C):
            1 if they are spread over the sphere, 0 if all are equal.
        """
        views = [(batch["query"], batch.get("key"))]
        if self.symmetric:
            views.append((batch["key"], batch["query"]))
        outputs = [self._contrast(query, key, batch.get("index")) for query, key in views]
        losses, accuracies, spreads = zip(*outputs, strict=True)
        return {
            "loss_contrastive": sum(losses),
            "pretext_accuracy": torch.stack(accuracies).mean(),
            "feature_std": torch.stack(spreads).mean(),
        }

    def _contrast(
        self, query: torch.Tensor, key: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return loss, accuracy and spread of one direction, and store what `finish_step` needs."""
        queries = F.normalize(self.encoder_q(query).float(), dim=1)
        encoder = self.dictionary.key_encoder
        keys = None if encoder is None or key is None else self.encode_keys(key)
        # Similarities stay in fp32: at T = 0.07, bf16 with its 8 bits would round logits too much.
        with torch.autocast(queries.device.type, enabled=False):
            if self.dictionary.size > info_nce.TILE:
                pairs = self.dictionary.pairs(queries, keys, index)
                loss, is_nearest = info_nce.tiled_info_nce(queries, *pairs, self.temperature)
            else:
                logits, labels = self.dictionary.contrast(queries, keys, index)
                logits = logits / self.temperature
                loss = F.cross_entropy(logits, labels)
                is_nearest = logits.detach().argmax(dim=1) == labels
        seen = queries.detach(), None if keys is None else keys.detach(), index
        self._seen.append(seen)
        accuracy = is_nearest.float().mean()
        return loss, accuracy, seen[0].std(dim=0).mean() * seen[0].shape[1] ** 0.5

    def encode_keys(self, images: torch.Tensor) -> torch.Tensor:
        """Return the keys (W N, C) of all processes, of unit length.

        They are encoded in shuffled order if `needs_shuffle`. They have a gradient if the query
        encoder computes them.
        """

        def encode(x: torch.Tensor) -> torch.Tensor:
            return F.normalize(self.encoder_k(x).float(), dim=1)

        with torch.set_grad_enabled(self.dictionary.key_encoder == "query"):
            return encode_shuffled(encode, images) if self.needs_shuffle else encode(images)

    @torch.no_grad()
    def finish_step(self) -> None:
        """Update the key encoder and then the dictionary, after the optimizer's step."""
        self.update_key_encoder()
        for seen in self._seen:
            self.dictionary.update(*seen)
        self._seen.clear()

    def discard_step(self) -> None:
        """Forget the batches that `finish_step` has not yet taken in."""
        self._seen.clear()

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Move a momentum encoder towards the query encoder (equation 2).

        Only parameters are averaged. As in the official code, the key encoder computes its own
        BatchNorm statistics.
        """
        if self.dictionary.key_encoder == "momentum":
            torch._foreach_lerp_(
                list(self.encoder_k.parameters()),
                list(self.encoder_q.parameters()),
                1.0 - self.momentum,
            )
