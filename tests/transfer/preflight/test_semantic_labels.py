"""Label files that give another mIoU, or end a run after its training, are found before it."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from support.transfer.dataset_files import make_voc_year

from moco_d2.config.load import load_config
from moco_d2.transfer.data.voc_segmentation import register_voc_segmentation
from moco_d2.transfer.preflight import semantic_labels
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import Refusal

FOLDERS = {"train_aug": "SegmentationClassAug", "val": "SegmentationClass"}


@pytest.fixture
def findings(tmp_path, monkeypatch):
    """A function that changes label files of a split, and returns the findings."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    make_voc_year(tmp_path / "VOC2012", ("trainval",))
    register_voc_segmentation(tmp_path)

    def found(split, change, numbers=(0, 1)):
        for number in numbers:
            file = tmp_path / "VOC2012" / FOLDERS[split] / f"2007_{split}_{number}.png"
            Image.fromarray(change(np.array(Image.open(file)))).save(file)
        return check_datasets(load_config("voc_semantic_random.yaml"))

    return found


@pytest.mark.parametrize("split", FOLDERS)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda pixels: np.where(pixels == 7, 30, pixels),
            "has label 30, but there are 21 classes",
        ),
        (lambda pixels: np.stack([pixels] * 3, -1), "is an image of mode RGB"),
        (lambda pixels: np.stack([pixels] * 2, -1), "is an image of mode LA"),
        (lambda pixels: pixels.astype(np.uint16), "is an image of mode I;16"),
        (lambda pixels: pixels > 0, "is an image of mode 1"),
    ],
    ids=["value", "RGB", "LA", "16 bits", "1 bit"],
)
def test_one_unusable_file_is_named(findings, split, change, sentence):
    (finding,) = findings(split, change, [1])
    assert isinstance(finding, Refusal)
    assert finding.key == ("DATASETS.TEST" if split == "val" else "DATASETS.TRAIN")
    assert f"2007_{split}_1.png {sentence}" in finding.message


@pytest.mark.parametrize("split", FOLDERS)
def test_binary_masks_have_only_one_class(findings, split):
    (finding,) = findings(split, lambda pixels: np.where(pixels > 0, 255, 0).astype(np.uint8))
    assert not isinstance(finding, Refusal)
    assert "only class 0 and the value to ignore (255)" in finding.message


def test_labels_without_any_class_are_refused(findings):
    (finding,) = findings("val", lambda pixels: np.full_like(pixels, 255))
    assert isinstance(finding, Refusal)
    assert "label files have only the value to ignore (255)" in finding.message


def test_classes_that_the_sample_misses_are_looked_for(findings, monkeypatch):
    monkeypatch.setattr(semantic_labels, "SAMPLED", 1)
    assert findings("val", np.zeros_like, [0]) == []


@pytest.mark.parametrize("split", FOLDERS)
def test_an_image_that_is_listed_twice_is_named(findings, tmp_path, split):
    file = tmp_path / f"VOC2012/ImageSets/Segmentation/{split}.txt"
    file.write_text(f"2007_{split}_1\n{file.read_text()}")
    (finding,) = findings(split, np.copy)
    assert f"2007_{split}_1.jpg 2 times; list it once" in finding.message


def test_the_header_of_each_file_is_read(findings, monkeypatch):
    monkeypatch.setattr(semantic_labels, "SAMPLED", 1)
    (finding,) = findings("val", lambda pixels: np.stack([pixels] * 3, -1), [1])
    assert "2007_val_1.png is an image of mode RGB" in finding.message
