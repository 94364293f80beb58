"""Masks and keypoints that the detector's heads cannot use are found before the first step."""

import json
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask
from support.toy_data import CLASSES, make_coco
from support.transfer.coco_cases import SIGMAS

from moco_d2.config.load import load_config
from moco_d2.transfer.data.training_data import build_training_batches
from moco_d2.transfer.plan import LoadedRun, plan_run
from moco_d2.transfer.preflight.changes import apply_changes
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import Refusal

SIDE = 64
MASKS, POINTS = "coco_FPN_1x_random.yaml", "coco_keypoint_FPN_2x_random.yaml"
NAMES = ["left_eye", "right_eye", "nose"]


@pytest.fixture
def config(tmp_path_factory):
    """A config whose COCO files are changed, one split or both."""

    def config(name, change, splits=("train", "test"), *overrides):
        root = make_coco(tmp_path_factory.mktemp("data") / "coco")
        for split in splits:
            file = root / f"{split}.json"
            content = json.loads(file.read_text())
            change(content)
            file.write_text(json.dumps(content))
        data = [
            word
            for key, split in (("TRAIN", "train"), ("TEST", "test"))
            for word in (f"DATASETS.{key}", f"('coco:{root}/{split}.json:{root}/images',)")
        ]
        classes = ["MODEL.ROI_HEADS.NUM_CLASSES", str(len(CLASSES))]
        return load_config(name, [*data, *classes, *overrides])

    return config


def compressed(item):
    code = mask.merge(mask.frPyObjects(item["segmentation"], SIDE, SIDE))
    return {"size": code["size"], "counts": code["counts"].decode()}


def uncompressed(item):
    pixels = mask.decode(compressed(item)).ravel(order="F").tolist()
    runs, value = [0], 0
    for pixel in pixels:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": [SIDE, SIDE], "counts": runs}


def each(change, first=0):
    def changed(content):
        for item in content["annotations"][first:]:
            change(item)

    return changed


@pytest.mark.parametrize("code", [compressed, uncompressed])
def test_run_length_codes_change_the_mask_format(config, code):
    cfg = config(MASKS, each(lambda item: item.update(segmentation=code(item)), first=1))
    findings = check_datasets(cfg)
    plan = plan_run(LoadedRun("coco.yaml", cfg, None), 1)
    assert plan.cfg.INPUT.MASK_FORMAT == "polygon"
    changed, others = apply_changes(plan, findings)
    assert others == []
    assert changed.cfg.is_frozen() and changed.cfg.INPUT.MASK_FORMAT == "bitmask"
    note = changed.schedule["notes"][-1]
    assert note.startswith("INPUT.MASK_FORMAT -> bitmask: 5 of 6 masks of dataset 'coco:")
    assert plan.schedule["notes"] == changed.schedule["notes"][:-1]
    batches = build_training_batches(changed.cfg)
    sample = next(iter(batches))[0]
    assert len(sample["instances"].gt_masks) == len(sample["instances"])


def test_codes_of_crowds_and_of_the_test_set_change_nothing(config):
    """COCO's own files: training skips crowds, and the evaluation reads codes."""

    def crowd(item):
        item.update(segmentation=uncompressed(item), iscrowd=1)

    plan = plan_run(LoadedRun("coco.yaml", config(MASKS, each(crowd, first=1)), None), 1)
    assert apply_changes(plan, check_datasets(plan.cfg)) == (plan, [])
    codes = each(lambda item: item.update(segmentation=compressed(item)))
    assert check_datasets(config(MASKS, codes, ("test",))) == []


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("empty", [None, [], {}])
def test_objects_without_masks_need_a_detector_without_masks(config, split, empty):
    change = each(lambda item: item.update(segmentation=empty), first=4)
    (found,) = check_datasets(config(MASKS, change, (split,)))
    assert isinstance(found, Refusal) and found.key == "MODEL.MASK_ON"
    assert found.message.startswith("2 of 6 objects of dataset 'coco:")
    assert "add their masks, or set MODEL.MASK_ON False" in found.message
    off = ("MODEL.MASK_ON", "False")
    assert check_datasets(config(MASKS, change, (split,), *off)) == []


def test_a_voc_year_has_no_masks(voc, words):
    overrides = [*words(voc), "MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.MASK_ON", "True"]
    cfg = load_config("voc_C4_random.yaml", overrides)
    (found,) = check_datasets(cfg)
    assert found.key == "MODEL.MASK_ON" and voc["DATASETS.TRAIN"][0] in found.message
    assert check_datasets(cfg, eval_only=True) == []  # VOC's evaluation reads only boxes


