"""Checks that a dataset has the masks and keypoints that the detector's heads need.

Detectron2 would fail at the first image without them, in an evaluation after the whole training.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from moco_d2.transfer.data.coco_entry_types import is_id
from moco_d2.transfer.evaluation.build import evaluator_types
from moco_d2.transfer.preflight.findings import Change, Finding, Refusal

_VALUES = 3  # x, y and visibility of a keypoint
# Number of keypoints of COCO's persons, whose sigmas pycocotools knows.
_COCO_KEYPOINTS = 17
# No set has so many labeled keypoints in the first pixel of their images, to whose coordinates from
# 0 to 1 Detectron2's reader adds 0.5.
_MOST, _PIXEL = 0.95, 1.5
_MANY = 0.25  # share of keypoints outside their image that no correct set has
_Object = tuple[str, dict[str, Any]]  # image file and annotation


def check_masks_and_keypoints(
    cfg: CfgNode, split: str, name: str, dicts: list[dict[str, Any]]
) -> Iterator[Finding]:
    """Yield a Refusal if objects have no mask or not the number of keypoints that the detector is
    built for, or if COCO's evaluation cannot use the images' ids; and a Change of INPUT.MASK_FORMAT
    if masks are run-length codes.

    Args:
        cfg: The config as it will run.
        split: "TRAIN" or "TEST". Training skips crowds, but COCO's evaluation reads their masks.
        name: The name of the dataset.
        dicts: Its dicts.
    """
    objects = [(d["file_name"], a) for d in dicts for a in d.get("annotations", ())]
    if split == "TRAIN":
        objects = [(file, a) for file, a in objects if a.get("iscrowd", 0) == 0]
    elif not {"coco", "lvis"}.intersection(evaluator_types(name)):
        return
    else:
        yield from _check_image_ids(name, dicts)
    if cfg.MODEL.MASK_ON:
        yield from _check_masks(cfg, split, name, objects)
    if cfg.MODEL.KEYPOINT_ON:
        yield from _check_keypoints(cfg, split, name, objects)
        yield from _check_labels(cfg, split, name, objects)
        yield from _check_places(split, name, dicts)


def _check_image_ids(name: str, dicts: list[dict[str, Any]]) -> Iterator[Finding]:
    """Check the ids of a dataset that is registered in code; those of a file are checked before."""
    seen = set()
    for sample in dicts:
        number = sample.get("image_id")
        if not is_id(number) or number in seen:
            yield Refusal(
                "DATASETS.TEST",
                repr(name),
                f"{sample['file_name']} has the image_id {number!r:.40}, but each image needs a "
                "whole number of its own, from 0; number the images",
            )
            return
        seen.add(number)


def _check_masks(cfg: CfgNode, split: str, name: str, objects: list[_Object]) -> Iterator[Finding]:
    without = [file for file, a in objects if not _length(a.get("segmentation"))]
    if without:
        yield Refusal(
            "MODEL.MASK_ON",
            "True",
            f"{len(without)} of {len(objects)} objects of dataset {name!r} have no 'segmentation' "
            "with a run-length code or a polygon of three corners, "
            f"first in {without[0]}; add their masks, or set MODEL.MASK_ON False",
        )
        return
    codes = sum(isinstance(a["segmentation"], dict) for _, a in objects)
    if split == "TRAIN" and codes and cfg.INPUT.MASK_FORMAT == "polygon":
        yield Change(
            "INPUT.MASK_FORMAT",
            "bitmask",
            f"{codes} of {len(objects)} masks of dataset {name!r} are run-length codes, which are "
            "no polygons",
        )


def _check_keypoints(
    cfg: CfgNode, split: str, name: str, objects: list[_Object]
) -> Iterator[Finding]:
    number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if len(MetadataCatalog.get(name).get("keypoint_names", ())) != number:
        return  # dataset_checks reports it
    lengths = [(file, _length(a.get("keypoints"))) for file, a in objects]
    without = [file for file, length in lengths if not length]
    if without:
        yield Refusal(
            "MODEL.KEYPOINT_ON",
            "True",
            f"{len(without)} of {len(objects)} objects of dataset {name!r} have no 'keypoints', "
            f"first in {without[0]}; give them {number} times 0, 0, 0 (not labeled), or set "
            "MODEL.KEYPOINT_ON False",
        )
    other = [pair for pair in lengths if pair[1] not in (0, _VALUES * number)]
    if other:
        file, length = other[0]
        yield Refusal(
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
            str(number),
            f"'keypoints' of {len(other)} of {len(objects)} objects of dataset {name!r} do not "
            f"have {_VALUES * number} values, first {length} in {file}; correct them",
        )
    sigmas = list(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    if split == "TEST" and (len(sigmas) or _COCO_KEYPOINTS) != number:
        yield Refusal(
            "TEST.KEYPOINT_OKS_SIGMAS",
            str(sigmas),
            f"dataset {name!r} has {number} keypoints, and the evaluation needs the standard "
            f"deviation of each; set it to a list of {number} numbers (COCO's are from 0.025 for "
            "eyes to 0.107 for hips)",
        )


def _check_labels(cfg: CfgNode, split: str, name: str, objects: list[_Object]) -> Iterator[Finding]:
    """Check that there are labeled keypoints, in pixels."""
    triples = [
        (file, np.reshape(a["keypoints"], (-1, _VALUES)))
        for file, a in objects
        if _length(a.get("keypoints"))
    ]
    if not triples:
        return  # _check_keypoints reports it
    labeled: Counter[str] = Counter()
    for file, points in triples:
        labeled[file] += int((points[:, 2] > 0).sum())
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if split == "TRAIN" else 1
    least = max(1, least)
    if max(labeled.values(), default=0) < least:
        yield Refusal(
            "MODEL.KEYPOINT_ON",
            "True",
            f"no image of dataset {name!r} has {_number(least)}; give labeled ones the "
            "visibility 1 or 2, or set MODEL.KEYPOINT_ON False",
        )
        return
    places = np.concatenate([points[points[:, 2] > 0, :2] for _, points in triples])
    relative = ((places >= 0) & (places <= _PIXEL)).all(axis=1)
    if relative.mean() >= _MOST:
        yield Refusal(
            "MODEL.KEYPOINT_ON",
            "True",
            f"{relative.sum()} of {len(places)} labeled keypoints of dataset {name!r} have x and y "
            "from 0 to 1, so they are relative to the image; multiply them by its width and height",
        )


def _number(keypoints: int) -> str:
    return "a labeled keypoint" if keypoints == 1 else f"{keypoints} labeled keypoints"


def _check_places(split: str, name: str, dicts: list[dict[str, Any]]) -> Iterator[Finding]:
    """Check that labeled keypoints are in their image: others are neither trained on nor found."""
    files, outside = [], []
    for sample in dicts:
        for annotation in sample.get("annotations", ()):
            if _length(annotation.get("keypoints")):
                points = np.reshape(annotation["keypoints"], (-1, _VALUES))
                places = points[points[:, 2] > 0, :2]
                far = (places < -1) | (places > (sample["width"] + 1, sample["height"] + 1))
                outside.append(far.any(axis=1))
                files.append(sample["file_name"])
    beyond = np.concatenate(outside) if outside else np.zeros(0, dtype=bool)
    if len(beyond) and beyond.mean() >= _MANY:
        first = next(file for file, far in zip(files, outside, strict=True) if far.any())
        yield Finding(
            f"DATASETS.{split}",
            repr(name),
            f"{beyond.sum()} of {len(beyond)} labeled keypoints are outside their image, first in "
            f"{first}; write x and y in pixels of the image, or the visibility 0",
        )


def _length(value: Any) -> int:
    return 0 if value is None else len(value)  # a NumPy array has no truth value
