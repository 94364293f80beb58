"""Augment the colors of a whole batch, blur and flip it on its device, with kornia.

Workers only crop, because images differ in size before that, and pass on bytes, a quarter of the
size of floats. The other operations would take three quarters of a worker's time for two v2 views
of a 500 x 375 JPEG.

The distribution equals that of views.build_augmentation: every image draws its own factors and its
own order of the jitter's operations. (kornia's ColorJitter draws one order per batch, and its
ColorJiggle shifts the brightness, which torchvision scales.) The one difference is that torchvision
rounds to a byte after each Pillow operation.

Legend: N batch, H, W size of a view.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from moco_d2.engine.device import send
from moco_d2.pretrain.augmentation.views import IMAGENET_MEAN, IMAGENET_STD, Recipe


class _Change(NamedTuple):
    """A change of some images of a batch: (images (n, 3, H, W), factors (n,)) -> images."""

    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    chosen: torch.Tensor  # indices (n,), on the CPU
    factors: torch.Tensor  # (n,), on the CPU


class DeviceAugmentation(nn.Module):
    """Turns uint8 crops (N, 3, H, W) into normalized random views (N, 3, H, W).

    Random numbers are drawn on the CPU, so the views do not depend on the device.
    """

    def __init__(self, recipe: Recipe, *, blur_sigma: tuple[float, float] = (0.1, 2.0)):
        """
        Args:
            recipe: The strength of the operations.
            blur_sigma: Range of the blur's standard deviation, pixels.
        """
        super().__init__()
        self.recipe = recipe
        low, high = blur_sigma
        self.blur_sigma = (low, high)

    @torch.no_grad()
    def forward(self, crops: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """
        Args:
            crops: uint8 crops (N, 3, H, W) on any device.
            generator: A CPU generator.
        """
        color = [self._jitter, self._to_gray]
        steps = [*(reversed(color) if self.recipe.gray_first else color), self._blur, self._flip]
        drawn = [change for step in steps for change in step(len(crops), generator)]
        changes = [change for change in drawn if len(change.chosen)]
        # One copy has all indices, and one all factors, so a GPU does not wait for each change.
        sizes = [len(change.chosen) for change in changes]
        indices = torch.cat([torch.zeros(0).long(), *(change.chosen for change in changes)])
        scale = torch.tensor([*IMAGENET_MEAN, *IMAGENET_STD])
        factors = torch.cat([*(change.factors for change in changes), scale])
        chosen = send(indices, crops.device).split(sizes)
        *parts, scale = send(factors, crops.device).split([*sizes, len(scale)])
        images = crops.float() / 255
        for change, now, part in zip(changes, chosen, parts, strict=True):
            images[now] = change.apply(images[now], part)
        mean, std = scale.view(2, 3, 1, 1)
        return (images - mean) / std

    def _jitter(self, count: int, generator: torch.Generator) -> list[_Change]:
        from kornia import enhance

        strength = self.recipe.jitter
        around_one = (max(0.0, 1 - strength), 1 + strength)
        hue = 2 * math.pi * self.recipe.hue
        operations = (
            (enhance.adjust_brightness_accumulative, around_one),
            (enhance.adjust_contrast_with_mean_subtraction, around_one),
            (enhance.adjust_saturation_with_gray_subtraction, around_one),
            (enhance.adjust_hue, (-hue, hue)),
        )
        chosen = torch.rand(count, generator=generator) < self.recipe.jitter_probability
        factors = [_uniform(bounds, count, generator) for _, bounds in operations]
        order = torch.rand(count, len(operations), generator=generator).argsort(dim=1)
        changes = []
        for turn in order.unbind(dim=1):
            for number, (operation, _) in enumerate(operations):
                now = (chosen & (turn == number)).nonzero().flatten()
                changes.append(_Change(operation, now, factors[number][now]))
        return changes

    def _to_gray(self, count: int, generator: torch.Generator) -> list[_Change]:
        from kornia.color import rgb_to_grayscale

        chosen = _choose(count, self.recipe.gray_probability, generator)
        return [_change(lambda images: rgb_to_grayscale(images).expand(-1, 3, -1, -1), chosen)]

    def _blur(self, count: int, generator: torch.Generator) -> list[_Change]:
        from kornia.filters import gaussian_blur2d

        chosen = _choose(count, self.recipe.blur_probability, generator)
        sigma = _uniform(self.blur_sigma, len(chosen), generator)[:, None].expand(-1, 2)
        if not self.blur_sigma[1] > 0:  # kornia refuses sigma 0, which means no blur
            return []
        width = 2 * math.ceil(3 * self.blur_sigma[1]) + 1  # 3 standard deviations to each side

        def blur(images: torch.Tensor) -> torch.Tensor:
            # kornia looks at the values of sigma, which a GPU would have to send back. Pillow, too,
            # repeats the border.
            return gaussian_blur2d(images, width, sigma, border_type="replicate")

        return [_change(blur, chosen)]

    def _flip(self, count: int, generator: torch.Generator) -> list[_Change]:
        return [_change(lambda images: images.flip(-1), _choose(count, 0.5, generator))]


def _change(apply: Callable[[torch.Tensor], torch.Tensor], chosen: torch.Tensor) -> _Change:
    """Return a change without factors."""
    return _Change(lambda images, _: apply(images), chosen, torch.zeros(len(chosen)))


def _choose(count: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Choose each image with a probability. Return the indices, on the CPU."""
    return (torch.rand(count, generator=generator) < probability).nonzero().flatten()


def _uniform(bounds: tuple[float, float], count: int, generator: torch.Generator) -> torch.Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)
