"""The device's augmentation against torchvision's on Pillow: operation by operation with equal
factors, and the distribution of whole views.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from kornia import color, enhance, filters
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as pillow

from moco_d2.pretrain.augmentation.batched import DeviceAugmentation
from moco_d2.pretrain.augmentation.views import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_augmentation,
    build_crop,
)

SIDE = 32
VIEWS = 1500
# Kolmogorov and Smirnov: two samples of equal size n from one distribution differ by more than
# 1.95 sqrt(2 / n) once in a thousand times.
KS_LIMIT = 1.95 * math.sqrt(2 / VIEWS)


def picture() -> Image.Image:
    """Colors that change from left to right, and texture for the blur to take away."""
    x = np.linspace(0, 1, SIDE)
    ramp = np.stack([40 + 150 * x, 90 - 40 * x, 140 - 100 * x], axis=-1)[None]
    noise = np.random.default_rng(0).normal(0, 15, (SIDE, SIDE, 1))
    return Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    "on_pillow, on_device, factors",
    [
        (pillow.adjust_brightness, enhance.adjust_brightness_accumulative, (0.6, 1.0, 1.4)),
        (pillow.adjust_contrast, enhance.adjust_contrast_with_mean_subtraction, (0.6, 1.0, 1.4)),
        (
            pillow.adjust_saturation,
            enhance.adjust_saturation_with_gray_subtraction,
            (0.6, 1.0, 1.4),
        ),
        (pillow.adjust_hue, lambda x, f: enhance.adjust_hue(x, f * 2 * math.pi), (-0.4, 0.0, 0.1)),
        (lambda x, _: pillow.to_grayscale(x, 3), lambda x, _: color.rgb_to_grayscale(x), (0,)),
        (
            lambda x, sigma: x.filter(ImageFilter.GaussianBlur(sigma)),
            lambda x, sigma: filters.gaussian_blur2d(
                x, 13, torch.stack([sigma, sigma], dim=1), border_type="replicate"
            ),
            (0.1, 0.5, 1.0, 2.0),
        ),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "gray", "blur"],
)
def test_each_operation_is_torchvisions(on_pillow, on_device, factors):
    """To two steps of a byte on average; the hue, which Pillow holds in a byte, to three."""
    image = picture()
    for factor in factors:
        expected = tensor(on_pillow(image, factor))
        found = on_device(tensor(image), torch.tensor([float(factor)]))
        assert (found - expected).abs().mean() < 3 / 255


def statistics(views: torch.Tensor) -> dict[str, np.ndarray]:
    """What the steps of the augmentation change, of each normalized view (N, 3, H, W): (N,)."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    images = views * std + mean
    red, green, blue = images.unbind(dim=1)
    luminance = images.mean(dim=1)
    right = luminance[..., SIDE // 2 :].mean((1, 2)) - luminance[..., : SIDE // 2].mean((1, 2))
    red_right = red[..., SIDE // 2 :].mean((1, 2)) - red[..., : SIDE // 2].mean((1, 2))
    hue = torch.atan2(
        math.sqrt(3) * (green - blue).mean((1, 2)), (2 * red - green - blue).mean((1, 2))
    )
    gray = (images.amax(dim=1) - images.amin(dim=1)).amax((1, 2)) < 1 / 255
    found = {
        **{f"mean of {name}": images[:, i].mean((1, 2)) for i, name in enumerate("rgb")},
        **{f"deviation of {name}": images[:, i].std((1, 2)) for i, name in enumerate("rgb")},
        "saturation": (images.amax(dim=1) - images.amin(dim=1)).mean((1, 2)),
        "gray": gray.float(),
        "hue": hue.masked_fill(gray, 0.0),  # gray has none
        "side": right,
        "red side": red_right,
        "texture": (luminance[:, 1:] - luminance[:, :-1]).square().mean((1, 2)).sqrt(),
    }
    # Coarser than the byte that Pillow rounds to, so that rounding makes no steps of its own.
    return {name: (value * 100).round().div(100).numpy() for name, value in found.items()}


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of the two samples' distribution functions."""
    values = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def views_of_workers(name: str, seed: int) -> torch.Tensor:
    transform, image = build_augmentation(name, size=SIDE, crop_scale=(1, 1)), picture()
    torch.manual_seed(seed)
    return torch.stack([transform(image) for _ in range(VIEWS)])


@functools.cache
def crops_of_workers(seed: int) -> torch.Tensor:
    crop, image = build_crop(size=SIDE, crop_scale=(1, 1)), picture()
    torch.manual_seed(seed)
    return torch.stack([crop(image) for _ in range(VIEWS)])


def views_of_device(augmentation: DeviceAugmentation, seed: int) -> torch.Tensor:
    crops = crops_of_workers(seed)
    assert crops.dtype == torch.uint8
    return augmentation(crops.clone(), torch.Generator().manual_seed(seed))


def distances(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: ks_distance(a[name], b[name]) for name in a}


@pytest.fixture(scope="module")
def of_workers():
    return {name: statistics(views_of_workers(name, seed=0)) for name in AUGMENTATIONS}


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_views_have_the_same_distribution(of_workers, name):
    found = statistics(views_of_device(DeviceAugmentation(AUGMENTATIONS[name]), seed=1))
    too_far = {k: d for k, d in distances(of_workers[name], found).items() if d > KS_LIMIT}
    assert not too_far


@pytest.mark.parametrize(
    "changes, seen_in",
    [
        ({"hue": 0.2}, "hue"),
        ({"jitter": 0.6}, "mean of g"),
        ({"jitter_probability": 1.0}, "mean of g"),
        ({"gray_probability": 0.35}, "gray"),
        ({"blur_probability": 0.7}, "texture"),
    ],
)
def test_the_comparison_sees_a_changed_setting(of_workers, changes, seen_in):
    recipe = dataclasses.replace(AUGMENTATIONS["v2"], **changes)
    found = statistics(views_of_device(DeviceAugmentation(recipe), seed=1))
    assert distances(of_workers["v2"], found)[seen_in] > KS_LIMIT


def test_the_comparison_sees_another_blur_and_a_missing_flip(of_workers, monkeypatch):
    recipe = AUGMENTATIONS["v2"]
    less_blur = DeviceAugmentation(recipe, blur_sigma=(0.1, 1.0))
    found = statistics(views_of_device(less_blur, seed=1))
    assert distances(of_workers["v2"], found)["texture"] > KS_LIMIT
    augmentation = DeviceAugmentation(recipe)
    monkeypatch.setattr(augmentation, "_flip", lambda count, generator: [])
    found = statistics(views_of_device(augmentation, seed=1))
    assert distances(of_workers["v2"], found)["red side"] > KS_LIMIT


def test_each_image_of_a_batch_is_changed_on_its_own():
    crops = build_crop(size=SIDE)(picture()).expand(64, -1, -1, -1)
    recipe = dataclasses.replace(AUGMENTATIONS["v1"], gray_probability=0.0)
    views = DeviceAugmentation(recipe)(crops, torch.Generator().manual_seed(0))
    assert len({round(view.sum().item(), 1) for view in views}) == 64


def test_a_step_that_chooses_no_image_changes_nothing():
    recipe = dataclasses.replace(
        AUGMENTATIONS["v2"], jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0
    )
    crops = build_crop(size=SIDE)(picture())[None]
    view = DeviceAugmentation(recipe)(crops, torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (crops / 255 - mean) / std
    assert any(torch.allclose(view, x, atol=1e-6) for x in (expected, expected.flip(-1)))


def test_a_sigma_of_zero_is_no_blur():
    recipe = dataclasses.replace(
        AUGMENTATIONS["v2"], jitter_probability=0, gray_probability=0, blur_probability=1
    )
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8)
    augmentation = DeviceAugmentation(recipe, blur_sigma=(0.0, 0.0))
    views = augmentation(images, torch.Generator().manual_seed(0))
    shift = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    pixels = views * torch.tensor(IMAGENET_STD).view(3, 1, 1) + shift
    for found, image in zip(pixels, images / 255, strict=True):
        assert torch.allclose(found, image, atol=1e-6) or torch.allclose(
            found, image.flip(-1), atol=1e-6
        )
