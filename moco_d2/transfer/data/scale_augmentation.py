"""Augmentation for semantic segmentation (paper, appendix A.5): scale an image by a random ratio,
crop it to a fixed size, and mirror it; and large-scale jitter, the same for detectors.
"""

import importlib.util
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from fvcore.transforms.transform import Transform

from moco_d2.errors import UserError


class RandomScale(T.Augmentation):
    """Scales an image by a ratio drawn uniformly from a range, and keeps its aspect ratio.

    Detectron2's ResizeScale scales to a target size, so its ratio depends on the image's size.
    """

    def __init__(self, min_ratio: float, max_ratio: float):
        """
        Args:
            min_ratio, max_ratio: Range of the ratio of the new side to the old one, above 0.
        """
        super().__init__()
        self.min_ratio, self.max_ratio = min_ratio, max_ratio

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the resizing of an image (H, W, C); each side keeps at least one pixel."""
        ratio = np.random.uniform(self.min_ratio, self.max_ratio)
        height, width = image.shape[:2]
        scaled = (max(1, round(side * ratio)) for side in (height, width))
        return T.ResizeTransform(height, width, *scaled)


class PadToSize(T.Augmentation):
    """Pads an image that is smaller than the crop at the right and the bottom, as DeepLab does. The
    batch then always has the crop's size, and the loss ignores the padding.
    """

    def __init__(
        self, size: tuple[int, int], *, pixel: tuple[float, float, float], ignore_value: int
    ):
        """
        Args:
            size: Height and width.
            pixel: Value of the padding, in the order of the channels. The mean pixel becomes 0.
            ignore_value: Label of the padding.
        """
        super().__init__()
        self.size = tuple(size)
        self.pixel = tuple(pixel)
        self.ignore_value = ignore_value

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the padding of an image (H, W, C)."""
        height, width = (
            max(side, wanted) for side, wanted in zip(image.shape[:2], self.size, strict=True)
        )
        return PadTransform(height, width, self.pixel, self.ignore_value)


class PadTransform(Transform):
    """Pads to a height and width with a value per channel; fvcore's PadTransform has only one."""

    def __init__(self, height: int, width: int, pixel: tuple[float, ...], ignore_value: int):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Pad (h, w, C) to (height, width, C)."""
        return self._extend(img, np.round(self.pixel))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Pad (h, w) to (height, width)."""
        return self._extend(segmentation, self.ignore_value)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the coordinates unchanged."""
        return coords

    def _extend(self, old: np.ndarray, value: Any) -> np.ndarray:
        new = np.empty((self.height, self.width, *old.shape[2:]), old.dtype)
        new[:] = value
        new[: old.shape[0], : old.shape[1]] = old
        return new


def build_scale_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Return RandomScale with MOCO.RANDOM_SCALE, a crop to INPUT.CROP.SIZE, padding to the same
    size, and the flips of INPUT.RANDOM_FLIP.

    Raises:
        UserError: If INPUT.CROP has no absolute size.
    """
    size = _crop_size(cfg)
    _, *flips = build_augmentation(cfg, is_train=True)  # the first one resizes
    return [
        RandomScale(*cfg.MOCO.RANDOM_SCALE),
        T.RandomCrop("absolute", size),
        PadToSize(
            size,
            pixel=cfg.MODEL.PIXEL_MEAN,
            ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        ),
        *flips,
    ]


def build_large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Return the augmentations of Detectron2's ViTDet: the flips of INPUT.RANDOM_FLIP, ResizeScale
    with MOCO.RANDOM_SCALE relative to INPUT.CROP.SIZE, and a random crop to this size. The model
    pads smaller images.

    Raises:
        UserError: If INPUT.CROP has no absolute size, or shapely is missing, with which polygons
            are cropped.
    """
    height, width = _crop_size(cfg)
    polygons = cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    if polygons and importlib.util.find_spec("shapely") is None:
        raise UserError(
            "MOCO.RANDOM_SCALE crops polygons with shapely, which is not installed: pip install "
            "shapely, or set INPUT.MASK_FORMAT bitmask"
        )
    _, *flips = build_augmentation(cfg, is_train=True)  # the first one resizes
    low, high = cfg.MOCO.RANDOM_SCALE
    return [
        *flips,
        T.ResizeScale(low, high, height, width),
        T.FixedSizeCrop(crop_size=(height, width), pad=False),
    ]


def _crop_size(cfg: CfgNode) -> tuple[int, int]:
    crop = cfg.INPUT.CROP
    if not crop.ENABLED or crop.TYPE != "absolute":
        raise UserError(
            "MOCO.RANDOM_SCALE needs a crop, because it makes images of different sizes: set "
            "INPUT.CROP.ENABLED True, INPUT.CROP.TYPE absolute and INPUT.CROP.SIZE in pixels"
        )
    height, width = (int(side) for side in crop.SIZE)
    return height, width
