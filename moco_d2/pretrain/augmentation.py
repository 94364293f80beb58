"""The views of the contrastive task: v1 (InstDisc's) and v2 (with blur).

Numbers are those of the official main_moco.py; v1 and v2 differ in the strength of the hue jitter,
in how often the jitter is applied, and in the blur.
"""

import torch
from torchvision.transforms import v2

from moco_d2.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of images in [0, 1]; torchvision's
IMAGENET_STD = (0.229, 0.224, 0.225)

AUGMENTATIONS = ("v1", "v2")


class PillowGaussianBlur(v2.Transform):
    """Pillow's blur with a random radius: what the official v2 uses, and faster on a PIL image than
    a convolution.
    """

    def __init__(self, sigma: tuple[float, float]):
        """
        Args:
            sigma: range of the standard deviation, pixels.
        """
        super().__init__()
        self.sigma = sigma

    def make_params(self, flat_inputs):
        low, high = self.sigma
        return {"sigma": low + (high - low) * torch.rand(()).item()}

    def transform(self, inpt, params):
        from PIL import ImageFilter

        return inpt.filter(ImageFilter.GaussianBlur(radius=params["sigma"]))


def _to_normalized_tensor() -> list[v2.Transform]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]


def build_augmentation(
    name: str,
    *,
    size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> v2.Transform:
    """A transform from a PIL image (RGB) to one random view, a normalised float tensor (3, size,
    size).

    Randomness comes from torch's CPU generator.

    Raises:
        UserError: `name` is neither "v1" nor "v2".
    """
    crop = v2.RandomResizedCrop(size, scale=tuple(crop_scale), antialias=True)
    if name == "v1":
        steps = [
            crop,
            v2.RandomGrayscale(p=0.2),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.4),
            v2.RandomHorizontalFlip(),
        ]
    elif name == "v2":
        steps = [
            crop,
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([PillowGaussianBlur(tuple(blur_sigma))], p=0.5),
            v2.RandomHorizontalFlip(),
        ]
    else:
        raise UserError(f"MOCO.AUGMENTATION.NAME {name!r} is not one of {', '.join(AUGMENTATIONS)}")
    return v2.Compose([*steps, *_to_normalized_tensor()])


def build_evaluation_transform(size: int) -> v2.Transform:
    """A transform from a PIL image to its normalised centre (3, size, size), torchvision's
    Resize-256-crop-224 scaled.
    """
    return v2.Compose(
        [
            v2.Resize(round(size * 256 / 224), antialias=True),
            v2.CenterCrop(size),
            *_to_normalized_tensor(),
        ]
    )
