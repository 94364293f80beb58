"""Momentum Contrast (He et al., arXiv:1911.05722, Algorithm 1).

Legend: N batch, C embedding, K dictionary size, T temperature, m momentum.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moco_d2.pretrain.dictionary import build_dictionary
from moco_d2.pretrain.encoder import build_encoder
from moco_d2.pretrain.shuffle_bn import encode_shuffled, norm_layer, world_size


class MoCo(nn.Module):
    """Query encoder, momentum encoder and dictionary; forward gives the contrastive loss.

    One training step is: ``losses = model(views)``, backward, optimizer step,
    ``model.finish_step()``.
    """

    def __init__(
        self, encoder: nn.Module, dictionary: nn.Module, *, momentum: float, temperature: float
    ):
        """
        Args:
            encoder: the query encoder, images (N, 3, H, W) -> (N, C). The key encoder starts as its
                copy.
            dictionary: see dictionary.py.
            momentum: m of eq. 2.
            temperature: T of eq. 1.
        """
        super().__init__()
        self.encoder_q = encoder
        self.encoder_k = copy.deepcopy(encoder).requires_grad_(False)
        self.dictionary = dictionary
        self.momentum = momentum
        self.temperature = temperature
        self._new_keys: torch.Tensor | None = None

    @classmethod
    def from_config(cls, cfg: Any) -> "MoCo":
        """Build from ``cfg.MOCO``."""
        moco = cfg.MOCO
        encoder = build_encoder(
            moco.ENCODER.ARCH,
            dim=moco.ENCODER.DIM,
            mlp=moco.ENCODER.MLP,
            width_per_group=moco.ENCODER.WIDTH_PER_GROUP,
            norm_layer=norm_layer(moco.BN_SPLITS),
        )
        dictionary = build_dictionary(
            moco.DICTIONARY.NAME, dim=moco.ENCODER.DIM, size=moco.DICTIONARY.SIZE
        )
        return cls(encoder, dictionary, momentum=moco.MOMENTUM, temperature=moco.TEMPERATURE)

    @property
    def needs_shuffle(self) -> bool:
        """Whether a key can meet another BatchNorm group than its query's; alone in one group it
        cannot.
        """
        splits = {getattr(m, "num_splits", 1) for m in self.encoder_k.modules()}
        return world_size() > 1 or splits != {1}

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """InfoNCE loss of a batch, eq. 1.

        Args:
            batch: ``query`` and ``key``, two views (N, 3, H, W) of the same images.

        Returns:
            ``loss_contrastive`` (a scalar) and ``pretext_accuracy`` (share of queries whose own key
            is the nearest of all 1 + K; no gradient).
        """
        queries = F.normalize(self.encoder_q(batch["query"]).float(), dim=1)
        with torch.no_grad():
            keys = self.encode_keys(batch["key"])
        # The similarities stay in fp32: at T = 0.07, bf16's 8 bits would blur neighbouring logits.
        with torch.autocast(queries.device.type, enabled=False):
            logits = self.dictionary.logits(queries, keys) / self.temperature
            labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            loss = F.cross_entropy(logits, labels)
        self._new_keys = keys
        accuracy = (logits.detach().argmax(dim=1) == 0).float().mean()
        return {"loss_contrastive": loss, "pretext_accuracy": accuracy}

    def encode_keys(self, images: torch.Tensor) -> torch.Tensor:
        """Unit-length keys (N, C), encoded in shuffled order where that has an effect."""

        def encode(x: torch.Tensor) -> torch.Tensor:
            return F.normalize(self.encoder_k(x).float(), dim=1)

        return encode_shuffled(encode, images) if self.needs_shuffle else encode(images)

    @torch.no_grad()
    def finish_step(self) -> None:
        """After the optimizer's step: momentum update of the key encoder (eq. 2), then enqueue.

        Parameters only: as in the official code, the key encoder's BatchNorm statistics are its
            own.
        """
        torch._foreach_lerp_(
            list(self.encoder_k.parameters()),
            list(self.encoder_q.parameters()),
            1.0 - self.momentum,
        )
        self.dictionary.update(self._new_keys)
        self._new_keys = None
