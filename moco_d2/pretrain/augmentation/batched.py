"""Augment the colors of a whole batch, blur and flip it on its device.

Workers only crop, because images differ in size before that, and pass on bytes, a quarter of the
size of floats. The other operations would take three quarters of a worker's time for two v2 views
of a 500 x 375 JPEG.

The distribution equals that of views.build_augmentation: every image draws its own factors and its
own order of the jitter's operations. The one difference is that torchvision rounds to a byte after
each Pillow operation.

What an image gets is one row of a table, which is sent in one copy, so a GPU never waits. There,
all operations are done to all images, with factors that change nothing where none is drawn: a few
passes over memory once `finish` is compiled. On a CPU each image only gets what it has drawn.

Legend: N batch, H, W size of a view, R reach of the blur, pixels.
"""

from typing import NamedTuple

import torch
from torch import nn

from moco_d2.engine.device import send
from moco_d2.pretrain.augmentation.color import (
    Planes,
    blend,
    blend_matrices,
    blur,
    blur_taps,
    luminance,
    reach_of,
    rotate_hue,
    tap_matrices,
)
from moco_d2.pretrain.augmentation.views import IMAGENET_MEAN, IMAGENET_STD, Recipe

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_BLENDS = 7  # three before the hue, three after it, and the grayscale at one end


class Drawn(NamedTuple):
    """What a batch has drawn. The hue is turned between the blends before and after it.

    Attributes:
        blends: Factors of color.blend, (N, 7, 3). Unused ones are (1, 0, 0).
        shift: Factors of color.rotate_hue, (N,).
        before_contrast: `blends` up to the contrast, and unused ones from there on, (N, 7, 3).
        shift_before_contrast: `shift` if it comes before the contrast, else 0, (N,).
        taps: Weights of the blur, (N, 2 R + 1).
        solarized, flipped: 1 for images that are, else 0, (N,).
    """

    blends: torch.Tensor
    shift: torch.Tensor
    before_contrast: torch.Tensor
    shift_before_contrast: torch.Tensor
    taps: torch.Tensor
    solarized: torch.Tensor
    flipped: torch.Tensor


