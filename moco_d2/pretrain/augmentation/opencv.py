"""The random changes of a view's pixels on a worker, with OpenCV on arrays of bytes.

torchvision's classes draw the random factors; only the arithmetic is OpenCV's, which needs a fifth
of the time that Pillow needs. Factors, order and definitions are those of the official code's
Pillow operations, from which a pixel differs by rounding: OpenCV rounds where Pillow cuts off.

Legend: H, W size of a view; pixels are (H, W, 3), RGB.
"""

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

# A setting of the whole process, on purpose, and not restored: it must hold in whatever process
# computes views, and in its parent before that forks, because a forked worker would wait for ever
# for OpenCV's threads, which only the parent has. Nothing is lost, as a view is too small to share.
# This module is imported by pretraining and linear evaluation only, never by `import moco_d2` or by
# fine-tuning (tests/pretrain/augmentation/test_opencv.py).
cv2.setNumThreads(0)

_LEVELS = np.arange(256, dtype=np.float32)


class ToPixels(nn.Module):
    """PIL image (RGB) -> bytes (H, W, 3)."""

    def forward(self, image: Image.Image) -> np.ndarray:
        return np.array(image)


class Crop(v2.RandomResizedCrop):
    """PIL image (RGB) -> bytes (H, W, 3) of a random part of it, resized by Pillow."""

    def forward(self, image: Image.Image) -> np.ndarray:
        at = self.make_params([image])
        box = (at["left"], at["top"], at["left"] + at["width"], at["top"] + at["height"])
        resized = image.crop(box).resize(self.size[::-1], Image.Resampling.BILINEAR)
        return np.array(resized)


class Jitter(v2.ColorJitter):
    """Brightness, contrast, saturation and hue, each by a random factor, in a random order."""

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
    """Gray, with three equal channels, with probability `p`."""

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return _gray(pixels) if torch.rand(1) < self.p else pixels


class Blur(nn.Module):
    """Gaussian blur with a random standard deviation; the edge is repeated, as in Pillow.

    Pillow approximates the Gaussian by three box filters; this is the Gaussian.
    """

    def __init__(self, sigma: tuple[float, float]):
        """
        Args:
            sigma: range of the standard deviation, pixels.
        """
        super().__init__()
        self.sigma = sigma

    def draw(self) -> float:
        low, high = self.sigma
        return low + (high - low) * torch.rand(()).item()

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        sigma = self.draw()
        if sigma <= 0:  # no blur; OpenCV would choose a width of its own
            return pixels
        return cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


class HorizontalFlip(v2.RandomHorizontalFlip):
    """Left and right exchanged, with probability `p`."""

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return cv2.flip(pixels, 1) if torch.rand(1) < self.p else pixels


class ToTensor(nn.Module):
    """Bytes (H, W, 3) -> tensor of bytes (3, H, W), the same memory."""

    def forward(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).permute(2, 0, 1)


class ToNormalizedTensor(nn.Module):
    """Bytes (H, W, 3) -> float tensor (3, H, W) whose channels lie side by side in memory,
    (value / 255 - mean) / std; from a table of the 256 values.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        """
        Args:
            mean, std: of each channel, of values in [0, 1].
        """
        super().__init__()
        values = torch.arange(256, dtype=torch.float32).div(255)[:, None]
        self.table = ((values - torch.tensor(mean)) / torch.tensor(std)).numpy()[None]

    def forward(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(cv2.LUT(pixels, self.table)).permute(2, 0, 1)


def _table(levels: np.ndarray) -> np.ndarray:
    """Values for the 256 levels, cut off as Pillow does: to [0, 255], then towards 0."""
    return levels.clip(0, 255).astype(np.uint8)


def _gray(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    return cv2.LUT(pixels, _table(factor * _LEVELS))


def _contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Away from the mean of the gray image, a whole number in Pillow."""
    mean = np.float32(int(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] + 0.5))
    return cv2.LUT(pixels, _table(mean + factor * (_LEVELS - mean)))


def _saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    # Half a level less, because OpenCV rounds where Pillow cuts off.
    return cv2.addWeighted(pixels, factor, _gray(pixels), 1 - factor, -0.5)


def _hue(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Turned by `factor` of the color circle, of 256 steps as in Pillow."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
