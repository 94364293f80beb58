"""The matched supervised baseline: same network, images, schedule and engine, but with labels."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from moco_d2.pretrain.model.encoder import build_encoder, encoder_options

if TYPE_CHECKING:
    from detectron2.config import CfgNode


class SupervisedClassifier(nn.Module):
    """Cross-entropy classification of one view, with the interface of MoCo."""

    def __init__(self, encoder: nn.Module):
        """
        Args:
            encoder: images (N, 3, H, W) -> class scores (N, classes).
        """
        super().__init__()
        self.encoder = encoder

    @classmethod
    def from_config(cls, cfg: "CfgNode", num_classes: int) -> "SupervisedClassifier":
        """Build from ``cfg.MOCO.ENCODER`` for a dataset of `num_classes`."""
        return cls(build_encoder(cfg.MOCO.ENCODER.ARCH, dim=num_classes, **encoder_options(cfg)))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return loss and top-1 accuracy of ``query`` (N, 3, H, W) against ``label`` (N,)."""
        scores = self.encoder(batch["query"]).float()
        accuracy = (scores.detach().argmax(dim=1) == batch["label"]).float().mean()
        return {
            "loss_classification": F.cross_entropy(scores, batch["label"]),
            "pretext_accuracy": accuracy,
        }

    def finish_step(self) -> None:
        """Do nothing. MoCo updates its key encoder and dictionary here."""
