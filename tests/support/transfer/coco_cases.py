"""Random ground truth and detections in COCO's and LVIS' formats."""

import contextlib
import io
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from moco_d2.transfer.evaluation.coco import COCOBoxEvaluator

SIDE = 320  # pixels; boxes of all three size classes fit in
KEYPOINTS = 17
SIGMAS = np.linspace(0.02, 0.1, KEYPOINTS).round(3).tolist()


def _polygon(box: np.ndarray, rng: np.random.Generator) -> list[list[float]]:
    """An octagon in the box."""
    x, y, w, h = box
    cut = rng.uniform(0.1, 0.4)
    near, far = (cut, 0, 1 - cut, 0, 1, cut), (1, 1 - cut, 1 - cut, 1, cut, 1, 0, 1 - cut, 0, cut)
    relative = np.array([*near, *far]).reshape(-1, 2)
    return [(relative * [w, h] + [x, y]).ravel().tolist()]


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    size = rng.choice([14, 50, 130], (count, 1)) * rng.uniform(0.6, 1.5, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (SIDE - size)
    return np.concatenate((corner, size), axis=1)


def _keypoints(box: np.ndarray, rng: np.random.Generator, noise: float) -> list[float]:
    points = np.random.default_rng(0).uniform(0.1, 0.9, (KEYPOINTS, 2)) * box[2:] + box[:2]
    points += rng.normal(0, noise, points.shape)
    return np.concatenate((points, rng.integers(0, 3, (KEYPOINTS, 1))), axis=1).ravel().tolist()


def make_case(
    seed: int, *, images: int = 12, classes: int = 4, objects: int = 5, false_positives: int = 4
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and detections, as COCO's json files hold them.

    With crowds, a class without objects and one without detections, empty images, equal scores, and
    objects without visible keypoints. Boxes and masks in the detections are of the same objects.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "info": {},
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(images)
        ],
        "annotations": [],
        "categories": [
            {"id": i + 1, "name": f"class {i}", "keypoints": [], "skeleton": []}
            for i in range(classes)
        ],
    }
    found = []
    for image in range(images):
        count = int(rng.integers(0, 2 * objects + 1))
        boxes = _boxes(rng, count)
        labels = rng.integers(1, classes, count)  # never the last class
        for box, label in zip(boxes, labels, strict=True):
            polygon = _polygon(box, rng)
            keypoints = _keypoints(box, rng, noise=0)
            crowd = bool(rng.random() < 0.1)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "segmentation": _rle(polygon) if crowd else polygon,
                    "area": float(0.8 * box[2] * box[3]),
                    "iscrowd": int(crowd),
                    "keypoints": keypoints,
                    "num_keypoints": int(np.count_nonzero(keypoints[2::3])),
                }
            )
        near = np.repeat(np.arange(count), rng.integers(0, 3, count))
        shaken = boxes[near] + rng.normal(0, 1, (len(near), 4)) * boxes[near][:, 2:3] * 0.08
        shaken[:, 2:] = shaken[:, 2:].clip(2)
        candidates = np.concatenate((shaken, _boxes(rng, false_positives)))
        guesses = np.concatenate((labels[near], rng.integers(2, classes + 1, false_positives)))
        for box, label in zip(candidates, guesses, strict=True):
            if label != 1:  # never found
                found.append(
                    {
                        "image_id": image,
                        "category_id": int(label),
                        "bbox": box.tolist(),
                        "segmentation": _rle(_polygon(box, rng)),
                        "keypoints": _keypoints(box, rng, noise=box[2] * 0.04),
                        "score": float(np.rint(rng.random() * 20) / 20),
                    }
                )
    return truth, found


def _rle(polygon: list[list[float]]) -> dict[str, Any]:
    from pycocotools import mask

    rle = mask.merge(mask.frPyObjects(polygon, SIDE, SIDE))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def write_lvis(path: Path, truth: dict[str, Any], rng: np.random.Generator) -> None:
    """The same objects as an LVIS file: no crowds, frequencies, and in each image some classes of
    which it is said that they are absent, or not annotated throughout.
    """
    annotations = [a for a in truth["annotations"] if not a["iscrowd"]]
    categories = [c["id"] for c in truth["categories"]]
    images = []
    for image in truth["images"]:
        present = {a["category_id"] for a in annotations if a["image_id"] == image["id"]}
        absent = [c for c in categories if c not in present]
        images.append(
            {
                **image,
                "coco_url": f"http://images.cocodataset.org/val2017/{image['file_name']}",
                "neg_category_ids": [c for c in absent if rng.random() < 0.5],
                "not_exhaustive_category_ids": [c for c in present if rng.random() < 0.3],
            }
        )
    content = {
        "info": {},
        "images": images,
        "annotations": [
            {k: v for k, v in a.items() if "keypoints" not in k and k != "iscrowd"}
            for a in annotations
        ],
        "categories": [
            {"id": c, "name": f"class {c}", "synset": f"c.{c}", "frequency": "rcf"[c % 3]}
            for c in categories
        ],
    }
    path.write_text(json.dumps(content))


def as_instances(found, image, keypoints):
    """Detections of an image as a detector gives them."""
    ours = [item for item in found if item["image_id"] == image]
    instances = Instances((SIDE, SIDE))
    boxes = torch.tensor([item["bbox"] for item in ours], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor([item["score"] for item in ours])
    instances.pred_classes = torch.tensor([item["category_id"] - 1 for item in ours])
    if keypoints:
        instances.pred_keypoints = torch.tensor([item["keypoints"] for item in ours]).reshape(
            -1, KEYPOINTS, 3
        )
    else:
        masks = [mask_util.decode(item["segmentation"]) for item in ours]
        instances.pred_masks = torch.tensor(np.array(masks).reshape(-1, SIDE, SIDE)).bool()
    return instances


def coco_evaluator(folder: Path, truth: dict[str, Any]) -> COCOBoxEvaluator:
    """The evaluator of `truth`, which is written to a new file in `folder`."""
    name = f"case {uuid.uuid4()}"
    file = folder / f"{name}.json"
    file.write_text(json.dumps(truth))
    register_coco_instances(name, {}, str(file), str(folder))
    MetadataCatalog.get(name).set(
        thing_classes=[c["name"] for c in truth["categories"]],
        thing_dataset_id_to_contiguous_id={
            number: i for i, number in enumerate(sorted(c["id"] for c in truth["categories"]))
        },
    )
    return COCOBoxEvaluator(name, output_dir=str(folder / "out"), kpt_oks_sigmas=SIGMAS)


def evaluate_coco(evaluator, images, found, keypoints=False):
    """The results of detections on `images`, in this order."""
    evaluator.reset()
    for image in images:
        instances = as_instances(found, image["id"], keypoints)
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()
