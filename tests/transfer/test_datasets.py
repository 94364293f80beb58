import json
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy_data import CLASSES, make_coco, make_voc

from moco_d2.config import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.datasets import check_datasets, load_checked, register_datasets


def test_voc_folder_is_read_by_path(voc):
    name = voc["DATASETS.TRAIN"][0]
    register_datasets((name,))
    register_datasets((name,))  # idempotent
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == 6
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == list(CLASSES)
    assert metadata.evaluator_type == "pascal_voc"
    assert metadata.year == 2007
    x0, y0, x1, y1 = dicts[0]["annotations"][0]["bbox"]
    assert 0 <= x0 < x1 <= 64
    assert 0 <= y0 < y1 <= 64


def test_coco_file_is_read_by_path(coco):
    name = coco["DATASETS.TEST"][0]
    register_datasets((name,))
    assert len(DatasetCatalog.get(name)) == 6
    assert MetadataCatalog.get(name).thing_classes == list(CLASSES)
    assert MetadataCatalog.get(name).evaluator_type == "coco"


def test_misspelt_name_gets_the_closest():
    with pytest.raises(UserError, match=r"'voc_2007_tes' is not registered; did you mean 'voc_200"):
        register_datasets(("voc_2007_tes",))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("voc:/nowhere/VOC2007:test", r"/nowhere/VOC2007/ImageSets/Main/test.txt does not exist"),
        ("coco:/nowhere/a.json:/nowhere", r"annotation file /nowhere/a.json does not exist"),
    ],
)
def test_missing_folder_is_named(name, sentence):
    with pytest.raises(UserError, match=sentence):
        register_datasets((name,))


def test_text_that_is_no_annotation_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("not json")
    with pytest.raises(UserError, match="is not a COCO instances file"):
        register_datasets((f"coco:{tmp_path}/a.json:{tmp_path}",))


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_annotation_without_its_image_is_named(tmp_path, kind):
    if kind == "voc":
        root = make_voc(tmp_path / "VOC2007")
        victim, name = root / "JPEGImages/test002.jpg", f"voc:{root}:test"
    else:
        root = make_coco(tmp_path / "coco")
        victim, name = root / "images/test2.jpg", f"coco:{root}/test.json:{root}/images"
    victim.unlink()
    register_datasets((name,))
    with pytest.raises(UserError, match=rf"1 of 6 annotated images are missing, first {victim}"):
        load_checked(name)


def test_builtin_set_that_is_not_there_says_where_it_is_looked_for():
    with pytest.raises(UserError, match="set DETECTRON2_DATASETS"):
        load_checked("voc_2007_test")


def test_other_number_of_classes_than_the_head_is_refused(voc, words):
    cfg = load_config("voc_C4_random.yaml", words(voc))
    with pytest.raises(UserError, match=r"2 classes and the head 20: set MODEL.ROI_HEADS.NUM_CLAS"):
        check_datasets(cfg)


def test_class_names_come_from_all_splits(tmp_path):
    """A class absent from the test split must not shift the others."""
    root = make_voc(tmp_path / "VOC2007")
    split = root / "ImageSets/Main/test.txt"
    split.write_text("test001\n" * 2)  # "light" only
    name = f"voc:{root}:test"
    register_datasets((name,))
    assert {a["category_id"] for d in load_checked(name) for a in d["annotations"]} == {1}


def test_coco_category_order_is_that_of_the_ids(tmp_path):
    root = make_coco(tmp_path / "coco")
    file = Path(root / "test.json")
    content = json.loads(file.read_text())
    content["categories"].reverse()
    shutil.copy(file, tmp_path / "copy.json")
    (tmp_path / "copy.json").write_text(json.dumps(content))
    name = f"coco:{tmp_path}/copy.json:{root}/images"
    register_datasets((name,))
    load_checked(name)
    assert MetadataCatalog.get(name).thing_classes == list(CLASSES)
