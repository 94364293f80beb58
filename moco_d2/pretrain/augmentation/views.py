"""The views of the contrastive task: v1 (as in InstDisc), v2 (with blur) and v3 (as in BYOL).

The numbers are those of the official main_moco.py. v1 and v2 differ in the hue jitter, in the
probability of the jitter, in the blur, and in the order of jitter and grayscale. v3 makes the
second view of an image otherwise than the first.
"""

import dataclasses

from torch import nn
from torchvision.transforms import v2

from moco_d2.pretrain.augmentation import opencv

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, for values in [0, 1], from torchvision
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The random operations between the random resized crop and the flip.

    Attributes:
        hue: Strength of the hue jitter, as a fraction of the color circle.
        jitter_probability, gray_probability, blur_probability: Fractions of the views that are
            changed.
        gray_first: Whether grayscale comes before the jitter.
        jitter: Strength of the jitter of brightness and contrast.
        saturation: Strength of the jitter of saturation.
        solarize_probability: Fraction of the views whose bright values are inverted.
    """

    hue: float
    jitter_probability: float
    blur_probability: float
    gray_first: bool
    gray_probability: float = 0.2
    jitter: float = 0.4
    saturation: float = 0.4
    solarize_probability: float = 0.0


AUGMENTATIONS = {
    "v1": Recipe(hue=0.4, jitter_probability=1.0, blur_probability=0.0, gray_first=True),
    "v2": Recipe(hue=0.1, jitter_probability=0.8, blur_probability=0.5, gray_first=False),
    "v3": Recipe(
        hue=0.1, jitter_probability=0.8, blur_probability=1.0, gray_first=False, saturation=0.2
    ),
}
# The recipe of the second view, where it is another one.
SECOND_VIEW = {
    "v3": dataclasses.replace(AUGMENTATIONS["v3"], blur_probability=0.1, solarize_probability=0.2),
}


def build_augmentation(
    name: str | Recipe,
    *,
    size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> v2.Transform:
    """Return a transform: decoded image (RGB) -> random view, a uint8 tensor (3, size, size).

    normalization.Normalization finishes it. It draws from torch's CPU generator.

    Args:
        name: A name in AUGMENTATIONS, or a recipe.
        size: Side of a view, pixels.
        crop_scale: Range of the area of the crop, as a fraction of the image.
        blur_sigma: Range of the blur's standard deviation, pixels.

    Raises:
        KeyError: If there is no such name.
    """
    recipe = name if isinstance(name, Recipe) else AUGMENTATIONS[name]
    gray = opencv.Grayscale(p=recipe.gray_probability)
    jitter: nn.Module = opencv.Jitter(recipe.jitter, recipe.jitter, recipe.saturation, recipe.hue)
    if recipe.jitter_probability < 1:
        jitter = v2.RandomApply([jitter], p=recipe.jitter_probability)
    steps: list[nn.Module] = [_crop(size, crop_scale)]
    steps += (gray, jitter) if recipe.gray_first else (jitter, gray)
    if recipe.blur_probability:
        low, high = blur_sigma
        steps.append(v2.RandomApply([opencv.Blur((low, high))], p=recipe.blur_probability))
    if recipe.solarize_probability:
        steps.append(v2.RandomApply([opencv.Solarize()], p=recipe.solarize_probability))
    return v2.Compose([*steps, opencv.HorizontalFlip(), opencv.ToTensor()])


def build_crop(*, size: int, crop_scale: tuple[float, float] = (0.2, 1.0)) -> v2.Transform:
    """Return a transform: decoded image (RGB) -> random crop, a uint8 tensor (3, size, size).

    Workers do only this if the device does the other steps of the augmentation.
    """
    return v2.Compose([_crop(size, crop_scale), opencv.ToTensor()])


def _crop(size: int, scale: tuple[float, float]) -> opencv.Crop:
    low, high = scale
    return opencv.Crop(size, scale=(low, high))


def build_evaluation_transform(size: int, *, margin: bool = True) -> v2.Transform:
    """Return a transform: PIL image -> normalized center crop (3, size, size).

    For size 224 it is torchvision's: resize to 256, then crop. Without `margin` the shorter side
    becomes `size`, and an image of this size stays as it is.
    """
    return v2.Compose(
        [
            v2.Resize(round(size * 256 / 224) if margin else size, antialias=True),
            v2.CenterCrop(size),
            opencv.ToPixels(),
            opencv.ToNormalizedTensor(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
