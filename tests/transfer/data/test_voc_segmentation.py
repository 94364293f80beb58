import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from support.transfer.dataset_files import HEIGHT, WIDTH, make_voc_year

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.data.voc_segmentation import load_voc_segmentation, register_voc_segmentation
from moco_d2.transfer.evaluation.build import build_evaluator
from moco_d2.transfer.preflight.dataset_checks import check_datasets

TRAIN, VAL = "voc_2012_sem_seg_train_aug", "voc_2012_sem_seg_val"


@pytest.fixture
def root(tmp_path):
    make_voc_year(tmp_path / "VOC2012", ("trainval",))
    return tmp_path


@pytest.fixture
def catalogs(monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})


def test_the_names_are_there_with_detectron2():
    assert {TRAIN, VAL, "voc_2012_sem_seg_train"} <= set(DatasetCatalog.list())


def test_the_module_may_be_the_first_that_a_process_imports():
    """Detectron2 is imported in the middle of it then, which asks for its registration."""
    code = (
        "import moco_d2.transfer.data.voc_segmentation as module\n"
        f"print({VAL!r} in module.DatasetCatalog.list())"
    )
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert (result.stdout, result.returncode) == ("True\n", 0), result.stderr


def test_train_aug_has_labels_of_its_own(root):
    assert [
        (d["image_id"], d["sem_seg_file_name"].split("/")[-2])
        for split in ("train_aug", "val")
        for d in load_voc_segmentation(root / "VOC2012", split)
    ] == [
        ("2007_train_aug_0", "SegmentationClassAug"),
        ("2007_train_aug_1", "SegmentationClassAug"),
        ("2007_val_0", "SegmentationClass"),
        ("2007_val_1", "SegmentationClass"),
    ]


def test_the_other_name_of_the_list_is_known(root):
    lists = root / "VOC2012/ImageSets/Segmentation"
    before = load_voc_segmentation(root / "VOC2012", "train_aug")
    (lists / "train_aug.txt").rename(lists / "trainaug.txt")
    assert load_voc_segmentation(root / "VOC2012", "train_aug") == before


def test_the_root_is_detectron2s_and_registering_again_changes_nothing(root, catalogs, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_voc_segmentation()
    register_voc_segmentation("/elsewhere")
    assert len(DatasetCatalog.get(TRAIN)) == 2
    metadata = MetadataCatalog.get(VAL)
    assert metadata.ignore_label == 255
    assert len(metadata.stuff_classes) == 21
    assert metadata.stuff_classes[:2] == ["background", "aeroplane"]
    assert metadata.stuff_classes[20] == "tvmonitor"


def test_the_task_finds_its_files(root, catalogs):
    register_voc_segmentation(root)
    assert check_datasets(load_config("voc_semantic_random.yaml")) == []
    key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    (found,) = check_datasets(load_config("voc_semantic_random.yaml", [key, "20"]))
    assert str(found) == (
        f"{key} is 20: there are 21 classes in {TRAIN!r} and {VAL!r}; set {key} 21"
    )


def test_what_is_missing_is_named(root):
    folder = root / "VOC2012"
    (folder / "SegmentationClassAug/2007_train_aug_1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 label files are missing, first .*_1.png; .* SBD"):
        load_voc_segmentation(folder, "train_aug")
    (folder / "ImageSets/Segmentation/train_aug.txt").unlink()
    with pytest.raises(UserError, match=r"no .*train_aug.txt or .*trainaug.txt; .* VOC's train"):
        load_voc_segmentation(folder, "train_aug")
    with pytest.raises(UserError, match=r"no .*/train.txt; set DETECTRON2_DATASETS"):
        load_voc_segmentation(folder, "train")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a.v1", "a.v1"),
        (" a b ", "a b"),
        ("a.JPG", "a"),
        ("/JPEGImages/a.v1.jpg /SegmentationClassAug/a.v1.png", "a.v1"),
        ("JPEGImages/a.jpg\tSegmentationClass/a.png", "a"),
    ],
)
def test_names_keep_their_dots_and_spaces(root, line, name):
    folder = root / "VOC2012"
    for place, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (folder / place / f"2007_val_0.{suffix}").rename(folder / place / f"{name}.{suffix}")
    (folder / "ImageSets/Segmentation/val.txt").write_text(f"{line}\n")
    (found,) = load_voc_segmentation(folder, "val")
    assert found["image_id"] == name


def test_a_value_of_no_class_is_not_counted_as_another_class(root, catalogs, tmp_path):
    register_voc_segmentation(root)
    evaluator = build_evaluator(
        load_config("voc_semantic_random.yaml", ["OUTPUT_DIR", str(tmp_path / "out")]), VAL
    )
    evaluator.reset()
    first, second = DatasetCatalog.get(VAL)
    output = {"sem_seg": torch.zeros(21, HEIGHT, WIDTH)}
    for change, sentence in (
        (lambda pixels: np.where(pixels == 7, 30, pixels), "has label 30, but there are 21 cl"),
        (lambda pixels: np.stack([pixels] * 3, -1), "is an image of mode RGB"),
        (lambda pixels: pixels.astype(np.uint16), "is an image of mode I;16"),
        (lambda pixels: pixels > 0, "is an image of mode 1"),
    ):
        pixels = np.array(Image.open(first["sem_seg_file_name"]))
        Image.fromarray(change(pixels)).save(second["sem_seg_file_name"])
        with pytest.raises(UserError, match=f"{second['image_id']}.png {sentence}"):
            evaluator.process([first, second], [output, output])


def test_miou_of_known_predictions(root, catalogs, tmp_path):
    """On label files with a palette: background and cars occur, a column is ignored."""
    register_voc_segmentation(root)
    overrides = ["OUTPUT_DIR", str(tmp_path / "out")]
    evaluator = build_evaluator(load_config("voc_semantic_random.yaml", overrides), VAL)
    evaluator.reset()
    intersection, union = np.zeros(21), np.zeros(21)
    rng = np.random.default_rng(0)
    for d in DatasetCatalog.get(VAL):
        labels = np.array(Image.open(d["sem_seg_file_name"]))
        predicted = labels % 255
        noise = rng.random((HEIGHT, WIDTH)) < 0.3
        predicted[noise] = rng.choice([0, 7, 12], noise.sum())
        counted = labels != 255
        for c in range(21):
            a, b = (predicted == c) & counted, labels == c
            intersection[c] += (a & b).sum()
            union[c] += (a | b).sum()
        logits = torch.nn.functional.one_hot(torch.as_tensor(predicted).long(), 21)
        evaluator.process([d], [{"sem_seg": logits.permute(2, 0, 1).float()}])
    scores = evaluator.evaluate()["sem_seg"]
    ious = 100 * intersection[[0, 7]] / union[[0, 7]]
    assert 30 < ious.min() < ious.max() < 95
    assert scores["IoU-background"] == pytest.approx(ious[0], abs=1e-9)
    assert scores["IoU-car"] == pytest.approx(ious[1], abs=1e-9)
    assert scores["mIoU"] == pytest.approx(ious.mean(), abs=1e-9)
