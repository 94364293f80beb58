"""OpenCV's arithmetic against Pillow's, which the official code uses: same seed, same factors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from moco_d2.pretrain.augmentation import opencv


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """Smooth structure with fine noise, all levels and colors."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((120, 90), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-12, 13, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def differences(ours, pillows, image: Image.Image, seeds: int = 30) -> np.ndarray:
    """(seeds, H, W, 3), in levels."""
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        wanted = np.asarray(pillows(image)).astype(int)
        torch.manual_seed(seed)
        found.append(ours(np.array(image)).astype(int) - wanted)
    return np.stack(found)


@pytest.mark.parametrize(
    ("strengths", "largest", "mean"),
    [
        pytest.param((0.4, 0, 0, 0), 0, 0, id="brightness"),
        pytest.param((0, 0.4, 0, 0), 1, 0.01, id="contrast"),
        pytest.param((0, 0, 0.4, 0), 1, 0.05, id="saturation"),
        pytest.param((0, 0, 0, 0.4), 20, 1.5, id="hue"),  # bytes of hue in both, rounded otherwise
        pytest.param((0.4, 0.4, 0.4, 0.1), 40, 2.0, id="all in random order"),
    ],
)
def test_jitter_is_pillows_but_for_rounding(image, strengths, largest, mean):
    apart = differences(opencv.Jitter(*strengths), v2.ColorJitter(*strengths), image)
    assert np.abs(apart).max() <= largest
    assert np.abs(apart).mean() <= mean
    assert np.abs(apart.mean()) <= 0.5  # no shift


@pytest.mark.parametrize("size", [32, 150], ids=["smaller", "larger"])
def test_crop_is_torchvisions_but_for_rounding(image, size):
    ours, theirs = (kind(size, scale=(0.2, 1.0)) for kind in (opencv.Crop, v2.RandomResizedCrop))
    apart = differences(lambda pixels: ours(Image.fromarray(pixels)), theirs, image)
    assert np.abs(apart).max() <= 1
    assert np.abs(apart).mean() < 0.05  # 0.25 for a few tall crops, whose columns come first
    assert np.abs(apart.mean()) < 0.005  # no shift


def test_crop_of_a_decoded_image_is_that_of_pillows(image):
    crop = opencv.Crop(32, scale=(0.2, 1.0))
    for seed in range(5):
        torch.manual_seed(seed)
        wanted = crop(image)
        torch.manual_seed(seed)
        found = crop(pil_to_tensor(image))
        assert found.flags.c_contiguous and found.dtype == np.uint8
        assert np.array_equal(found, wanted)


def test_crop_keeps_a_uniform_color():
    for level in range(256):
        color = torch.full((3, 7, 9), level, dtype=torch.uint8)
        assert (opencv.Crop(16, scale=(0.2, 1.0))(color) == level).all()


def test_jitter_changes_the_image(image):
    for strengths in np.eye(4) * 0.4:
        torch.manual_seed(0)
        changed = opencv.Jitter(*strengths.tolist())(np.array(image)).astype(int)
        assert np.abs(changed - np.asarray(image)).mean() > 3


def test_gray_and_flip_are_drawn_and_done_as_torchvisions(image):
    gray = differences(opencv.Grayscale(p=0.5), v2.RandomGrayscale(p=0.5), image)
    assert np.abs(gray).max() <= 1
    flip = differences(opencv.HorizontalFlip(p=0.5), v2.RandomHorizontalFlip(p=0.5), image)
    assert not flip.any()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_the_gaussian_that_pillow_approximates(image, sigma):
    ours = opencv.Blur((sigma, sigma))(np.array(image)).astype(float)
    pillows = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma))).astype(float)
    assert np.abs(ours - pillows).mean() < 1
    # scipy's, in floating point: the true one, to rounding.
    from scipy.ndimage import gaussian_filter

    true = gaussian_filter(np.asarray(image).astype(float), (sigma, sigma, 0), mode="nearest")
    assert np.abs(ours - true).max() < 2


def test_solarize_is_pillows(image):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    for picture in (image, Image.fromarray(levels)):
        found = opencv.Solarize()(np.array(picture))
        assert np.array_equal(found, np.asarray(ImageOps.solarize(picture)))


def test_blur_draws_its_sigma_from_the_whole_range():
    torch.manual_seed(0)
    drawn = [opencv.Blur((0.1, 2.0)).draw() for _ in range(500)]
    assert 0.1 <= min(drawn) < 0.15 and 1.95 < max(drawn) <= 2.0
    assert np.mean(drawn) == pytest.approx(1.05, abs=0.1)


def test_no_blur_at_sigma_0(image):
    assert np.array_equal(opencv.Blur((0, 0))(np.array(image)), np.asarray(image))


def test_opencv_keeps_its_threads_where_no_views_are_made():
    """The setting is of the whole process: only pretraining and linear evaluation make it."""
    code = (
        "import cv2, sys\n"
        "cv2.setNumThreads(2)\n"
        "import moco_d2, detectron2.modeling\n"
        "import moco_d2.transfer.main, moco_d2.benchmark.runs.runner\n"
        "print(cv2.getNumThreads())\n"
        "import moco_d2.pretrain.augmentation.views\n"
        "print(cv2.getNumThreads())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["2", "1"]
