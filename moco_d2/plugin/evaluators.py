"""The installed evaluators of COCO and LVIS, and the choice of the fastest one.

All give the same statistics (benchmarks/evaluation.py). hotcoco is the fastest and the youngest
one, so the others stay as fallbacks. Features are detected, and versions never compared.
"""

import collections
import contextlib
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np


@functools.cache
def coco_evaluators() -> dict[str, Callable[[Any, Any, str], Any]]:
    """Return the installed evaluators of COCO, the fastest first: name -> function of the truth,
    the detections (both as pycocotools has read them) and the task.

    What the functions return is used as pycocotools' COCOeval, and gives the same statistics to the
    last digit (benchmarks/evaluation.py).
    """
    from pycocotools.cocoeval import COCOeval

    found: dict[str, Callable[[Any, Any, str], Any]] = {}
    with contextlib.suppress(ImportError):
        if not _LOST:
            found["hotcoco"] = _hotcoco_eval()
    with contextlib.suppress(ImportError):
        found["faster-coco-eval"] = _faster_coco_eval_class()
    return {**found, "pycocotools": COCOeval}


#: The names of the evaluators in coco_evaluators that this process has used.
USED_EVALUATORS: set[str] = set()
# hotcoco computes with threads that it starts once. They do not survive a fork, and a child of a
# process that has them would wait for them forever.
_HAS_THREADS: set[str] = set()
_LOST: set[str] = set()


def _after_fork() -> None:
    USED_EVALUATORS.clear()
    if _HAS_THREADS:
        _LOST.update(_HAS_THREADS)
        coco_evaluators.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def fastest_coco_eval(truth: Any, detections: Any, task: str) -> Any:
    """Return the first of coco_evaluators that accepts the annotations and the detections."""
    *fast, (slowest, last) = coco_evaluators().items()
    for name, evaluator in fast:
        try:
            made = evaluator(truth, detections, task)
        except (TypeError, ValueError) as error:
            _warn(name, error)
        else:
            USED_EVALUATORS.add(name)
            return made
    USED_EVALUATORS.add(slowest)
    return last(truth, detections, task)


def _warn(name: str, error: Exception) -> None:
    # A young package must not cost the result of days of training.
    logging.getLogger(__name__).warning(
        "%s cannot read these annotations, so a slower evaluator does: %s", name, error
    )


def evaluation_with_matches(truth: Any, detections: Any, task: str) -> Any:
    """Return an evaluation whose ``evalImgs`` has pycocotools' matches of each image and class."""
    installed = coco_evaluators()
    return (installed.get("hotcoco") or installed["pycocotools"])(truth, detections, task)


def _hotcoco_eval() -> Callable[[Any, Any, str], Any]:
    import hotcoco

    def evaluator(truth: Any, detections: Any, task: str) -> Any:
        _HAS_THREADS.add("hotcoco")
        own = _for_hotcoco(truth.dataset)
        if task == "bbox":  # half the time of a list of a million dictionaries
            found = own.load_res(_boxes(detections.dataset["annotations"]))
        else:
            found = _detections(detections.dataset)
        return hotcoco.COCOeval(own, found, task)

    return evaluator


def _boxes(detections: list[dict[str, Any]]) -> np.ndarray:
    """Return pycocotools' array (N, 7): image, x, y, width, height, score and category."""
    columns, number = np.empty((len(detections), 7)), len(detections)
    for column, key in ((0, "image_id"), (5, "score"), (6, "category_id")):
        columns[:, column] = np.fromiter(map(itemgetter(key), detections), float, number)
    sides = itertools.chain.from_iterable(map(itemgetter("bbox"), detections))
    columns[:, 1:5] = np.fromiter(sides, float, 4 * number).reshape(-1, 4)
    return columns


def _detections(content: dict[str, Any]) -> Any:
    import hotcoco

    try:
        return hotcoco.COCO(content)  # there may be a million
    except TypeError:  # pycocotools' and faster-coco-eval's evaluations leave bytes in them
        return _for_hotcoco(content)