def with_points(item):
    x, y, *_ = item["bbox"]
    item.update(keypoints=[x + 1, y + 1, 2] * 3, num_keypoints=3)


def keypoints(change, first=0):
    def changed(content):
        for category in content["categories"]:
            category["keypoints"] = NAMES
        for item in content["annotations"]:
            with_points(item)
        each(change, first)(content)

    return changed


THREE = ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "3")
WITH_SIGMAS = (*THREE, "TEST.KEYPOINT_OKS_SIGMAS", str(SIGMAS[:3]))


def test_keypoints_of_all_objects_are_in_order(config):
    not_labeled = keypoints(lambda item: item.update(keypoints=[0] * 9, num_keypoints=0), first=5)
    assert check_datasets(config(POINTS, not_labeled, ("train", "test"), *WITH_SIGMAS)) == []


@pytest.mark.parametrize(
    ("points", "key", "sentence"),
    [
        ([], "MODEL.KEYPOINT_ON", "have no 'keypoints', first in .*; give them 3 times 0, 0, 0"),
        (None, "MODEL.KEYPOINT_ON", "have no 'keypoints', first in"),
        (
            [5, 5, 2] * 2,
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
            "do not have 9 values, first 6 in .*; correct them",
        ),
    ],
)
def test_keypoints_of_some_objects_only(config, points, key, sentence):
    change = keypoints(lambda item: item.update(keypoints=points), first=4)
    cfg = config(POINTS, change, ("train", "test"), *WITH_SIGMAS)
    for found, split in zip(check_datasets(cfg), ("train", "test"), strict=True):
        assert isinstance(found, Refusal) and found.key == key
        assert "2 of 6 objects" in found.message and f"{split}.json" in found.message
        assert re.search(sentence, found.message)
    assert len(check_datasets(cfg, eval_only=True)) == 1


@pytest.mark.parametrize("sigmas", [[], SIGMAS[:2], SIGMAS])
def test_standard_deviations_of_another_number_than_the_keypoints(config, sigmas):
    cfg = config(POINTS, keypoints(with_points), ("train", "test"), *THREE)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = sigmas
    (found,) = check_datasets(cfg)
    assert isinstance(found, Refusal) and found.key == "TEST.KEYPOINT_OKS_SIGMAS"
    assert "set it to a list of 3 numbers" in found.message


@pytest.mark.parametrize("ids", [(0, "one"), (0, None), (0.0, 1.0), (0, 0), (0, True), (-1, 0)])
def test_ids_of_a_test_set_that_is_registered_in_code(tmp_path, voc, words, ids):
    """VOC's images as COCO's evaluation gets them."""
    name = f"in code {tmp_path}"
    cfg = load_config("voc_C4_random.yaml", [*words(voc), "MODEL.ROI_HEADS.NUM_CLASSES", "2"])
    check_datasets(cfg)
    dicts = DatasetCatalog.get(voc["DATASETS.TEST"][0])[:2]
    DatasetCatalog.register(
        name, lambda: [{**d, "image_id": i} for d, i in zip(dicts, ids, strict=True)]
    )
    MetadataCatalog.get(name).set(thing_classes=list(CLASSES), evaluator_type="coco")
    cfg.DATASETS.TEST = (name,)
    (found,) = check_datasets(cfg)
    assert isinstance(found, Refusal) and "each image needs a whole number of its own" in str(found)
    ids = (0, 2**40)
    assert check_datasets(cfg) == []
    DatasetCatalog.remove(name)


def named(names):
    def change(content):
        keypoints(with_points)(content)
        for category in content["categories"]:
            category["keypoints"] = names

    return change


