"""Augmentation for semantic segmentation (paper, appendix A.5): an image is scaled by a random
ratio, cropped to a fixed size, and mirrored.
"""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from fvcore.transforms.transform import Transform

from moco_d2.errors import UserError


class RandomScale(T.Augmentation):
    """Scales an image by a ratio drawn uniformly from a range, its aspect kept.

    Detectron2's ResizeScale scales towards a size; by how much depends on the image's own.
    """

    def __init__(self, min_ratio: float, max_ratio: float):
        """
        Args:
            min_ratio, max_ratio: of the new side to the old one, positive.
        """
        super().__init__()
        self.min_ratio, self.max_ratio = min_ratio, max_ratio

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resizing of an image (H, W, C), to one pixel a side at least."""
        ratio = np.random.uniform(self.min_ratio, self.max_ratio)
        height, width = image.shape[:2]
        scaled = (max(1, round(side * ratio)) for side in (height, width))
        return T.ResizeTransform(height, width, *scaled)


class PadToSize(T.Augmentation):
    """Extends an image that is smaller than the crop to the right and downwards, as DeepLab does:
    the batch always has the crop's size, and what is added is neither seen nor trained on.
    """

    def __init__(
        self, size: tuple[int, int], *, pixel: tuple[float, float, float], ignore_value: int
    ):
        """
        Args:
            size: height and width.
            pixel: value of an added pixel, in the channels' order; the mean becomes 0.
            ignore_value: label of an added pixel.
        """
        super().__init__()
        self.size = tuple(size)
        self.pixel = tuple(pixel)
        self.ignore_value = ignore_value

    def get_transform(self, image: np.ndarray) -> Transform:
        """The padding of an image (H, W, C)."""
        height, width = (
            max(side, wanted) for side, wanted in zip(image.shape[:2], self.size, strict=True)
        )
        return PadTransform(height, width, self.pixel, self.ignore_value)


class PadTransform(Transform):
    """Extends to a height and width; fvcore's gives all channels one value."""

    def __init__(self, height: int, width: int, pixel: tuple[float, ...], ignore_value: int):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(h, w, C) -> (height, width, C)."""
        return self._extend(img, np.round(self.pixel))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) -> (height, width)."""
        return self._extend(segmentation, self.ignore_value)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Nothing moves."""
        return coords

    def _extend(self, old: np.ndarray, value: Any) -> np.ndarray:
        new = np.empty((self.height, self.width, *old.shape[2:]), old.dtype)
        new[:] = value
        new[: old.shape[0], : old.shape[1]] = old
        return new


def build_scale_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """RandomScale by MOCO.RANDOM_SCALE, a crop of INPUT.CROP.SIZE, padding to it, and what
    INPUT.RANDOM_FLIP says.

    Raises:
        UserError: INPUT.CROP is not of an absolute size.
    """
    crop = cfg.INPUT.CROP
    if not crop.ENABLED or crop.TYPE != "absolute":
        raise UserError(
            "MOCO.RANDOM_SCALE makes images of many sizes, which a crop makes one: set "
            "INPUT.CROP.ENABLED True, INPUT.CROP.TYPE absolute and INPUT.CROP.SIZE in pixels"
        )
    height, width = (int(side) for side in crop.SIZE)
    size = height, width
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