class DeviceAugmentation(nn.Module):
    """Turns uint8 crops (N, 3, H, W) into normalized random views (N, 3, H, W).

    Random numbers are drawn on the CPU, so the views do not depend on the device.

    Attributes:
        finish: The module that computes the views; compiling it makes few passes of it on a GPU.
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
        self.reach = reach_of(high) if recipe.blur_probability else 0
        self.finish = Finish(
            hue_after=3 + recipe.gray_first, solarizes=recipe.solarize_probability > 0
        )
        self._constants: list[torch.Tensor] = []

    @torch.no_grad()
    def forward(self, crops: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """
        Args:
            crops: uint8 crops (N, 3, H, W) on any device.
            generator: A CPU generator.
        """
        drawn = self.draw(len(crops), generator)
        if crops.device.type == "cpu":
            return torch.cat(
                [
                    _finish_one(crop[None], row, self.finish.hue_after)
                    for crop, row in zip(crops, zip(*drawn, strict=True), strict=True)
                ]
            )
        columns = [part.flatten(1) if part.dim() > 1 else part[:, None] for part in drawn]
        table = send(torch.cat(columns, dim=1), crops.device)
        parts = table.split([column.shape[1] for column in columns], dim=1)
        shaped = [part.reshape(like.shape) for part, like in zip(parts, drawn, strict=True)]
        views: torch.Tensor = self.finish(crops, *shaped, *self._constants_for(crops))
        return views

    def _constants_for(self, crops: torch.Tensor) -> list[torch.Tensor]:
        """Return mean and deviation (3,), and the tap matrices of both sides, on the device."""
        sides = tuple(crops.shape[2:])
        known = self._constants
        if not known or (known[0].device, *(m.shape[1] for m in known[2:])) != (
            crops.device,
            *sides,
        ):
            values = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])
            matrices = [tap_matrices(side, self.reach) for side in sides]
            self._constants = [send(one, crops.device) for one in (*values, *matrices)]
        return self._constants

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw what `count` images get, on the CPU."""
        recipe = self.recipe
        strengths = recipe.jitter, recipe.jitter, recipe.saturation
        bounds = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
        jittered = _chosen(recipe.jitter_probability, count, generator)
        factors = [_uniform(one, count, generator) for one in (*bounds, (-recipe.hue, recipe.hue))]
        *factors, hue = factors
        turn = torch.rand(count, 4, generator=generator).argsort(dim=1)  # turn of each operation
        gray = _chosen(recipe.gray_probability, count, generator)
        blurred = _chosen(recipe.blur_probability, count, generator)
        sigma = _uniform(self.blur_sigma, count, generator) * blurred

        blends = torch.tensor([1.0, 0.0, 0.0]).repeat(count, _BLENDS, 1)
        after_hue = turn > turn[:, [_HUE]]
        # Blends 0 to 2 come before the hue, and 3 to 5 after it, which takes a turn itself.
        place = turn + 2 * after_hue + recipe.gray_first
        own = torch.where(jittered[:, None], torch.stack(factors, dim=1), 1.0)
        none, images = torch.zeros(count), torch.arange(count)
        for operation, other in (
            (_BRIGHTNESS, (none, none)),
            (_CONTRAST, (none, 1 - own[:, _CONTRAST])),
            (_SATURATION, (1 - own[:, _SATURATION], none)),
        ):
            rows = torch.stack([own[:, operation], *other], dim=1)
            blends[images, place[:, operation]] = rows
        blends[gray, 0 if recipe.gray_first else -1] = torch.tensor([0.0, 1.0, 0.0])
        shift = 6 * hue * jittered
        is_before = torch.arange(_BLENDS) < place[:, [_CONTRAST]]
        return Drawn(
            blends,
            shift,
            torch.where(is_before[..., None], blends, torch.tensor([1.0, 0.0, 0.0])),
            shift * after_hue[:, _CONTRAST],
            blur_taps(sigma, self.reach),
            _chosen(recipe.solarize_probability, count, generator).float(),
            self._flip(count, generator).float(),
        )

    def _flip(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return _chosen(0.5, count, generator)


class Finish(nn.Module):
    """Does to each image of a batch what it has drawn; without waits, and to be compiled."""

    def __init__(self, hue_after: int, *, solarizes: bool):
        """
        Args:
            hue_after: Number of blends before the hue is turned.
            solarizes: Whether an image can be solarized.
        """
        super().__init__()
        self.hue_after = hue_after
        self.solarizes = solarizes

    def forward(  # noqa: PLR0917 - the columns of a table
        self,
        crops: torch.Tensor,
        blends: torch.Tensor,
        shift: torch.Tensor,
        before_contrast: torch.Tensor,
        shift_before_contrast: torch.Tensor,
        taps: torch.Tensor,
        solarized: torch.Tensor,
        flipped: torch.Tensor,
        mean: torch.Tensor,
        std: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
    ) -> torch.Tensor:
        """Return views (N, 3, H, W) in channels_last.

        Args:
            crops: uint8 (N, 3, H, W).
            blends, shift, before_contrast, shift_before_contrast, taps, solarized, flipped: Drawn.
            mean, std: Of the normalization, (3,).
            rows, columns: Tap matrices of color.tap_matrices for H and for W.
        """
        size = crops.shape[2:]
        if torch.compiler.is_compiling():
            planes = _planes(crops)
            zero = torch.zeros_like(shift)[:, None, None]
            early = self._colors(planes, before_contrast, shift_before_contrast, zero)
            gray = luminance(early).mean((1, 2), keepdim=True)
            colored = torch.stack(self._colors(planes, blends, shift, gray), dim=2)
        else:
            colored = self._colors_by_products(crops, blends, shift).transpose(1, 2).contiguous()
        # colored: (N, H, 3, W)
        down = (taps @ rows.flatten(1)).unflatten(1, (size[0], -1))
        across = (taps @ columns.flatten(1)).unflatten(1, (size[1], -1))
        across = torch.where(flipped[:, None, None] > 0, across.flip(1), across)
        blurred = down @ colored.flatten(2)
        blurred = blurred.unflatten(2, (3, -1)).flatten(1, 2) @ across.transpose(1, 2)
        images = blurred.unflatten(1, (-1, 3)).permute(0, 2, 1, 3)
        if self.solarizes:
            inverted = (solarized[:, None, None, None] > 0) & (images >= _BRIGHT)
            images = torch.where(inverted, 1 - images, images)
        views = torch.addcmul((-mean / std)[:, None, None], images, (1 / std)[:, None, None])
        return views.contiguous(memory_format=torch.channels_last)

    def _colors(
        self, planes: Planes, blends: torch.Tensor, shift: torch.Tensor, mean: torch.Tensor
    ) -> Planes:
        for i, factors in enumerate(blends.unbind(dim=1)):
            if i == self.hue_after:
                planes = rotate_hue(planes, shift)
            planes = blend(planes, factors, mean)
        return planes

    def _colors_by_products(
        self, crops: torch.Tensor, blends: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        """Return the images (N, 3, H, W) of `_colors`, for a device without a compiler.

        `_colors` would touch two and a half times the memory there. Here a blend is a matrix
        product, with a fourth channel of ones for its flat part, and the mean is that of the images
        so far.
        """
        with_ones = crops.new_empty((len(crops), 4, *crops.shape[2:]), dtype=torch.float32)
        torch.div(crops, 255, out=with_ones[:, :3])
        with_ones[:, 3] = 1
        for i, matrix in enumerate(blend_matrices(blends).unbind(dim=1)):
            images = with_ones[:, :3]
            if i == self.hue_after:
                red, green, blue = images.unbind(dim=1)
                rotate_hue((red, green, blue), shift, in_place=True)
            red, green, blue = images.mean((2, 3)).unbind(dim=1)
            matrix[:, :3, 3] *= luminance((red, green, blue))[:, None]
            with_ones = (matrix @ with_ones.flatten(2)).unflatten(2, crops.shape[2:])
            with_ones[:, :3].clamp_(0, 1)
        return with_ones[:, :3]


_BRIGHT = 127.5 / 255  # 128 of 255 is the first level that Pillow inverts


def _finish_one(crop: torch.Tensor, row: tuple[torch.Tensor, ...], hue_after: int) -> torch.Tensor:
    """Do what an image (1, 3, H, W) has drawn, and nothing else."""
    drawn = Drawn(*row)
    planes = _planes(crop)
    for i, factors in enumerate(drawn.blends):
        if i == hue_after and drawn.shift:
            planes = rotate_hue(planes, drawn.shift[None])
        own, gray, flat = factors.tolist()
        if flat:
            planes = blend(planes, factors[None], luminance(planes).mean((1, 2), keepdim=True))
        elif (own, gray) != (1, 0):
            planes = blend(planes, factors[None], factors.new_zeros(1, 1, 1))
    image = torch.stack(planes, dim=1)
    if drawn.taps.max() < 1:
        image = blur(image, drawn.taps.tolist())
    if drawn.solarized:
        image = torch.where(image < _BRIGHT, image, 1 - image)
    if drawn.flipped:
        image = image.flip(-1)
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).view(2, 3, 1, 1)
    return ((image - mean) / std).contiguous(memory_format=torch.channels_last)


def _planes(crops: torch.Tensor) -> Planes:
    red, green, blue = (crops.float() / 255).unbind(dim=1)
    return red, green, blue


def _chosen(probability: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """Choose each image with a probability, (N,)."""
    return torch.rand(count, generator=generator) < probability


def _uniform(bounds: tuple[float, float], count: int, generator: torch.Generator) -> torch.Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)
