"""Files that tools write in other ways are read as COCO's, in training and in the evaluation."""

import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator
from support.toy_data import SIDE, make_coco

from moco_d2.errors import UserError
from moco_d2.transfer.data.coco_normalization import normalize_numbers
from moco_d2.transfer.data.registered import load_dicts, register_datasets
from moco_d2.transfer.evaluation.coco import COCOBoxEvaluator


def floats(content):
    for image in content["images"]:
        image.update(height=float(SIDE), width=float(SIDE))
    for item in content["annotations"]:
        item.update(iscrowd=0.0, num_keypoints=3.0, keypoints=[9, 9, 2, 8, 8, 1, 7, 7, 0])
    first = content["annotations"][0]
    first["segmentation"] = {"size": [64.0, 64.0], "counts": [0, SIDE * SIDE]}
    first["bbox"] = [0, 0, SIDE, SIDE]
    return content


@pytest.fixture
def written(tmp_path):
    """Write the changed test file, and return the dataset."""

    def written(change, encoding="utf-8"):
        root = make_coco(tmp_path / "coco")
        file = root / "test.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))), encoding=encoding)
        return f"coco:{file}:{root}/images"

    return written


def test_whole_numbers_that_are_floats_are_integers(written):
    name = written(floats)
    register_datasets((name,))
    dicts = load_dicts(name)
    assert get_detection_dataset_dicts(name, filter_empty=False) == dicts
    assert {type(d[side]) for d in dicts for side in ("height", "width")} == {int}
    assert {type(a["iscrowd"]) for d in dicts for a in d["annotations"]} == {int}
    assert dicts[0]["annotations"][0]["segmentation"]["size"] == [SIDE, SIDE]
    api = COCOBoxEvaluator(name, output_dir=None)._coco_api
    for item in api.dataset["annotations"]:
        assert api.annToMask(item).shape == (SIDE, SIDE)
        assert (type(item["iscrowd"]), item["num_keypoints"]) == (int, 2)


def test_other_values_stay_as_they_are():
    content = {
        "images": [{"id": 1.0, "height": 64.5, "width": "64"}, 5],
        "annotations": [{"num_keypoints": "3", "keypoints": [1, 2], "segmentation": {"size": 5}}],
    }
    before = copy.deepcopy(content)
    normalize_numbers(content)
    assert content == before
    normalize_numbers([5])


@pytest.mark.parametrize("corners", [[[]], [[1, 2, 30, 40]], [[1, 2], [30, 2], [30, 40]]])
def test_an_object_without_a_polygon_keeps_its_box(written, corners):
    def change(content):
        content["annotations"][2]["segmentation"] = corners
        return content

    name = written(change)
    register_datasets((name,))
    load_dicts(name)
    # As Detectron2's loaders read it.
    objects = [a for d in get_detection_dataset_dicts(name) for a in d["annotations"]]
    assert [a.get("segmentation") is None for a in objects] == [False] * 2 + [True] + [False] * 3
    item = COCOBoxEvaluator(name, output_dir=None)._coco_api.dataset["annotations"][2]
    assert item["segmentation"] == []


def test_a_byte_order_mark_is_passed_over(written):
    name = written(lambda content: content, "utf-8-sig")
    register_datasets((name,))
    assert len(load_dicts(name)) == len(DatasetCatalog.get(name)) == 6
    with pytest.raises(json.JSONDecodeError, match="BOM"):
        COCOEvaluator(name, output_dir=None)
    assert len(COCOBoxEvaluator(name, output_dir=None)._coco_api.imgs) == 6


def test_another_encoding_is_named(written):
    with pytest.raises(UserError, match=r"test\.json is not a COCO .*; write it in UTF-8$"):
        register_datasets((written(lambda content: content, "utf-16"),))


def test_a_colon_in_the_path_of_the_file(tmp_path):
    root = make_coco(tmp_path / "a:b")
    name = f"coco:{root}/test.json:{root}/images"
    register_datasets((name,))
    assert len(DatasetCatalog.get(name)) == 6
    assert MetadataCatalog.get(name).image_root == f"{root}/images"
