#!/usr/bin/env python3
"""Compare our evaluation with Detectron2's and pycocotools', at the size of the real test sets.

The boxes are random in images of 500 x 375 pixels. The time depends on their number, not on their
location.

    python benchmarks/evaluation.py [--repeats 3] [--small] [--json FILE]
"""

import contextlib
import copy
import gc
import io
import json
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
from detectron2.evaluation.lvis_evaluation import _evaluate_predictions_on_lvis
from detectron2.structures import Boxes, Instances
from harness import check, finish, parser
from lvis import LVIS
from pycocotools import mask
from pycocotools.coco import COCO

from moco_d2.benchmark.image_bootstrap import RESAMPLES, replicates
from moco_d2.plugin.evaluators import coco_evaluators, fast_lvis
from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator

WIDTH, HEIGHT = 500, 375
DETECTIONS_PER_IMAGE = 100  # Detectron2's limit
# VOC2007 test: 4,952 images; its annotations hold 14,976 objects, difficult ones included.
VOC_IMAGES, VOC_CLASSES, VOC_OBJECTS_PER_IMAGE = 4952, 20, 3
# COCO val2017: 5,000 images and 36,781 objects.
COCO_IMAGES, COCO_CLASSES, COCO_OBJECTS_PER_IMAGE = 5000, 80, 7
# Masks, keypoints and LVIS have fewer images, because their references take minutes.
FEW_IMAGES, FEW_DETECTIONS, LVIS_CLASSES = 500, 20, 1203
_CROWDS = 0.02  # of the objects
_ROUNDING = 1e-12  # points; means are summed in another order

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


def voc(images: int, root: Path) -> tuple[Timed, VOCEvaluator]:
    """Return VOC evaluations of a detector's outputs, after the annotations are read, and the one
    that the others are compared with.
    """
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

    compatible = VOCEvaluator("voc_benchmark")
    timed = {
        "detectron2": evaluation(PascalVOCDetectionEvaluator("voc_benchmark")),
        "compatible": evaluation(compatible),
        "exact": evaluation(VOCEvaluator("voc_benchmark", mode="exact")),
    }
    return timed, compatible


