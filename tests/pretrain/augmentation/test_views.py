import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from moco_d2.pretrain.augmentation import opencv
from moco_d2.pretrain.augmentation.normalization import Normalization
from moco_d2.pretrain.augmentation.views import (
    SECOND_VIEW,
    build_augmentation,
    build_evaluation_transform,
)

# From main_moco.py of the official code, the lines of the two augmentations.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def picture(size=(50, 40), seed=0) -> Image.Image:
    opencv = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(opencv)


def jitter(transform: v2.ColorJitter) -> dict[str, tuple[float, float]]:
    return {
        name: tuple(round(bound, 6) for bound in getattr(transform, name))
        for name in ("brightness", "contrast", "saturation", "hue")
    }


def around_one(strength: float) -> tuple[float, float]:
    return (round(1 - strength, 6), round(1 + strength, 6))


def check_ends(steps: list, size: int) -> None:
    """What all versions share: the crop they begin with, and the normalization that follows."""
    crop, to_tensor = steps[0], steps[-1]
    assert isinstance(crop, v2.RandomResizedCrop)
    assert tuple(crop.size) == (size, size)
    assert crop.scale == (0.2, 1.0)
    assert crop.ratio == (3 / 4, 4 / 3)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    wanted = v2.functional.normalize(
        v2.functional.to_dtype(v2.functional.to_image(levels), scale=True), MEAN, STD
    )
    views = to_tensor(levels)[None]
    assert views.dtype == torch.uint8
    torch.testing.assert_close(Normalization()(views)[0], wanted, rtol=0, atol=1e-6)


def test_v1_is_instdiscs():
    steps = list(build_augmentation("v1", size=224).transforms)
    assert [type(step) for step in steps] == [
        opencv.Crop,
        opencv.Grayscale,
        opencv.Jitter,
        opencv.HorizontalFlip,
        opencv.ToTensor,
    ]
    check_ends(steps, 224)
    assert steps[1].p == 0.2
    assert jitter(steps[2]) == {
        "brightness": around_one(0.4),
        "contrast": around_one(0.4),
        "saturation": around_one(0.4),
        "hue": (-0.4, 0.4),
    }
    assert steps[3].p == 0.5


def test_v2_is_the_papers():
    steps = list(build_augmentation("v2", size=224).transforms)
    assert [type(step) for step in steps] == [
        opencv.Crop,
        v2.RandomApply,
        opencv.Grayscale,
        v2.RandomApply,
        opencv.HorizontalFlip,
        opencv.ToTensor,
    ]
    check_ends(steps, 224)
    (color,), (blur,) = steps[1].transforms, steps[3].transforms
    assert steps[1].p == 0.8
    assert jitter(color) == {
        "brightness": around_one(0.4),
        "contrast": around_one(0.4),
        "saturation": around_one(0.4),
        "hue": (-0.1, 0.1),
    }
    assert steps[2].p == 0.2
    assert steps[3].p == 0.5
    assert isinstance(blur, opencv.Blur) and blur.sigma == (0.1, 2.0)
    assert steps[4].p == 0.5


@pytest.mark.parametrize(
    ("recipe", "blurred", "solarized"),
    [("v3", 1.0, 0.0), (SECOND_VIEW["v3"], 0.1, 0.2)],
    ids=["first", "second"],
)
def test_v3_is_byols(recipe, blurred, solarized):
    """augmentation1 and augmentation2 of main_moco.py in facebookresearch/moco-v3."""
    steps = list(build_augmentation(recipe, size=224).transforms)
    check_ends(steps, 224)
    (color,), (blur,) = steps[1].transforms, steps[3].transforms
    assert steps[1].p == 0.8
    assert jitter(color) == {
        "brightness": around_one(0.4),
        "contrast": around_one(0.4),
        "saturation": around_one(0.2),
        "hue": (-0.1, 0.1),
    }
    assert isinstance(steps[2], opencv.Grayscale) and steps[2].p == 0.2
    assert steps[3].p == blurred and blur.sigma == (0.1, 2.0)
    inner = steps[4:-2]
    assert [(step.p, type(*step.transforms)) for step in inner] == (
        [(solarized, opencv.Solarize)] if solarized else []
    )
    assert isinstance(steps[-2], opencv.HorizontalFlip) and steps[-2].p == 0.5


@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
def test_views_are_bytes_that_follow_torchs_seed(name):
    transform, image = build_augmentation(name, size=32), picture()
    views = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        views.append(torch.stack([transform(image) for _ in range(4)]))
    assert views[0].shape == (4, 3, 32, 32) and views[0].dtype == torch.uint8
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert not torch.equal(views[0][0], views[0][1])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_normalized_on_the_device_as_on_workers_to_the_bit(layout):
    normalization = Normalization()
    views = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8).contiguous(memory_format=layout)
    found = normalization(views)
    assert found.is_contiguous(memory_format=layout)
    one_by_one = opencv.ToNormalizedTensor(MEAN, STD)
    wanted = [one_by_one(view.permute(1, 2, 0).contiguous().numpy()) for view in views]
    assert torch.equal(found, torch.stack(wanted))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    at_once = normalization.finish(views, mean, std)  # as on a GPU
    assert torch.equal(at_once, found) and at_once.is_contiguous(memory_format=layout)


def test_views_that_are_complete_stay_as_they_are():
    views = torch.randn(2, 3, 4, 4)
    assert Normalization()(views) is views


def test_settings_reach_the_transforms():
    steps = build_augmentation(
        "v2", size=16, crop_scale=[0.5, 0.75], blur_sigma=[1.0, 3.0]
    ).transforms
    assert steps[0].scale == (0.5, 0.75)
    assert steps[3].transforms[0].sigma == (1.0, 3.0)


def test_evaluation_takes_the_normalized_center():
    image = Image.new("RGB", (512, 512), (0, 0, 0))
    image.paste((255, 0, 51), (32, 32, 480, 480))  # what Resize 256, CenterCrop 224 keeps of 512
    view = build_evaluation_transform(224)(image)
    assert view.shape == (3, 224, 224)
    wanted = [(value - m) / s for value, m, s in zip((1, 0, 0.2), MEAN, STD, strict=True)]
    torch.testing.assert_close(view[:, 2:-2, 2:-2].amax((1, 2)), torch.tensor(wanted))
    torch.testing.assert_close(view[:, 2:-2, 2:-2].amin((1, 2)), torch.tensor(wanted))


def test_unknown_augmentation_is_refused():
    with pytest.raises(KeyError, match="v4"):
        build_augmentation("v4", size=32)