def _for_hotcoco(content: dict[str, Any], left_out: str = "") -> Any:
    import hotcoco

    keys = tuple(key for key in _OBJECT if key != left_out)
    return hotcoco.COCO(
        {
            "images": [_part(item, _IMAGE) for item in content["images"]],
            "annotations": [_part(item, keys) for item in content.get("annotations", [])],
            "categories": [_part(item, _CATEGORY) for item in content["categories"]],
        }
    )


@contextlib.contextmanager
def fast_lvis() -> Iterator[None]:
    """Let Detectron2 evaluate LVIS with hotcoco within this context, if it is installed.

    Its statistics equal lvis' to the last digit (benchmarks/evaluation.py).
    """
    import lvis

    if "hotcoco" not in coco_evaluators():
        USED_EVALUATORS.add("lvis")
        yield
        return
    import hotcoco

    def results(truth: Any, detections: Any, max_dets: int) -> Any:
        # lvis knows no crowds, and never looks at an object without an area.
        objects = [item for item in truth.dataset["annotations"] if item["area"] > 0]
        content = {**truth.dataset, "annotations": objects}
        _HAS_THREADS.add("hotcoco")
        try:
            own = _for_hotcoco(content, left_out="iscrowd")
            found = hotcoco.LVISResults(own, _with_area(detections, max_dets), max_dets=max_dets)
        except (TypeError, ValueError) as error:
            _warn("hotcoco", error)
            USED_EVALUATORS.add("lvis")
            return kept[0](truth, detections, max_dets=max_dets)
        USED_EVALUATORS.add("hotcoco")
        return own, found

    def evaluation(truth: Any, found: Any, task: Any) -> Any:
        if isinstance(found, tuple):
            return hotcoco.COCOeval(found[0], found[1], task, lvis_style=True)
        return kept[1](truth, found, task)

    kept = lvis.LVISResults, lvis.LVISEval
    lvis.LVISResults, lvis.LVISEval = results, evaluation
    try:
        yield
    finally:
        lvis.LVISResults, lvis.LVISEval = kept


def _with_area(detections: list[dict[str, Any]], max_dets: int) -> list[dict[str, Any]]:
    """Leave out the detections without an area (empty masks), which lvis does not look at, but
    counts among the max_dets of an image.
    """
    from pycocotools import mask

    if detections and "bbox" in detections[0]:
        areas = [item["bbox"][2] * item["bbox"][3] for item in detections]
    else:
        areas = [mask.area(item["segmentation"]) for item in detections]
    if all(area > 0 for area in areas):
        return detections
    seen: collections.Counter[Any] = collections.Counter()
    kept = []
    for i in sorted(range(len(detections)), key=lambda i: -detections[i]["score"]):
        image = detections[i]["image_id"]
        seen[image] += 1
        if areas[i] > 0 and (max_dets < 0 or seen[image] <= max_dets):
            kept.append(i)
    return [detections[i] for i in sorted(kept)]


# What an evaluation needs. Files have further fields, and so have evaluations by other packages.
_IMAGE = ("id", "height", "width", "neg_category_ids", "not_exhaustive_category_ids")
_CATEGORY = ("id", "name", "frequency")
_OBJECT = (
    *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score"),
    *("segmentation", "keypoints", "num_keypoints"),
)


def _part(item: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    part = {key: item[key] for key in keys if key in item}
    code = part.get("segmentation")
    if isinstance(code, dict) and isinstance(code.get("counts"), bytes):
        part["segmentation"] = {**code, "counts": code["counts"].decode("ascii")}
    return part


def _faster_coco_eval_class() -> type:
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    class COCOevalOfPycocotools(COCOeval_faster):
        """Accepts annotations that pycocotools has read, as Detectron2 passes them.

        For keypoints, faster-coco-eval needs a table that has another name in pycocotools, and it
        leaves out categories without annotations, which Detectron2 expects.
        """

        def __init__(self, truth: Any, detections: Any, task: str):
            if not hasattr(truth, "cat_img_map"):
                truth.cat_img_map = truth.catToImgs
            super().__init__(truth, detections, task)
            self.params.catIds = sorted(truth.getCatIds())

    return COCOevalOfPycocotools
