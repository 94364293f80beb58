"""Annotation ids and missing fields do not change what COCO's evaluation says."""

import copy
import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools import mask
from support.transfer.coco_cases import coco_evaluator, evaluate_coco, make_case, write_lvis

from moco_d2.config.load import load_config
from moco_d2.transfer.evaluation.build import build_evaluator

IDS = {
    "from 0": lambda i: i,
    "negative": lambda i: -i - 1,
    "fractional": lambda i: i / 4,
    "text": lambda i: f"object {i}",
    "above 2**63": lambda i: 10**30 + i,
    "all equal": lambda i: 7,
}


def perfect(truth):
    """Detections that are the objects."""
    side = truth["images"][0]["height"]
    items = [copy.deepcopy(item) for item in truth["annotations"] if not item["iscrowd"]]
    for item in items:
        outline = mask.frPyObjects(item["segmentation"], side, side)
        item |= {"segmentation": mask.merge(outline), "score": 0.5}
    return items


@pytest.fixture
def truth():
    """Objects with masks and keypoints, and no crowd."""
    truth, _ = make_case(0)
    for item in truth["annotations"]:
        item["iscrowd"] = 0
        item["keypoints"][2::3] = [2] * (len(item["keypoints"]) // 3)
        item["num_keypoints"] = len(item["keypoints"]) // 3
    truth["annotations"] = [a for a in truth["annotations"] if isinstance(a["segmentation"], list)]
    return truth


def evaluated(folder, truth, found):
    boxes, points = (
        evaluate_coco(coco_evaluator(folder, truth), truth["images"], found, keypoints)
        for keypoints in (False, True)
    )
    return {**boxes, "keypoints": points["keypoints"]}


@pytest.mark.parametrize("ids", IDS)
def test_annotation_ids_do_not_change_the_ap_of_boxes_masks_and_keypoints(tmp_path, truth, ids):
    found = perfect(truth)
    expected = evaluated(tmp_path, truth, found)
    for task in ("bbox", "segm", "keypoints"):
        assert expected[task]["AP50"] == pytest.approx(100)
    for i, item in enumerate(truth["annotations"]):
        item["id"] = IDS[ids](i)
    results = evaluated(tmp_path, truth, found)
    for task, metrics in expected.items():
        assert results[task] == pytest.approx(metrics, nan_ok=True)


def test_lvis_annotation_ids_from_0_and_missing_areas_do_not_change_the_ap(tmp_path):
    truth, _ = make_case(5)
    found = perfect(truth)

    def result(first):
        file = tmp_path / f"lvis_{first}.json"
        write_lvis(file, truth, np.random.default_rng(0))
        content = json.loads(file.read_text())
        for i, item in enumerate(content["annotations"], start=first):
            item["id"] = i
            if first == 0:
                del item["area"]
        file.write_text(json.dumps(content))
        MetadataCatalog.get(str(file)).set(
            json_file=str(file),
            evaluator_type="lvis",
            thing_classes=[c["name"] for c in truth["categories"]],
        )
        cfg = load_config("coco_FPN_1x_random.yaml", ["OUTPUT_DIR", str(tmp_path)])
        return evaluate_coco(build_evaluator(cfg, str(file)), truth["images"], found)

    first, second = result(0), result(1)
    for task, metrics in second.items():
        for kind in ("AP", "AP50", "AP75"):
            assert first[task][kind] == pytest.approx(metrics[kind])
        assert metrics["AP50"] == pytest.approx(100)


@pytest.mark.parametrize("keypoints", [False, True])
@pytest.mark.parametrize("first", [0, 2**31, 2**53 - 20])
def test_ids_and_crowds_of_any_accepted_form_do_not_change_the_ap(tmp_path, first, keypoints):
    truth, found = make_case(0)
    expected = evaluate_coco(coco_evaluator(tmp_path, truth), truth["images"], found, keypoints)
    for item in (*truth["annotations"], *found):
        item["image_id"] += first
    for item in truth["annotations"]:
        item["category_id"] += first - 1
        item["iscrowd"] = bool(item["iscrowd"])
    for image in truth["images"]:
        image["id"] += first
    for category in truth["categories"]:
        category["id"] += first - 1
    evaluator = coco_evaluator(tmp_path, truth)
    results = evaluate_coco(evaluator, truth["images"], found, keypoints)
    for task, metrics in expected.items():
        assert results[task] == pytest.approx(metrics, nan_ok=True)
        assert metrics["AP"] > 0


def test_fields_that_follow_from_others_may_be_missing(tmp_path, truth):
    evaluator = coco_evaluator(tmp_path, truth)
    whole = evaluator._coco_api.dataset["annotations"]
    masks = [evaluator._coco_api.annToMask(item).sum() for item in whole]
    for item in truth["annotations"]:
        for field in ("area", "iscrowd", "num_keypoints"):
            del item[field]
    completed = coco_evaluator(tmp_path, truth)._coco_api.dataset["annotations"]
    assert [item["area"] for item in completed] == masks
    for field in ("iscrowd", "num_keypoints"):
        assert [item[field] for item in completed] == [item[field] for item in whole]
    for item in truth["annotations"]:
        del item["segmentation"]
    completed = coco_evaluator(tmp_path, truth)._coco_api.dataset["annotations"]
    assert [a["area"] for a in completed] == [a["bbox"][2] * a["bbox"][3] for a in completed]