def bootstrap(evaluator: VOCEvaluator, small: bool) -> list[dict[str, Any]]:
    """Return the figures of a bootstrap over the images of an evaluation that was run."""
    outputs, _ = evaluator.per_image()
    seconds = {}
    for draws in (RESAMPLES // 4, RESAMPLES):
        start = time.process_time()
        replicates(outputs["bbox"], draws)
        seconds[draws] = time.process_time() - start
    most = None if small else MOST_BOOTSTRAP_SECONDS
    return [
        check(f"voc: {draws} draws of the images", value, unit="s", at_most=most)
        for draws, value in seconds.items()
    ]


def coco(images: int, kind: str, detections_per_image: int) -> Timed:
    """Return COCO evaluations, from loaded annotations and detections to the 12 (10) statistics.

    Args:
        images: The number of images.
        kind: "bbox", "segm" or "keypoints".
        detections_per_image: The number of detections of an image.
    """
    annotations, detections = _items(images, kind, detections_per_image, COCO_CLASSES)
    if kind == "keypoints":
        for item in annotations + detections:
            item["category_id"] = 0
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
            evaluated = evaluator(annotated, loaded, kind)
            evaluated.evaluate()
            evaluated.accumulate()
            evaluated.summarize()
            stats = evaluated.stats[: 10 if kind == "keypoints" else 12]
            return {str(i): float(value) for i, value in enumerate(stats)}

        return run

    evaluators = dict(reversed(coco_evaluators().items()))  # pycocotools is the reference
    timed = {name: evaluation(evaluator) for name, evaluator in evaluators.items()}
    if kind == "bbox" and "hotcoco" in evaluators:
        converted = evaluators["hotcoco"](annotated, loaded, kind)
        timed[_ALONE] = evaluation(lambda *_: converted)
    return timed


def _items(
    images: int, kind: str, detections_per_image: int, classes: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return annotations and detections in COCO's form."""
    rng = np.random.default_rng(0)
    truth = random_boxes(rng, (images, COCO_OBJECTS_PER_IMAGE))
    labels = rng.integers(0, classes, truth.shape[:2])
    boxes, owner = near(rng, truth, detections_per_image)
    guesses = guessed(rng, labels, owner, classes)
    scores = rng.random(guesses.shape)

    def items(boxes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        size = boxes[..., 2:] - boxes[..., :2]
        return [
            {"image_id": i, "category_id": int(label), "bbox": [*box[:2].tolist(), *s.tolist()]}
            for i in range(images)
            for box, s, label in zip(boxes[i], size[i], labels[i], strict=True)
        ]

    annotations, detections = items(truth, labels), items(boxes, guesses)
    for i, item in enumerate(annotations):
        item |= {"id": i + 1, "iscrowd": int(rng.random() < _CROWDS)}
        item["area"] = item["bbox"][2] * item["bbox"][3]
    for item, score in zip(detections, scores.ravel().tolist(), strict=True):
        item["score"] = score
    if kind == "segm":
        for item in annotations + detections:
            item["segmentation"] = _octagon(item["bbox"])
        for item in detections:
            del item["bbox"]
    if kind == "keypoints":
        for item in annotations + detections:
            item["keypoints"] = _keypoints(rng, item["bbox"])
            item["num_keypoints"] = sum(v > 0 for v in item["keypoints"][2::3])
    return annotations, detections


def _octagon(box: list[float]) -> dict[str, Any]:
    """Return the run-length code of the octagon in a box."""
    x, y, w, h = box
    corners = ((0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3))
    outline = [value for u, v in corners for value in (x + u * w, y + v * h)]
    (code,) = mask.frPyObjects([outline], HEIGHT, WIDTH)
    return {"size": code["size"], "counts": code["counts"].decode()}


def _keypoints(rng: np.random.Generator, box: list[float]) -> list[float]:
    """Return 17 keypoints near fixed places of a box."""
    x, y, w, h = box
    places = np.stack(np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 3)), -1).reshape(-1, 2)
    places = places[:17] + rng.normal(0, 0.02, (17, 2))
    seen = rng.integers(0, 3, 17)
    return [
        value
        for (u, v), s in zip(places.tolist(), seen.tolist(), strict=True)
        for value in (x + u * w, y + v * h, float(s))
    ]


def lvis(images: int, root: Path) -> Timed:
    """Return LVIS box evaluations, from loaded annotations and detections to the statistics."""
    annotations, detections = _items(images, "bbox", DETECTIONS_PER_IMAGE, LVIS_CLASSES)
    for item in annotations:
        del item["iscrowd"]  # LVIS has no crowds
    rng = np.random.default_rng(1)
    content = {
        "images": [
            {
                "id": i,
                "width": WIDTH,
                "height": HEIGHT,
                "neg_category_ids": rng.integers(0, LVIS_CLASSES, 10).tolist(),
                "not_exhaustive_category_ids": rng.integers(0, LVIS_CLASSES, 3).tolist(),
            }
            for i in range(images)
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": str(i), "frequency": "rcf"[i % 3]} for i in range(LVIS_CLASSES)
        ],
    }
    path = root / "lvis.json"
    path.write_text(json.dumps(content))
    annotated = LVIS(str(path))

    def evaluate() -> dict[str, float]:
        return _evaluate_predictions_on_lvis(annotated, copy.deepcopy(detections), "bbox")

    def fast() -> dict[str, float]:
        with fast_lvis():
            return evaluate()

    return {"lvis": evaluate, "hotcoco": fast}


def compare(timed: Timed, repeats: int) -> dict[str, Any]:
    """Take the CPU time of all threads in turns, and compare each with the first one.

    Returns:
        Name -> median seconds, speed-up over the first, and largest difference of the results.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    results = {}
    for _ in range(repeats):
        for name, run in timed.items():
            gc.collect()  # so that the objects of one do not cost the time of the next
            start = time.process_time()
            results[name] = run()
            seconds[name].append(time.process_time() - start)
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


_ALONE = "hotcoco without conversion"
MOST_BOOTSTRAP_SECONDS = 10  # of RESAMPLES draws of VOC 2007 test
#: The smallest factor between a reference and what is used instead.
LIMITS = {("voc", "compatible"): 200, ("coco boxes", "hotcoco"): 50, ("coco boxes", _ALONE): 100}
KINDS = ("voc", "coco boxes", "coco masks", "coco keypoints", "lvis boxes")


def main() -> None:
    """Run all kinds and print them."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--only", choices=KINDS)
    args = options.parse_args()
    logging.disable()
    divisor = 20 if args.small else 1
    few = FEW_IMAGES // divisor
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        makers = {
            "coco boxes": lambda: coco(COCO_IMAGES // divisor, "bbox", DETECTIONS_PER_IMAGE),
            "coco masks": lambda: coco(few, "segm", FEW_DETECTIONS),
            "coco keypoints": lambda: coco(few, "keypoints", FEW_DETECTIONS),
            "lvis boxes": lambda: lvis(few, Path(folder)),
        }
        checks: list[dict[str, Any]] = []
        if args.only in (None, "voc"):
            timed, evaluator = voc(VOC_IMAGES // divisor, Path(folder))
            figures["voc"] = compare(timed, args.repeats)
            checks += bootstrap(evaluator, args.small)
        for kind, make in makers.items():
            if args.only in (None, kind):
                figures[kind] = compare(make(), args.repeats)
    for kind, timed in figures.items():
        reference, *others = timed
        for name in others:
            figure = timed[name]
            limit = None if args.small else LIMITS.get((kind, name))
            checks += [
                check(
                    f"{kind}: time of {reference} / {name}", figure["times_faster"], at_least=limit
                ),
                check(
                    f"{kind}: largest difference of {name} from {reference}",
                    figure["largest_difference"],
                    unit="points",
                    at_most=None if name == "exact" else _ROUNDING,
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
            f"Of boxes, there are {DETECTIONS_PER_IMAGE} detections per image, "
            f"{VOC_IMAGES // divisor} images of VOC, {COCO_IMAGES // divisor} of COCO and {few} "
            f"of LVIS; of masks and keypoints, {FEW_DETECTIONS} per image and {few} images. The "
            "exact mode of VOC differs because, unlike Detectron2's evaluator, it does not round "
            "scores to three decimals.",
            "Times are CPU times of all threads. That of hotcoco has the conversion of annotations "
            "and detections, a dictionary each, to its own form; for COCO's boxes, its evaluation "
            "alone is measured as well.",
        ],
    )


if __name__ == "__main__":
    main()
