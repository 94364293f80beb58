"""The matched baseline: the same network, images, schedule and engine, trained with labels."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from moco_d2.pretrain.model.encoder import build_encoder, encoder_options

if TYPE_CHECKING:
    from detectron2.config import CfgNode


class SupervisedClassifier(nn.Module):
    """Cross-entropy classification of one view; same interface to the engine as MoCo."""

    def __init__(self, encoder: nn.Module):
        """
        Args:
            encoder: images (N, 3, H, W) -> class scores (N, classes).
        """
        super().__init__()
        self.encoder = encoder

    @classmethod
    def from_config(cls, cfg: "CfgNode", num_classes: int) -> "SupervisedClassifier":
        """Build from ``cfg.MOCO.ENCODER`` for a data set of `num_classes`."""
        return cls(build_encoder(cfg.MOCO.ENCODER.ARCH, dim=num_classes, **encoder_options(cfg)))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Loss and top-1 accuracy of ``query`` (N, 3, H, W) against ``label`` (N,)."""
        scores = self.encoder(batch["query"]).float()
        accuracy = (scores.detach().argmax(dim=1) == batch["label"]).float().mean()
        return {
            "loss_classification": F.cross_entropy(scores, batch["label"]),
            "pretext_accuracy": accuracy,
        }

    def finish_step(self) -> None:
        """Nothing to do; MoCo's place for the key encoder and the dictionary."""
