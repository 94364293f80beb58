"""LayerNorm over the channels of a map, which v0.6 lacks; compat.py gives it to get_norm."""

from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of a map (N, C, H, W), as main's norm ``LN``.

    As a subclass of torch's class, it has no weight decay in Detectron2's optimizer.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)  # as in main

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized map, (N, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
