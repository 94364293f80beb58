"""LayerNorm over the channels of a map, which v0.6 lacks; compat.py gives it to get_norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each cell of a map (N, C, H, W), as main's norm ``LN``.

    Like main's, it is no subclass of torch's class, so Detectron2's optimizer does not count it as
    a norm, and it has weight decay.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized map, (N, C, H, W)."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)
