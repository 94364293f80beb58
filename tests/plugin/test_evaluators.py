"""The fast evaluation of LVIS against lvis itself, on what its files and detectors may hold."""

import copy
import json
import multiprocessing

import numpy as np
import pytest
from detectron2.evaluation.lvis_evaluation import _evaluate_predictions_on_lvis
from lvis import LVIS
from pycocotools import mask
from pycocotools.coco import COCO
from support.commands import SECONDS

from moco_d2.plugin import compat, evaluators
from moco_d2.plugin.evaluators import fast_lvis

compat.apply()  # numpy.float, for lvis
IMAGES, CLASSES = 5, 4


def rle(box):
    x, y, w, h = map(int, box)
    pixels = np.zeros((100, 100), np.uint8, order="F")
    pixels[y : y + h, x : x + w] = 1
    code = mask.encode(pixels)
    return {**code, "counts": code["counts"].decode()}


def drawn(folder, kind, empty):
    """An annotation file, and detections of which some have no area."""
    rng = np.random.default_rng(4)

    def box(share):
        box = [float(v) for v in (*rng.integers(0, 50, 2), *rng.integers(5, 50, 2))]
        return [*box[:2], 0.0, box[3]] if rng.random() < share else box

    def item(box, **more):
        shape = {"bbox": box} if kind == "bbox" else {"segmentation": rle(box)}
        image, label = int(rng.integers(IMAGES)) + 1, int(rng.integers(CLASSES)) + 1
        return {"image_id": image, "category_id": label, **shape, **more}

    objects = []
    for i in range(25):
        one = box(0.2)
        objects.append(item(one, id=i + 1, area=one[2] * one[3]))
        objects[-1] |= {"bbox": one, "segmentation": rle(one)}
    detections = []
    for _ in range(120):
        of = objects[rng.integers(len(objects))]
        near = box(1) if rng.random() < empty else of["bbox"]
        detections.append(item(near, score=round(float(rng.random()), 2)))
        detections[-1] |= {key: of[key] for key in ("image_id", "category_id")}
    images = [
        {
            "id": i + 1,
            **{"height": 100, "width": 100, "not_exhaustive_category_ids": [i % CLASSES + 1]},
            "neg_category_ids": list(range(1, CLASSES + 1)),
        }
        for i in range(IMAGES)
    ]
    classes = [{"id": k + 1, "name": str(k), "frequency": "rcf"[k % 3]} for k in range(CLASSES)]
    file = folder / "lvis.json"
    file.write_text(json.dumps({"images": images, "annotations": objects, "categories": classes}))
    return LVIS(str(file)), detections


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("empty", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("most", [300, 12])
def test_lvis_looks_at_nothing_without_an_area(tmp_path, kind, empty, most):
    annotated, detections = drawn(tmp_path, kind, empty)

    def evaluate():
        own = copy.deepcopy(detections)
        return _evaluate_predictions_on_lvis(annotated, own, kind, max_dets_per_image=most)

    expected = evaluate()
    with fast_lvis():
        assert evaluate() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert (expected["AP"] > 5) == (empty < 1)


def test_what_hotcoco_cannot_read_is_evaluated_by_lvis(tmp_path, caplog):
    annotated, detections = drawn(tmp_path, "bbox", 0.3)
    expected = _evaluate_predictions_on_lvis(annotated, copy.deepcopy(detections), "bbox")
    for item in (*annotated.dataset["images"], *annotated.dataset["annotations"], *detections):
        key = "id" if "height" in item else "image_id"
        item[key] -= IMAGES  # in the same order
    annotated._create_index()
    with fast_lvis():
        found = _evaluate_predictions_on_lvis(annotated, detections, "bbox")
    assert found == pytest.approx(expected, nan_ok=True)
    assert "hotcoco cannot read these annotations" in caplog.text


def _evaluate(queue=None):
    truth, detections = COCO(), COCO()
    image, label = {"id": 1, "height": 9, "width": 9}, {"id": 1, "name": "a"}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}
    truth.dataset = {
        "images": [image],
        "annotations": [{**box, "iscrowd": 0}],
        "categories": [label],
    }
    detections.dataset = {**truth.dataset, "annotations": [{**box, "iscrowd": 0, "score": 0.5}]}
    truth.createIndex()
    detections.createIndex()
    evaluation = evaluators.fastest_coco_eval(truth, detections, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    found = float(evaluation.stats[0]), sorted(evaluators.USED_EVALUATORS)
    if queue is not None:
        queue.put(found)
    return found


def test_a_fork_of_a_process_that_has_evaluated_evaluates_with_another_package():
    """hotcoco's threads do not survive the fork: it waited for them forever."""
    pytest.importorskip("hotcoco")
    assert _evaluate()[0] == pytest.approx(1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_evaluate, args=(queue,), daemon=True)
    child.start()
    ap, used = queue.get(timeout=SECONDS)
    child.join()
    assert ap == pytest.approx(1)
    assert len(used) == 1 and "hotcoco" not in used
