"""A network of kilobytes, for where the network does not matter."""

import torch
import torch.nn.functional as F
from torch import nn


class SmallNetwork(nn.Module):
    """Convolution, BatchNorm, average pooling and a head named as torchvision and MoCo v2 do.

    A step in a millisecond, a checkpoint of kilobytes.
    """

    WIDTH = 10

    def __init__(self, dim: int, *, mlp: bool = False, norm_layer=None):
        super().__init__()
        self.conv = nn.Conv2d(3, self.WIDTH, 3)
        self.bn = (norm_layer or nn.BatchNorm2d)(self.WIDTH)
        self.fc = nn.Linear(self.WIDTH, dim)
        if mlp:
            self.fc = nn.Sequential(nn.Linear(self.WIDTH, self.WIDTH), nn.ReLU(), self.fc)

    @classmethod
    def build(cls, arch, *, dim, mlp=False, norm_layer=None, **widths):
        """Stands for pretraining's build_encoder, whatever MOCO.ENCODER says."""
        return cls(dim, mlp=mlp, norm_layer=norm_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.bn(self.conv(x))).mean(dim=(2, 3)))
