"""Augment a view on a worker, with OpenCV on uint8 arrays.

torchvision's classes draw the random factors, and OpenCV computes the pixels (torch those of the
crop), in a fifth of the time of Pillow. Factors, order and definitions are those of the Pillow
operations in the official code. Pixels differ from them only by rounding: OpenCV rounds, and Pillow
cuts off. docs/pretraining.md has the differences.

Legend: H, W size of a view; pixels are (H, W, 3), RGB.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms import v2

# This sets the whole process, on purpose, and is not undone. It must hold in every process that
# computes views, and in its parent before the fork: a forked worker would wait forever for OpenCV's
# threads, which only the parent has. Threads would not help anyway, because a view is too small.
# Only pretraining and linear evaluation import this module, not `import moco_d2` or fine-tuning
# (tests/pretrain/augmentation/test_opencv.py).
cv2.setNumThreads(0)

_LEVELS = np.arange(256, dtype=np.float32)


class ToPixels(nn.Module):
    """PIL image (RGB) -> uint8 (H, W, 3)."""

    def forward(self, image: Image.Image) -> np.ndarray:
        return np.array(image)


class Crop(v2.RandomResizedCrop):
    """Decoded image, uint8 (3, h, w) or of Pillow -> random crop, uint8 (H, W, 3).

    torch resizes it with the triangle filter of Pillow, whose weights it rounds to 16 bits.
    """

    def forward(self, image: torch.Tensor | Image.Image) -> np.ndarray:
        if isinstance(image, Image.Image):
            image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        at = self.make_params([image])
        (top, left), (height, width) = (at["top"], at["left"]), (at["height"], at["width"])
        crop = image[None, :, top : top + height, left : left + width]
        # From other formats, torch resizes each color on its own.
        crop = crop.contiguous(memory_format=torch.channels_last)
        resized = F.interpolate(crop, size=self.size, mode="bilinear", antialias=True)
        pixels: np.ndarray = resized[0].permute(1, 2, 0).contiguous().numpy()
        return pixels


class Jitter(v2.ColorJitter):
    """Changes brightness, contrast, saturation and hue by random factors, in a random order."""

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        params = self.make_params([])
        changes = (
            (_brightness, params["brightness_factor"]),
            (_contrast, params["contrast_factor"]),
            (_saturation, params["saturation_factor"]),
            (_hue, params["hue_factor"]),
        )
        for index in params["fn_idx"]:
            change, factor = changes[index]
            if factor is not None:
                pixels = change(pixels, float(factor))
        return pixels


class Grayscale(v2.RandomGrayscale):
    """Makes three equal gray channels, with probability `p`."""

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return _gray(pixels) if torch.rand(1) < self.p else pixels


class Blur(nn.Module):
    """Gaussian blur with a random standard deviation. The edge is repeated, as in Pillow.

    Pillow approximates the Gaussian by three box filters; this is the exact Gaussian.
    """

    def __init__(self, sigma: tuple[float, float]):
        """
        Args:
            sigma: Range of the standard deviation, pixels.
        """
        super().__init__()
        self.sigma = sigma

    def draw(self) -> float:
        low, high = self.sigma
        return low + (high - low) * torch.rand(()).item()

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        sigma = self.draw()
        if sigma <= 0:  # for 0, OpenCV would choose a width itself
            return pixels
        kernel = cv2.getGaussianKernel(round(6 * sigma + 1) | 1, sigma)  # 3 sigma to each side
        # GaussianBlur gives the same pixels but for rounding, in twice the time.
        return cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


class Solarize(nn.Module):
    """Inverts the values of 128 and above, as Pillow's ``ImageOps.solarize``."""

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return cv2.LUT(pixels, _table(np.where(_LEVELS < 128, _LEVELS, 255 - _LEVELS)))


class HorizontalFlip(v2.RandomHorizontalFlip):
    """Exchanges left and right, with probability `p`."""

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return cv2.flip(pixels, 1) if torch.rand(1) < self.p else pixels


class ToTensor(nn.Module):
    """uint8 array (H, W, 3) -> uint8 tensor (3, H, W) in the same memory."""

    def forward(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).permute(2, 0, 1)


class ToNormalizedTensor(nn.Module):
    """uint8 array (H, W, 3) -> (value / 255 - mean) / std, a float tensor (3, H, W).

    The values come from a table of 256. The memory format is channels_last.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        """
        Args:
            mean, std: Statistics of each channel, for values in [0, 1].
        """
        super().__init__()
        values = torch.arange(256, dtype=torch.float32).div(255)[:, None]
        self.table = ((values - torch.tensor(mean)) / torch.tensor(std)).numpy()[None]

    def forward(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(cv2.LUT(pixels, self.table)).permute(2, 0, 1)


def _table(levels: np.ndarray) -> np.ndarray:
    """Return a table of the 256 levels, cut to [0, 255] and then towards 0, as in Pillow."""
    return levels.clip(0, 255).astype(np.uint8)


def _gray(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    return cv2.LUT(pixels, _table(factor * _LEVELS))


def _contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distance from the mean gray value, which Pillow rounds to a whole number."""
    mean = np.float32(int(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] + 0.5))
    return cv2.LUT(pixels, _table(mean + factor * (_LEVELS - mean)))


def _saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    # Subtract half a level, because OpenCV rounds and Pillow cuts off.
    return cv2.addWeighted(pixels, factor, _gray(pixels), 1 - factor, -0.5)


def _hue(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue by a fraction of the color circle, in 256 steps as in Pillow."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)
    rows += np.tile(np.array([int(factor * 255) % 256, 0, 0], np.uint8), hsv.shape[1])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
