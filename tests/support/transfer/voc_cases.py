"""Random VOC datasets and detections with everything an evaluator can stumble over."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

SIDE = 200  # pixels
OBJECT = (
    "<object><name>{}</name><pose>Left</pose><truncated>0</truncated>"
    "<difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


@dataclasses.dataclass
class Case:
    """A registered dataset and detections of its images, as a detector gives them."""

    dataset: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(1, SIDE - 20, (count, 2))
    return np.concatenate((corner, corner + rng.uniform(5, 80, (count, 2))), axis=1)


def make_case(
    root: Path,
    seed: int,
    *,
    year: int,
    images: int = 8,
    classes: int = 4,
    objects: int = 3,
    false_positives: int = 6,
) -> Case:
    """Write the annotations under `root` and draw the detections.

    There are difficult objects, a class without detections and in every fourth case one without
    objects, images without either, detections equal to one another, equal scores after rounding
    (and before), equal ground truths, and objects of a class that the dataset does not have.
    """
    rng = np.random.default_rng(seed)
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    names = [f"class {i}" for i in range(classes)]
    annotated = [*range(classes - (seed % 4 == 0)), classes]
    inputs, outputs = [], []
    for i in range(images):
        image_id = f"{seed:03d}_{i:05d}"
        count = int(rng.integers(0, 2 * objects + 1))
        truth = np.rint(_boxes(rng, count)).astype(int)
        if count > 1 and rng.random() < 0.3:
            truth[1] = truth[0]
        labels = rng.choice(annotated, count)
        lines = [
            OBJECT.format(f"class {label}", int(rng.random() < 0.25), *box)
            for label, box in zip(labels, truth, strict=True)
        ]
        (root / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation>{''.join(lines)}</annotation>"
        )
        near = np.repeat(np.arange(count), rng.integers(0, 4, count))
        noise = rng.normal(0, 6, (len(near), 4)) * rng.integers(0, 2, (len(near), 1))
        boxes = np.concatenate((truth[near] - [1, 1, 0, 0] + noise, _boxes(rng, false_positives)))
        found = np.concatenate((labels[near], rng.integers(0, classes, false_positives)))
        # The first class is never found.
        found = np.where((found == 0) | (found == classes), classes - 1, found)
        scores = rng.random(len(found))
        coarse = rng.random(len(found)) < 0.5
        scores[coarse] = np.rint(scores[coarse] * 10) / 10
        order = rng.permutation(len(found))
        if rng.random() < 0.1:
            order = order[:0]
        instances = Instances((SIDE, SIDE))
        instances.pred_boxes = Boxes(torch.tensor(boxes[order]))
        instances.scores = torch.tensor(scores[order], dtype=torch.float32)
        instances.pred_classes = torch.tensor(found[order])
        inputs.append({"image_id": image_id})
        outputs.append({"instances": instances})
    listed = "".join(f"{image['image_id']}\n" for image in inputs)
    (root / "ImageSets/Main/test.txt").write_text(listed)
    dataset = f"voc_case_{root}"
    MetadataCatalog.get(dataset).set(
        thing_classes=names, dirname=str(root), year=year, split="test"
    )
    return Case(dataset, inputs, outputs)


def evaluate(evaluator: Any, case: Case, order: Any = None) -> dict[str, float]:
    """The box results of `evaluator` for the images in this order."""
    evaluator.reset()
    for i in range(len(case.inputs)) if order is None else order:
        evaluator.process([case.inputs[i]], [case.outputs[i]])
    return evaluator.evaluate()["bbox"]
