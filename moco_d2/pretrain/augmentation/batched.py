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

import torch
from torch import nn

from moco_d2.pretrain.augmentation.views import IMAGENET_MEAN, IMAGENET_STD, Recipe


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
        images = crops.float() / 255
        color = [self._jitter, self._to_gray]
        for change in reversed(color) if self.recipe.gray_first else color:
            images = change(images, generator)
        images = self._flip(self._blur(images, generator), generator)
        mean, std = (
            images.new_tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return (images - mean) / std

    def _jitter(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        from kornia import enhance

        N, strength = len(images), self.recipe.jitter
        around_one = (max(0.0, 1 - strength), 1 + strength)
        hue = 2 * math.pi * self.recipe.hue
        operations = (
            (enhance.adjust_brightness_accumulative, around_one),
            (enhance.adjust_contrast_with_mean_subtraction, around_one),
            (enhance.adjust_saturation_with_gray_subtraction, around_one),
            (enhance.adjust_hue, (-hue, hue)),
        )
        chosen = torch.rand(N, generator=generator) < self.recipe.jitter_probability
        factors = [_uniform(bounds, N, generator) for _, bounds in operations]
        order = torch.rand(N, len(operations), generator=generator).argsort(dim=1)
        for turn in order.unbind(dim=1):
            for number, (operation, _) in enumerate(operations):
                now = (chosen & (turn == number)).nonzero().flatten()
                if len(now):
                    factor = factors[number][now].to(images)
                    now = now.to(images.device)
                    images[now] = operation(images[now], factor)
        return images

    def _to_gray(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        from kornia.color import rgb_to_grayscale

        chosen = _choose(images, self.recipe.gray_probability, generator)
        images[chosen] = rgb_to_grayscale(images[chosen]).expand(-1, 3, -1, -1)
        return images

    def _blur(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        from kornia.filters import gaussian_blur2d

        chosen = _choose(images, self.recipe.blur_probability, generator)
        sigma = _uniform(self.blur_sigma, len(chosen), generator).to(images)
        if len(chosen) and self.blur_sigma[1] > 0:  # kornia refuses sigma 0, which means no blur
            width = 2 * math.ceil(3 * self.blur_sigma[1]) + 1  # 3 standard deviations to each side
            images[chosen] = gaussian_blur2d(
                images[chosen],
                width,
                sigma[:, None].expand(-1, 2),
                border_type="replicate",  # as in Pillow
            )
        return images

    def _flip(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        chosen = _choose(images, 0.5, generator)
        images[chosen] = images[chosen].flip(-1)
        return images


def _choose(images: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Choose each image with a probability. Return the indices, on the device of the images."""
    chosen = torch.rand(len(images), generator=generator) < probability
    return chosen.nonzero().flatten().to(images.device)


def _uniform(bounds: tuple[float, float], count: int, generator: torch.Generator) -> torch.Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)
