#!/usr/bin/env python3
"""Compare our evaluation with Detectron2's and pycocotools', at the size of the real test sets.

The boxes are random in images of 500 x 375 pixels. The time depends on their number, not on their
location.

    python benchmarks/evaluation.py [--repeats 3] [--small] [--json FILE]
"""

import contextlib
import io
import logging
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.structures import Boxes, Instances
from harness import check, finish, parser
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator

WIDTH, HEIGHT = 500, 375
DETECTIONS_PER_IMAGE = 100  # Detectron2's limit
# VOC2007 test: 4,952 images; its annotations hold 14,976 objects, difficult ones included.
VOC_IMAGES, VOC_CLASSES, VOC_OBJECTS_PER_IMAGE = 4952, 20, 3
# COCO val2017: 5,000 images and 36,781 objects.
COCO_IMAGES, COCO_CLASSES, COCO_OBJECTS_PER_IMAGE = 5000, 80, 7

Timed = dict[str, Callable[[], Any]]


def random_boxes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return random boxes (x0, y0, x1, y1) within the image."""
    corners = rng.uniform(0, 1, (*shape, 2, 2)) * (WIDTH - 1, HEIGHT - 1)
    return np.concatenate((corners.min(axis=-2), corners.max(axis=-2) + 1), axis=-1)


def near(rng: np.random.Generator, truth: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` boxes per image, and the index of the object of each box.

    Half of the boxes are near the object, and half anywhere.
    """
    owner = rng.integers(0, truth.shape[1], (len(truth), count))
    boxes = np.take_along_axis(truth, owner[..., None], axis=1)
    boxes = boxes + rng.normal(0, 12, boxes.shape)
    anywhere = rng.random((len(truth), count)) < 0.5
    boxes[anywhere] = random_boxes(rng, (int(anywhere.sum()),))
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    return boxes, owner


def guessed(
    rng: np.random.Generator, labels: np.ndarray, owner: np.ndarray, classes: int
) -> np.ndarray:
    """Return the predicted classes: the object's class for half the detections, else random."""
    guesses = np.take_along_axis(labels, owner, axis=1)
    wrong = rng.random(guesses.shape) < 0.5
    guesses[wrong] = rng.integers(0, classes, int(wrong.sum()))
    return guesses


def voc(images: int, root: Path) -> Timed:
    """Return VOC evaluations of a detector's outputs, after the annotations are read."""
    rng = np.random.default_rng(0)
    truth = np.rint(random_boxes(rng, (images, VOC_OBJECTS_PER_IMAGE)))
    labels = rng.integers(0, VOC_CLASSES, truth.shape[:2])
    boxes, owner = near(rng, truth, DETECTIONS_PER_IMAGE)
    guesses = guessed(rng, labels, owner, VOC_CLASSES)
    scores = rng.random(guesses.shape).astype(np.float32)
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    names = [f"{i:06d}" for i in range(images)]
    (root / "ImageSets/Main/test.txt").write_text("\n".join(names))
    inputs, outputs = [], []
    for i, name in enumerate(names):
        objects = "".join(
            f"<object><name>class {label}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{int(rng.random() < 0.2)}</difficult><bndbox><xmin>{x0:.0f}</xmin>"
            f"<ymin>{y0:.0f}</ymin><xmax>{x1:.0f}</xmax><ymax>{y1:.0f}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in zip(labels[i], truth[i] + 1, strict=True)
        )
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        detections = Instances((HEIGHT, WIDTH))
        detections.pred_boxes = Boxes(torch.tensor(boxes[i], dtype=torch.float32))
        detections.scores = torch.tensor(scores[i])
        detections.pred_classes = torch.tensor(guesses[i])
        inputs.append([{"image_id": name}])
        outputs.append([{"instances": detections}])
    MetadataCatalog.get("voc_benchmark").set(
        thing_classes=[f"class {i}" for i in range(VOC_CLASSES)],
        dirname=str(root),
        year=2007,
        split="test",
    )

    def evaluation(evaluator: Any) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            evaluator.reset()
            for image, output in zip(inputs, outputs, strict=True):
                evaluator.process(image, output)
            return evaluator.evaluate()["bbox"]

        evaluator.reset()
        evaluator.evaluate()  # reads the annotations, which both evaluators cache
        return run

    return {
        "detectron2": evaluation(PascalVOCDetectionEvaluator("voc_benchmark")),
        "compatible": evaluation(VOCEvaluator("voc_benchmark")),
        "exact": evaluation(VOCEvaluator("voc_benchmark", mode="exact")),
    }


