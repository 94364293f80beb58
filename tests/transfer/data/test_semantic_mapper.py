import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.data.semantic_mapper import SemanticMapper, build_mapper, read_labels

LABELS = np.array([[0, 7, 255], [20, 0, 0]], np.uint8)
# Colors of VOC's label files: of classes 0, 7, 20 and of pixels to ignore.
PALETTE = {0: (0, 0, 0), 7: (128, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}


@pytest.fixture
def sample(tmp_path):
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    labels = Image.fromarray(LABELS)
    labels.putpalette([c for i in range(256) for c in PALETTE.get(i, (9, 9, 9))])
    assert labels.mode == "P"
    labels.save(tmp_path / "labels.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
    }


def mapper(**options):
    arguments = {"image_format": "RGB", "num_classes": 21, "ignore_value": 255} | options
    return SemanticMapper([], **arguments)


def test_palette_files_give_class_numbers_where_detectron2_reads_brightness(sample):
    mapped = mapper()(sample)
    assert mapped["sem_seg"].tolist() == LABELS.tolist()
    assert mapped["sem_seg"].dtype == torch.int64
    theirs = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")(sample)
    assert theirs["sem_seg"].tolist() != LABELS.tolist()


def test_the_image_comes_in_the_models_format_and_the_dict_stays(sample):
    before = dict(sample)
    image = mapper()(sample)["image"]
    assert image.shape == (3, 2, 3)
    assert image[:, 0, 0].tolist() == [0, 1, 2]
    assert mapper(image_format="BGR")(sample)["image"][:, 0, 0].tolist() == [2, 1, 0]
    assert sample == before
    assert "sem_seg_file_name" not in mapper()(sample)


def test_image_and_labels_are_augmented_together(sample):
    flipping = SemanticMapper(
        [T.RandomFlip(prob=1.0)], image_format="RGB", num_classes=21, ignore_value=255
    )
    mapped = flipping(sample)
    assert mapped["sem_seg"].tolist() == LABELS[:, ::-1].tolist()
    assert mapped["image"][0, 0].tolist() == [6, 3, 0]


def test_a_label_of_no_class_is_named(sample):
    with pytest.raises(UserError, match=r"labels.png has label 20, but there are 20 classes"):
        mapper(num_classes=20)(sample)
    with pytest.raises(UserError, match="has label 255"):
        mapper(ignore_value=254)(sample)


def test_colored_labels_are_refused(sample):
    Image.open(sample["sem_seg_file_name"]).convert("RGB").save(sample["sem_seg_file_name"])
    with pytest.raises(UserError, match="of mode RGB, .* convert its colors to class numbers"):
        read_labels(sample["sem_seg_file_name"])


def test_labels_of_another_size_are_refused(sample):
    Image.fromarray(LABELS.T.copy()).save(sample["sem_seg_file_name"])
    with pytest.raises(SizeMismatchError, match=r"have \(3, 2\) rows and columns"):
        mapper()(sample)


def test_which_mapper_a_config_gets(sample):
    assert isinstance(build_mapper(load_config("voc_C4_random.yaml")).mapper, DatasetMapper)
    mapped = build_mapper(load_config("voc_semantic_random.yaml"))(sample)
    assert mapped["image"].shape == (3, 513, 513)
    assert mapped["sem_seg"].shape == (513, 513)


def test_semantic_segmentation_without_scaling_reads_palettes_too(sample):
    overrides = ["MOCO.RANDOM_SCALE", "()", "INPUT.CROP.ENABLED", "False"]
    overrides += ["INPUT.MIN_SIZE_TRAIN", "(2,)", "INPUT.RANDOM_FLIP", "none"]
    mapped = build_mapper(load_config("voc_semantic_random.yaml", overrides))(sample)
    assert mapped["sem_seg"].tolist() == LABELS.tolist()


def test_scaling_by_ratio_is_not_for_detectors():
    cfg = load_config("voc_C4_random.yaml", ["MOCO.RANDOM_SCALE", "(0.5, 2.0)"])
    with pytest.raises(UserError, match="MOCO.RANDOM_SCALE needs a crop"):
        build_mapper(cfg)
