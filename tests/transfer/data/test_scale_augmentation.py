import importlib.util

import numpy as np
import pytest
from detectron2.data import transforms as T

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.data.scale_augmentation import (
    PadToSize,
    RandomScale,
    build_large_scale_jitter,
    build_scale_augmentations,
)

IGNORED = 255


def scene(height, width):
    """An image whose red channel shows the labels."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 4 : height // 2, width // 3 :] = 20
    image = np.stack([labels * 10, np.full_like(labels, 50), np.full_like(labels, 90)], axis=2)
    return image, labels


def test_ratios_are_uniform_in_the_range_and_the_aspect_stays():
    np.random.seed(0)
    image, _ = scene(300, 400)
    transforms = [RandomScale(0.5, 2.0).get_transform(image) for _ in range(400)]
    sizes = np.array([(t.new_h, t.new_w) for t in transforms])
    ratios = sizes[:, 1] / 400
    assert 0.5 <= ratios.min() < 0.55
    assert 1.95 < ratios.max() <= 2.0
    assert np.abs(np.histogram(ratios, 3, (0.5, 2.0))[0] - 400 / 3).max() < 40
    np.testing.assert_allclose(sizes[:, 0] / 300, ratios, atol=0.005)


def test_labels_are_scaled_without_new_ones():
    image, labels = scene(40, 60)
    augmented = T.AugInput(image, sem_seg=labels)
    RandomScale(1.7, 1.7)(augmented)
    assert augmented.image.shape == (68, 102, 3)
    assert augmented.sem_seg.shape == (68, 102)
    assert set(np.unique(augmented.sem_seg)) == {0, 20}
    agree = (augmented.image[..., 0] > 100) == (augmented.sem_seg == 20)
    assert agree.mean() > 0.98  # all but at the boundary, where the image is interpolated


def test_a_pixel_remains_of_the_smallest_image():
    transform = RandomScale(0.1, 0.1).get_transform(np.zeros((2, 3, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (1, 1)


@pytest.mark.parametrize(
    ("size", "padded"), [((30, 50), (64, 64)), ((80, 50), (80, 64)), ((64, 64), (64, 64))]
)
def test_padding_is_behind_the_image(size, padded):
    image, labels = scene(*size)
    augmented = T.AugInput(image.copy(), sem_seg=labels.copy())
    PadToSize((64, 64), pixel=(123.675, 116.28, 103.53), ignore_value=IGNORED)(augmented)
    assert augmented.image.shape == (*padded, 3)
    assert augmented.image.dtype == augmented.sem_seg.dtype == np.uint8
    height, width = size
    assert np.array_equal(augmented.image[:height, :width], image)
    assert np.array_equal(augmented.sem_seg[:height, :width], labels)
    added = np.ones(padded, bool)
    added[:height, :width] = False
    assert (augmented.image[added] == (124, 116, 104)).all()
    assert (augmented.sem_seg[added] == IGNORED).all()


@pytest.mark.parametrize(("task", "side"), [("voc_semantic", 513), ("cityscapes_semantic", 769)])
def test_the_tasks_crops_have_their_size_and_their_labels(task, side):
    augmentations = T.AugmentationList(
        build_scale_augmentations(load_config(f"{task}_random.yaml"))
    )
    np.random.seed(0)
    heights, mirrored = set(), 0
    for _ in range(30):
        image, labels = scene(366, 500)
        augmented = T.AugInput(image, sem_seg=labels)
        augmentations(augmented)
        assert augmented.image.shape == (side, side, 3)
        assert augmented.sem_seg.shape == (side, side)
        seen = augmented.sem_seg != IGNORED
        agree = (augmented.image[..., 0] > 100) == (augmented.sem_seg == 20)
        assert agree[seen].mean() > 0.98
        heights.add(int(seen.any(axis=1).sum()))
        mirrored += int((augmented.image[0, 0] == (124, 116, 104)).all())
    assert len(heights) > 4
    assert min(heights) < side
    assert mirrored  # the padding is on the left


@pytest.mark.parametrize(
    "overrides", [["INPUT.CROP.ENABLED", "False"], ["INPUT.CROP.TYPE", "relative_range"]]
)
def test_without_a_crop_of_one_size_it_is_refused(overrides):
    cfg = load_config("voc_semantic_random.yaml", overrides)
    with pytest.raises(UserError, match=r"set INPUT.CROP.ENABLED True, INPUT.CROP.TYPE absolute"):
        build_scale_augmentations(cfg)


def jitter(*overrides):
    return build_large_scale_jitter(load_config("coco_vitdet_Ti_25ep_random.yaml", overrides))


def test_large_scale_jitter_scales_by_a_tenth_to_twice_and_crops():
    """As in main's ViTDet: a flip, then the scale, then a crop without padding."""
    augmentations = jitter()
    assert [type(of).__name__ for of in augmentations] == [
        "RandomFlip",
        "ResizeScale",
        "FixedSizeCrop",
    ]
    np.random.seed(0)
    widths = []
    for _ in range(40):
        augmented = T.AugInput(np.zeros((480, 640, 3), np.uint8))
        scaled = T.AugmentationList(augmentations)(augmented)
        height, width, _ = augmented.image.shape
        assert height <= 640 and width <= 640
        widths.append(scaled.transforms[1].new_w)
        assert width == min(640, widths[-1])
    assert 64 <= min(widths) < 200 and 1000 < max(widths) <= 1280


def test_polygons_are_cropped_with_their_image():
    augmentations = [jitter()[1], jitter()[2]]
    np.random.seed(0)  # a ratio above 1
    augmented = T.AugInput(np.zeros((640, 640, 3), np.uint8))
    transforms = T.AugmentationList(augmentations)(augmented)
    whole = np.array([[0.0, 0.0], [640, 0], [640, 640], [0, 640]])
    (found,) = transforms.apply_polygons([whole])
    assert transforms.transforms[0].new_w > 640
    assert (found.min(0), found.max(0)) == (pytest.approx([0, 0]), pytest.approx([640, 640]))


def test_jitter_of_polygons_without_shapely_is_refused(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "shapely" else find(name)
    )
    with pytest.raises(UserError, match="pip install shapely, or set INPUT.MASK_FORMAT bitmask"):
        jitter()
    assert jitter("INPUT.MASK_FORMAT", "bitmask") and jitter("MODEL.MASK_ON", "False")


def test_jitter_without_a_crop_of_one_size_is_refused():
    with pytest.raises(UserError, match=r"MOCO.RANDOM_SCALE needs a crop.*INPUT.CROP.TYPE"):
        jitter("INPUT.CROP.ENABLED", "False")