def coco(images: int) -> Timed:
    """Return COCO box evaluations, from loaded annotations and detections to the 12 statistics."""
    rng = np.random.default_rng(0)
    truth = random_boxes(rng, (images, COCO_OBJECTS_PER_IMAGE))
    labels = rng.integers(0, COCO_CLASSES, truth.shape[:2])
    boxes, owner = near(rng, truth, DETECTIONS_PER_IMAGE)
    guesses = guessed(rng, labels, owner, COCO_CLASSES)
    scores = rng.random(guesses.shape)

    def items(boxes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        size = boxes[..., 2:] - boxes[..., :2]
        return [
            {"image_id": i, "category_id": int(label), "bbox": [*box[:2].tolist(), *s.tolist()]}
            for i in range(images)
            for box, s, label in zip(boxes[i], size[i], labels[i], strict=True)
        ]

    annotations = items(truth, labels)
    for i, item in enumerate(annotations):
        item |= {"id": i + 1, "iscrowd": 0, "area": item["bbox"][2] * item["bbox"][3]}
    detections = items(boxes, guesses)
    for item, score in zip(detections, scores.ravel().tolist(), strict=True):
        item["score"] = score
    annotated = COCO()
    annotated.dataset = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(COCO_CLASSES)],
        "info": {},
    }
    annotated.createIndex()
    loaded = annotated.loadRes(detections)

    def evaluation(evaluator: Any) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            evaluated = evaluator(annotated, loaded, "bbox")
            evaluated.evaluate()
            evaluated.accumulate()
            evaluated.summarize()
            return {str(i): float(value) for i, value in enumerate(evaluated.stats[:12])}

        return run

    return {"pycocotools": evaluation(COCOeval), "faster-coco-eval": evaluation(COCOeval_opt)}


def compare(timed: Timed, repeats: int) -> dict[str, Any]:
    """Time evaluations in turns, and compare each with the first one.

    Returns:
        Name -> median seconds, speed-up over the first, and largest difference of the results.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    results = {}
    for _ in range(repeats):
        for name, run in timed.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    reference = next(iter(timed))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "seconds": round(medians[name], 3),
            "all_seconds": [round(value, 3) for value in seconds[name]],
            "times_faster": round(medians[reference] / medians[name], 1),
            "largest_difference": max(
                abs(value - results[name][key]) for key, value in results[reference].items()
            ),
            "peak_memory_mb": None if name == reference else _peak_memory(run),
        }
        for name, run in timed.items()
    }


def _peak_memory(run: Callable[[], Any]) -> float:
    """Return the peak of Python's and NumPy's memory in a separate run, which is slower."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return round(peak, 1)


LIMITS = {"voc": 20, "coco": 8}


def main() -> None:
    """Run both and print them."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--only", choices=tuple(LIMITS))
    args = options.parse_args()
    logging.disable()
    divisor = 20 if args.small else 1
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        if args.only != "coco":
            figures["voc"] = compare(voc(VOC_IMAGES // divisor, Path(folder)), args.repeats)
        if args.only != "voc":
            figures["coco"] = compare(coco(COCO_IMAGES // divisor), args.repeats)
    checks = []
    for kind, timed in figures.items():
        reference, *others = timed
        for name in others:
            limit = None if args.small else LIMITS[kind]
            figure = timed[name]
            checks += [
                check(
                    f"{kind}: time of {reference} / {name}", figure["times_faster"], at_least=limit
                ),
                check(
                    f"{kind}: largest difference of {name} from {reference}",
                    figure["largest_difference"],
                    unit="points",
                ),
            ]
        checks += [
            check(f"{kind}: {name}", figure["seconds"], unit="s") for name, figure in timed.items()
        ]
    finish(
        args,
        title="Evaluation at the size of the real test sets",
        checks=checks,
        notes=[
            f"There are {DETECTIONS_PER_IMAGE} detections per image, {VOC_IMAGES // divisor} "
            f"images of VOC and {COCO_IMAGES // divisor} of COCO. The exact mode of VOC differs "
            "because, unlike Detectron2's evaluator, it does not round scores to three decimals."
        ],
    )


if __name__ == "__main__":
    main()
