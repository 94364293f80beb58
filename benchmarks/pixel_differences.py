"""The differences in pixels between our operations on workers and Pillow's; for feeding.py."""

import collections
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from moco_d2.pretrain.augmentation import opencv
from moco_d2.pretrain.data.images import read_pixels

SIZE = 224
_STRENGTHS = np.eye(4) * (0.4, 0.4, 0.4, 0.1)  # of v2: brightness, contrast, saturation, hue


def _pillow_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(opencv.Blur((0.1, 2.0)).draw()))


def _pairs() -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    """Return the name of an operation -> (ours, Pillow's), which draw the same numbers."""
    jitters = {
        name: (opencv.Jitter(*strengths), v2.ColorJitter(*strengths))
        for name, strengths in zip(
            ("brightness", "contrast", "saturation", "hue"), _STRENGTHS.tolist(), strict=True
        )
    }
    return {
        **jitters,
        "grayscale": (opencv.Grayscale(p=1.0), v2.RandomGrayscale(p=1.0)),
        "blur": (opencv.Blur((0.1, 2.0)), _pillow_blur),
        "solarizing": (opencv.Solarize(), v2.RandomSolarize(threshold=128, p=1.0)),
    }


def _apart(seed: int, ours: tuple[Any, Any], pillows: tuple[Any, Any]) -> np.ndarray:
    """Return the differences of two (operation, image), in levels of 255."""
    results = []
    for operation, image in (ours, pillows):
        torch.manual_seed(seed)
        results.append(np.asarray(operation(image)).astype(int))
    return np.abs(results[0] - results[1])


def rows(paths: Sequence[str | Path], seeds: Iterable[int]) -> list[list[str]]:
    """Return for each operation its largest and its mean difference, in levels of 255."""
    our_crop, pillows_crop = (
        kind(SIZE, scale=(0.2, 1.0)) for kind in (opencv.Crop, v2.RandomResizedCrop)
    )
    found = collections.defaultdict(list)
    for path, seed in itertools.product(paths, seeds):
        image, pixels = Image.open(path).convert("RGB"), read_pixels(path)
        decoded = pixels.permute(1, 2, 0).numpy().astype(int)
        found["decoding a JPEG"].append(np.abs(decoded - np.asarray(image)))
        found["random crop"].append(_apart(seed, (our_crop, pixels), (pillows_crop, image)))
        view = our_crop(pixels)
        for name, (ours, pillows) in _pairs().items():
            found[name].append(_apart(seed, (ours, view), (pillows, Image.fromarray(view))))
    return [
        [name, str(max(map(np.max, all_of))), f"{np.mean(list(map(np.mean, all_of))):.3f}"]
        for name, all_of in found.items()
    ]
