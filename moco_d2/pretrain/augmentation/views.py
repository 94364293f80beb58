"""The views of the contrastive task: v1 (InstDisc's) and v2 (with blur).

Numbers are those of the official main_moco.py; v1 and v2 differ in the strength of the hue jitter,
in how often the jitter is applied, and in the blur.
"""

import dataclasses

from torch import nn
from torchvision.transforms import v2

from moco_d2.pretrain.augmentation import opencv

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of images in [0, 1]; torchvision's
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What follows the random resized crop, before the flip of half the views.

    Attributes:
        hue: the jitter's, as a share of the color circle.
        jitter_probability, gray_probability, blur_probability: share of views it is done to.
        gray_first: gray scale comes before the jitter, not after it.
        jitter: strength of the jitter of brightness, contrast and saturation.
    """

    hue: float
    jitter_probability: float
    blur_probability: float
    gray_first: bool
    gray_probability: float = 0.2
    jitter: float = 0.4


AUGMENTATIONS = {
    "v1": Recipe(hue=0.4, jitter_probability=1.0, blur_probability=0.0, gray_first=True),
    "v2": Recipe(hue=0.1, jitter_probability=0.8, blur_probability=0.5, gray_first=False),
}


def _to_normalized_tensor() -> opencv.ToNormalizedTensor:
    return opencv.ToNormalizedTensor(IMAGENET_MEAN, IMAGENET_STD)


def build_augmentation(
    name: str,
    *,
    size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> v2.Transform:
    """A transform from a PIL image (RGB) to one random view, a normalized float tensor (3, size,
    size).

    Randomness comes from torch's CPU generator.

    Raises:
        KeyError: `name` is neither "v1" nor "v2".
    """
    recipe = AUGMENTATIONS[name]
    gray = opencv.Grayscale(p=recipe.gray_probability)
    jitter: nn.Module = opencv.Jitter(recipe.jitter, recipe.jitter, recipe.jitter, recipe.hue)
    if recipe.jitter_probability < 1:
        jitter = v2.RandomApply([jitter], p=recipe.jitter_probability)
    steps: list[nn.Module] = [_crop(size, crop_scale)]
    steps += (gray, jitter) if recipe.gray_first else (jitter, gray)
    if recipe.blur_probability:
        low, high = blur_sigma
        blur = opencv.Blur((low, high))
        steps.append(v2.RandomApply([blur], p=recipe.blur_probability))
    return v2.Compose([*steps, opencv.HorizontalFlip(), _to_normalized_tensor()])


def build_crop(*, size: int, crop_scale: tuple[float, float] = (0.2, 1.0)) -> v2.Transform:
    """A transform from a PIL image (RGB) to one random crop, a tensor of bytes (3, size, size).

    What workers do of the augmentation when the device does the rest.
    """
    return v2.Compose([_crop(size, crop_scale), opencv.ToTensor()])


def _crop(size: int, scale: tuple[float, float]) -> opencv.Crop:
    low, high = scale
    return opencv.Crop(size, scale=(low, high))


def build_evaluation_transform(size: int) -> v2.Transform:
    """A transform from a PIL image to its normalized center (3, size, size), torchvision's
    Resize-256-crop-224 scaled.
    """
    return v2.Compose(
        [
            v2.Resize(round(size * 256 / 224), antialias=True),
            v2.CenterCrop(size),
            opencv.ToPixels(),
            _to_normalized_tensor(),
        ]
    )
