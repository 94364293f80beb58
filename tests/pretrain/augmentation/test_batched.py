"""The device's augmentation against torchvision's on Pillow: operation by operation with equal
factors, and the distribution of whole views.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms.v2 import functional as pillow

from moco_d2.pretrain.augmentation.batched import DeviceAugmentation
from moco_d2.pretrain.augmentation.color import blend, blur, blur_taps, luminance, rotate_hue
from moco_d2.pretrain.augmentation.normalization import Normalization
from moco_d2.pretrain.augmentation.views import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SECOND_VIEW,
    Recipe,
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


def blended(own: float, gray: float, flat: float):
    """Blend of an image (1, 3, H, W) with the mean of its luminance."""

    def change(image: torch.Tensor) -> torch.Tensor:
        planes = image.unbind(dim=1)
        mean = luminance(planes).mean((1, 2), keepdim=True)
        return torch.stack(blend(planes, torch.tensor([[own, gray, flat]]), mean), dim=1)

    return change


def turned(factor: float):
    return lambda x: torch.stack(rotate_hue(x.unbind(dim=1), torch.tensor([6 * factor])), dim=1)


@pytest.mark.parametrize(
    "on_pillow, on_device, factors",
    [
        (pillow.adjust_brightness, lambda f: blended(f, 0, 0), (0.6, 1.0, 1.4)),
        (pillow.adjust_contrast, lambda f: blended(f, 0, 1 - f), (0.6, 1.0, 1.4)),
        (pillow.adjust_saturation, lambda f: blended(f, 1 - f, 0), (0.6, 1.0, 1.4)),
        (pillow.adjust_hue, turned, (-0.4, 0.0, 0.1)),
        (lambda x, _: pillow.to_grayscale(x, 3), lambda _: blended(0, 1, 0), (0,)),
        (
            lambda x, sigma: x.filter(ImageFilter.GaussianBlur(sigma)),
            lambda sigma: lambda x: blur(x, blur_taps(torch.tensor([sigma]), 6)[0].tolist()),
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
        found = on_device(factor)(tensor(image))
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


def views_of_workers(recipe: Recipe, seed: int) -> torch.Tensor:
    transform, image = build_augmentation(recipe, size=SIDE, crop_scale=(1, 1)), picture()
    torch.manual_seed(seed)
    return Normalization()(torch.stack([transform(image) for _ in range(VIEWS)]))


@functools.cache
def crops_of_workers(seed: int) -> torch.Tensor:
    crop, image = build_crop(size=SIDE, crop_scale=(1, 1)), picture()
    torch.manual_seed(seed)
    return torch.stack([crop(image) for _ in range(VIEWS)])


def views_of_device(augmentation: DeviceAugmentation, seed: int) -> torch.Tensor:
    crops = crops_of_workers(seed)
    assert crops.dtype == torch.uint8
    return augmentation(crops.clone(), torch.Generator().manual_seed(seed))


def views_of_all_at_once(augmentation: DeviceAugmentation, seed: int) -> torch.Tensor:
    """As on a GPU, in a part of the time."""
    crops = crops_of_workers(seed)
    drawn = augmentation.draw(len(crops), torch.Generator().manual_seed(seed))
    return augmentation.finish(crops, *drawn, *augmentation._constants_for(crops))


def distances(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: ks_distance(a[name], b[name]) for name in a}


RECIPES = AUGMENTATIONS | {f"{name}, second": recipe for name, recipe in SECOND_VIEW.items()}


@pytest.fixture(scope="module")
def of_workers():
    return {name: statistics(views_of_workers(recipe, seed=0)) for name, recipe in RECIPES.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_views_have_the_same_distribution(of_workers, name):
    found = statistics(views_of_device(DeviceAugmentation(RECIPES[name]), seed=1))
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
        ({"saturation": 0.9}, "saturation"),
        ({"solarize_probability": 0.2}, "red side"),
    ],
)
def test_the_comparison_sees_a_changed_setting(of_workers, changes, seen_in):
    recipe = dataclasses.replace(AUGMENTATIONS["v2"], **changes)
    found = statistics(views_of_all_at_once(DeviceAugmentation(recipe), seed=1))
    assert distances(of_workers["v2"], found)[seen_in] > KS_LIMIT


def test_the_comparison_sees_another_blur_and_a_missing_flip(of_workers, monkeypatch):
    recipe = AUGMENTATIONS["v2"]
    less_blur = DeviceAugmentation(recipe, blur_sigma=(0.1, 1.0))
    found = statistics(views_of_all_at_once(less_blur, seed=1))
    assert distances(of_workers["v2"], found)["texture"] > KS_LIMIT
    augmentation = DeviceAugmentation(recipe)
    monkeypatch.setattr(augmentation, "_flip", lambda count, generator: torch.zeros(count))
    found = statistics(views_of_all_at_once(augmentation, seed=1))
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


def pictures(count: int) -> torch.Tensor:
    """Crops of all colors, also black, white and gray ones, which have no hue."""
    crops = torch.randint(0, 256, (count, 3, 12, SIDE), dtype=torch.uint8)
    crops[:3] = torch.tensor([0, 255, 99], dtype=torch.uint8).view(3, 1, 1, 1)
    return crops.contiguous(memory_format=torch.channels_last)


EVERYTHING = {"jitter": 0.9, "solarize_probability": 0.5, "blur_probability": 0.5}


@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_a_device_computes_all_images_at_once_as_a_cpu_one_by_one(name, backend):
    augmentation = DeviceAugmentation(dataclasses.replace(AUGMENTATIONS[name], **EVERYTHING))
    crops = pictures(64)
    drawn = augmentation.draw(len(crops), torch.Generator().manual_seed(5))
    wanted = augmentation(crops, torch.Generator().manual_seed(5))
    if backend:
        torch._dynamo.reset()
        augmentation.finish.compile(backend=backend, fullgraph=True, dynamic=False)
    found = augmentation.finish(crops, *drawn, *augmentation._constants_for(crops))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert wanted.is_contiguous(memory_format=torch.channels_last)
    # Where a value is at the edge of what solarizing inverts, rounding decides.
    assert ((found - wanted).abs() > 1e-4).float().mean() < 1e-4


def test_solarizing_inverts_bright_values_as_pillow_does():
    off = {"jitter_probability": 0, "gray_probability": 0, "blur_probability": 0}
    recipe = dataclasses.replace(AUGMENTATIONS["v2"], **off, solarize_probability=1)
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    augmentation = DeviceAugmentation(recipe)
    augmentation._flip = lambda count, generator: torch.zeros(count)
    view = augmentation(levels, torch.Generator().manual_seed(0))[0, :, 0]
    row = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    inverted = torch.from_numpy(np.asarray(ImageOps.solarize(row)).copy())[0] / 255
    mean, std = (torch.tensor(value)[:, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(view * std + mean, inverted.expand(3, -1), rtol=0, atol=1e-6)


def test_the_table_of_a_batch_has_the_order_that_each_image_draws():
    """Every order of the four operations has equal probability, as torchvision's randperm."""
    augmentation = DeviceAugmentation(AUGMENTATIONS["v1"])
    drawn = augmentation.draw(6000, torch.Generator().manual_seed(0))
    own, gray, flat = drawn.blends.unbind(dim=2)
    names = torch.zeros_like(own)  # of the blend in each place: 1 brightness, 2 contrast, ...
    names[(own != 1) & (gray == 0) & (flat == 0)] = 1
    names[flat != 0] = 2
    names[(own != 1) & (own != 0) & (gray != 0)] = 3
    orders, counts = names[:, 1:].unique(dim=0, return_counts=True)  # without the grayscale
    assert len(orders) == 24
    # 250 are expected, with a standard deviation of 15.5.
    assert counts.min() > 180 and counts.max() < 320
    assert ((names[:, 1:] > 0).sum(dim=1) == 3).all()
