"""The views' colors, blur and flip for a whole batch on its device, with kornia.

Workers crop, since images differ in size until then, and hand over bytes: a quarter of what floats
take. The rest, three quarters of a worker's time for two v2 views of a 500 x 375 JPEG, is done
here.

The distribution is that of views.build_augmentation, image by image: every image draws its own
factors and its own order of the jitter's operations. (kornia's ColorJitter draws one order a batch;
its ColorJiggle shifts brightness where torchvision scales it.) The one difference is that
torchvision's Pillow operations round to a byte after each step.

Legend: N batch, H, W size of a view.
"""

import math

import torch
from torch import nn

from moco_d2.pretrain.augmentation.views import IMAGENET_MEAN, IMAGENET_STD, Recipe


class DeviceAugmentation(nn.Module):
    """Crops of bytes (N, 3, H, W) -> normalized random views (N, 3, H, W).

    Random numbers are drawn on the CPU, so the views do not depend on the device.
    """

    def __init__(self, recipe: Recipe, *, blur_sigma: tuple[float, float] = (0.1, 2.0)):
        """
        Args:
            blur_sigma: range of the blur's standard deviation, pixels.
        """
        super().__init__()
        self.recipe = recipe
        low, high = blur_sigma
        self.blur_sigma = (low, high)

    @torch.no_grad()
    def forward(self, crops: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """
        Args:
            crops: bytes (N, 3, H, W) on any device.
            generator: of the CPU.
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
        if len(chosen) and self.blur_sigma[1] > 0:  # sigma 0 is no blur, which kornia refuses
            width = 2 * math.ceil(3 * self.blur_sigma[1]) + 1  # 3 standard deviations to each side
            images[chosen] = gaussian_blur2d(
                # Pillow repeats the edge too.
                images[chosen],
                width,
                sigma[:, None].expand(-1, 2),
                border_type="replicate",
            )
        return images

    def _flip(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        chosen = _choose(images, 0.5, generator)
        images[chosen] = images[chosen].flip(-1)
        return images


def _choose(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Indices of a random `share` of the images, on their device."""
    chosen = torch.rand(len(images), generator=generator) < share
    return chosen.nonzero().flatten().to(images.device)


def _uniform(bounds: tuple[float, float], count: int, generator: torch.Generator) -> torch.Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)
