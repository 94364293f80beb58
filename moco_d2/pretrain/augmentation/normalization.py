"""Normalize the views of a batch on its device, where they arrive as bytes."""

import torch
from torch import nn

from moco_d2.engine.device import send
from moco_d2.pretrain.augmentation import opencv
from moco_d2.pretrain.augmentation.views import IMAGENET_MEAN, IMAGENET_STD


class Normalization(nn.Module):
    """Turns the bytes of complete views (N, 3, H, W) into floats: (value / 255 - mean) / std.

    The memory format stays. On a CPU the values come from the table of opencv.ToNormalizedTensor.

    Attributes:
        finish: The module that computes the views on a GPU; compiled, it is one pass over memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.finish = _Normalize()
        self._by_table = opencv.ToNormalizedTensor(IMAGENET_MEAN, IMAGENET_STD)
        self._constants: list[torch.Tensor] = []

    @torch.no_grad()
    def forward(
        self, views: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """
        Args:
            views: uint8 views on any device. Floats are complete, and are returned as they are.
            generator: Not used.
        """
        if views.is_floating_point():
            return views
        if views.device.type == "cpu":
            pixels = views.permute(0, 2, 3, 1).contiguous()
            rows = self._by_table(pixels.flatten(0, 1).numpy()).permute(1, 2, 0)
            found = rows.view(pixels.shape).permute(0, 3, 1, 2)
            is_last = views.is_contiguous(memory_format=torch.channels_last)
            return found if is_last else found.contiguous()
        if not self._constants or self._constants[0].device != views.device:
            constants = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None]
            self._constants = [send(one, views.device) for one in constants]
        normalized: torch.Tensor = self.finish(views, *self._constants)
        return normalized


class _Normalize(nn.Module):
    def forward(self, views: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return views.float().div_(255).sub_(mean).div_(std)