@pytest.mark.parametrize("change", [[0] * 9, [9, 9, 0] * 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_keypoints_none_of_which_is_labeled(config, split, change):
    points = keypoints(lambda item: item.update(keypoints=change))
    both = keypoints(with_points)
    cfg = config(POINTS, both, ("train", "test"), *WITH_SIGMAS)
    assert check_datasets(cfg) == []
    (name,) = cfg.DATASETS[split.upper()]
    file = name.split(":")[1]
    content = json.loads(Path(file).read_text())
    points(content)
    Path(file).write_text(json.dumps(content))
    DatasetCatalog.remove(name)
    (found,) = check_datasets(cfg)
    assert isinstance(found, Refusal) and found.key == "MODEL.KEYPOINT_ON"
    assert f"no image of dataset {name!r} has a labeled keypoint; give" in found.message


def test_fewer_keypoints_in_each_image_than_training_needs(config):
    more = ("MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE", "4")
    cfg = config(POINTS, keypoints(with_points), ("train", "test"), *WITH_SIGMAS, *more)
    (found,) = check_datasets(cfg)
    assert "train.json" in found.message and "has 4 labeled keypoints" in found.message


def test_relative_keypoints(config):
    points = keypoints(lambda item: item.update(keypoints=[0, 0.5, 2, 0.7, 1, 1, 0, 0, 0]))
    both = check_datasets(config(POINTS, points, ("train", "test"), *WITH_SIGMAS))
    assert len(both) == 2
    for found in both:
        assert isinstance(found, Refusal)
        assert found.message.startswith("12 of 12 labeled keypoints of dataset 'coco:")
        assert "so they are relative to the image" in found.message
    corner = keypoints(lambda item: item.update(keypoints=[0, 0, 2] * 3), first=1)
    assert check_datasets(config(POINTS, corner, ("train",), *WITH_SIGMAS))
    corner = keypoints(lambda item: item.update(keypoints=[0, 0, 2] * 3), first=4)
    splits = ("train", "test")
    assert check_datasets(config(POINTS, corner, splits, *WITH_SIGMAS)) == []


def test_keypoints_outside_their_image(config):
    def change(first):
        return keypoints(lambda item: item.update(keypoints=[9, SIDE + 9, 2] * 3), first=first)

    splits = ("train", "test")
    for found, split in zip(
        check_datasets(config(POINTS, change(4), splits, *WITH_SIGMAS)), splits, strict=True
    ):
        assert found.key == f"DATASETS.{split.upper()}" and not isinstance(found, Refusal)
        assert "6 of 18 labeled keypoints are outside their image, first in" in found.message
        assert f"{split}4.jpg; write x and y in pixels" in found.message
    assert check_datasets(config(POINTS, change(5), splits, *WITH_SIGMAS)) == []


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Left eye", "Right eye", "nose"], [("Left eye", "Right eye")]),
        (["L_EYE", "R_EYE", "nose"], [("L_EYE", "R_EYE")]),
        (["nose", "eye.r", "eye.l"], [("eye.l", "eye.r")]),
        (["LEFT", "RIGHT", "L1"], [("LEFT", "RIGHT")]),
        (["lEye", "rEye", "nose"], []),
    ],
)
def test_sides_of_keypoints_in_other_spellings(config, names, pairs):
    cfg = config(POINTS, named(names), ("train", "test"), *WITH_SIGMAS)
    assert check_datasets(cfg) == []
    assert MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).keypoint_flip_map == pairs


def test_a_left_keypoint_without_a_right_one(config):
    cfg = config(POINTS, named(["Left_eye", "Rigth_eye", "nose"]), ("train", "test"), *WITH_SIGMAS)
    (found,) = check_datasets(cfg)
    assert found.key == "DATASETS.TRAIN" and not isinstance(found, Refusal)
    assert "'Left_eye' has no partner 'Right_eye', with which it is exchanged" in found.message


def test_keypoints_of_the_test_set_in_another_order(config):
    cfg = config(POINTS, named(NAMES), ("train",), *WITH_SIGMAS)
    other = config(POINTS, named(["right_eye", "left_eye", "nose"]), ("test",), *WITH_SIGMAS)
    cfg.DATASETS.TEST = other.DATASETS.TEST
    (found,) = check_datasets(cfg)
    assert isinstance(found, Refusal) and found.key == "DATASETS.TEST"
    assert "keypoint 0 is 'right_eye', but 'left_eye' in 'coco:" in found.message


@pytest.mark.parametrize("corners", [[[]], [[1, 2, 30, 40]]])
def test_masks_without_a_polygon_say_so(config, corners):
    change = each(lambda item: item.update(segmentation=corners))
    both = check_datasets(config(MASKS, change))
    assert len(both) == 2
    for found in both:
        assert isinstance(found, Refusal)
        assert "6 of 6 objects" in found.message and "a polygon of three corners" in found.message
    assert check_datasets(config(MASKS, change, ("train", "test"), "MODEL.MASK_ON", "False")) == []
