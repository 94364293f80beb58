"""Objects that would train nothing or lower the result without a word are found before."""

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask
from support.toy_data import SIDE, make_coco

from moco_d2.config.load import load_config
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import Refusal
from moco_d2.transfer.preflight.object_checks import check_objects

ODD = {"degenerate": [10, 10, 0, 5], "outside": [70, 3, 9, 9], "left": [-9, 3, 9, 9]}


@pytest.fixture
def findings(tmp_path):
    """Findings about a COCO set, one split of which is changed, for a detector of boxes."""

    def findings(split, change):
        root = make_coco(tmp_path / "coco")
        file = root / f"{split}.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        names = [f"('coco:{root}/{s}.json:{root}/images',)" for s in ("train", "test")]
        data = ["DATASETS.TRAIN", names[0], "DATASETS.TEST", names[1]]
        classes = ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.MASK_ON", "False"]
        return check_datasets(load_config("coco_FPN_1x_random.yaml", [*data, *classes]))

    return findings


def boxes(box, first=0):
    def change(content):
        for item in content["annotations"][first:]:
            item.update(bbox=box, segmentation=[])

    return change


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("box", ODD.values(), ids=ODD)
def test_boxes_without_area_in_their_image(findings, split, box):
    (found,) = findings(split, boxes(box, first=4))
    assert found.key == f"DATASETS.{split.upper()}" and not isinstance(found, Refusal)
    assert "2 of its 6 boxes have no area inside their image, first [" in found.message
    assert f"/{split}4.jpg, so " in found.message


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_box_with_an_area_is_refused(findings, split):
    (found,) = findings(split, boxes([70, 3, 9, 9]))
    assert isinstance(found, Refusal) and "6 of its 6 boxes have no area" in found.message


def sound(number):
    """Dicts of `number` images with one object each."""
    return [
        {
            "file_name": f"{i}.jpg",
            "height": SIDE,
            "width": SIDE,
            "annotations": [
                {"bbox": [5, 5 + i % 9, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
            ],
        }
        for i in range(number)
    ]


def checked(dicts):
    return list(check_objects("DATASETS.TRAIN", ("mine",), "mine", dicts))


def no_area(sample):
    sample["annotations"][0]["bbox"] = [5, 5, 0, 9]


def twice(sample):
    sample["annotations"] *= 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(no_area, "1 of its 200 boxes have no area"), (twice, "1 of its 201 objects repeat the box")],
)
def test_the_few_errors_of_a_large_set_are_logged(caplog, spoil, message):
    """COCO's own files have them."""
    dicts = sound(200)
    spoil(dicts[7])
    assert checked(dicts) == []
    assert message in caplog.text and "in 7.jpg" in caplog.text
    for sample in dicts[:3]:
        spoil(sample)
    (found,) = checked(dicts)
    assert "4 of its" in found.message and "in 0.jpg" in found.message


def test_crowds_and_sets_of_voc_are_passed_over():
    dicts = sound(2)
    no_area(dicts[0])
    dicts[0]["annotations"][0]["iscrowd"] = 1
    assert checked(dicts) == []
    no_area(dicts[1])
    MetadataCatalog.get("a set of VOC").set(evaluator_type="pascal_voc")
    assert list(check_objects("DATASETS.TEST", (), "a set of VOC", dicts)) == []
    MetadataCatalog.remove("a set of VOC")


def test_corners_of_a_set_that_is_registered_in_code():
    dicts = sound(4)
    for sample in dicts:
        sample["annotations"][0].update(bbox=[30, 30, 40, 40], bbox_mode=BoxMode.XYXY_ABS)
    assert checked(dicts) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_objects_twice_by_new_ids(findings, split):
    def merge(content):
        content["annotations"] += [a | {"id": a["id"] + 99} for a in content["annotations"]]

    (found,) = findings(split, merge)
    assert found.key == f"DATASETS.{split.upper()}" and not isinstance(found, Refusal)
    assert "6 of its 12 objects repeat the box and the class" in found.message
    assert f"/{split}0.jpg; remove them" in found.message


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["{}3.jpg", "./{}3.jpg"])
def test_a_file_of_two_images(findings, split, name):
    def again(content):
        content["images"].append(content["images"][3] | {"id": 99, "file_name": name.format(split)})

    (found,) = findings(split, again)
    assert found.key == f"DATASETS.{split.upper()}" and not isinstance(found, Refusal)
    assert "1 of its 7 images are the file of another of its images, first" in found.message
    assert found.message.split(", first ")[1].partition(";")[0].endswith(f"{split}3.jpg")


@pytest.fixture(scope="module")
def masked():
    """Dicts of objects of random boxes, whose masks fill them."""
    rng = np.random.default_rng(0)
    dicts = sound(60)
    for sample in dicts:
        size = rng.uniform(8, 24, 2).round(2)
        corner = (rng.uniform(0, 1, 2) * (SIDE - size)).round(2)
        (x0, y0), (x1, y1) = corner, corner + size
        item = sample["annotations"][0]
        item["bbox"] = [*corner.tolist(), *size.tolist()]
        item["segmentation"] = [[x0, y0, x1, y0, x1, y1], [x0, y1, x0, y0, x1, y1]]
    return dicts


def changed(dicts, change, first=0):
    result = []
    for i, sample in enumerate(dicts):
        item = dict(sample["annotations"][0])
        if i >= first:
            change(item)
        result.append(sample | {"annotations": [item]})
    return result


def code(item):
    item["segmentation"] = mask.merge(mask.frPyObjects(item["segmentation"], SIDE, SIDE))


def rows(item):
    code(item)
    pixels = np.asfortranarray(mask.decode(item["segmentation"]).ravel().reshape(SIDE, SIDE).T)
    item["segmentation"] = mask.encode(pixels)


def test_masks_in_their_boxes(masked):
    assert checked(masked) == checked(changed(masked, code)) == []
    loose = changed(masked, lambda item: item.update(bbox=[v - 1 for v in item["bbox"]]))
    assert checked(loose) == []


CONTRADICTIONS = {
    "center": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    "row first": lambda x, y, w, h: [y, x, h, w],
    "twice the size": lambda x, y, w, h: [2 * x, 2 * y, 2 * w, 2 * h],
    "corners": lambda x, y, w, h: [x, y, x + w, y + h],
}


@pytest.mark.parametrize("box", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_boxes_elsewhere_than_their_masks(masked, box):
    dicts = changed(masked, lambda item: item.update(bbox=box(*item["bbox"])))
    found = checked(dicts)[-1]
    assert not isinstance(found, Refusal)
    assert "of 60 boxes are elsewhere than their masks, first [" in found.message
    assert checked(dicts[:2]) == []  # no evidence


def relative(item):
    item["segmentation"] = [[v / SIDE for v in corners] for corners in item["segmentation"]]


@pytest.mark.parametrize("change", [relative, rows])
def test_masks_elsewhere_than_their_boxes(masked, change):
    (found,) = checked(changed(masked, change))
    assert "of 60 boxes are elsewhere than their masks" in found.message
    assert checked(changed(masked, change, first=40)) == []
