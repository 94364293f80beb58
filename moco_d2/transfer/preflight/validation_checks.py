"""Checks of the datasets of the validation loss."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

from moco_d2.errors import UserError
from moco_d2.transfer.data.registered import load_dicts, missing_files, register_datasets
from moco_d2.transfer.evaluation.known_classes import (
    dataset_classes,
    first_difference,
    head_classes,
)
from moco_d2.transfer.preflight.findings import Change, Finding, Refusal
from moco_d2.transfer.preflight.image_headers import check_images
from moco_d2.transfer.preflight.mask_and_keypoint_checks import check_masks_and_keypoints
from moco_d2.transfer.validation_loss import validation_sets


def check_validation_loss(cfg: CfgNode) -> Iterator[Finding]:
    """Yield a Refusal for each set of MOCO.VAL_LOSS that is missing, or on whose images the
    detector's losses cannot be computed.
    """
    if not cfg.MOCO.VAL_LOSS:
        return
    names = validation_sets(cfg)
    if not names:
        yield Refusal(
            "MOCO.VAL_LOSS",
            str(cfg.MOCO.VAL_LOSS),
            "there is no dataset for it; name one in MOCO.VAL_LOSS_DATA or DATASETS.TEST",
        )
    for name in names:
        try:
            register_datasets((name,))
            dicts = load_dicts(name)
            check_images(name, dicts)
        except UserError as error:
            yield Refusal("MOCO.VAL_LOSS_DATA", str(names), str(error))
            continue
        if absent := missing_files(dicts):
            yield Refusal(
                "MOCO.VAL_LOSS_DATA",
                str(names),
                f"dataset {name!r}: {min(absent)} is missing; add the file or remove its "
                "annotations",
            )
        yield from _check_fit(cfg, name, names, dicts)


def _check_fit(
    cfg: CfgNode, name: str, names: tuple[str, ...], dicts: list[dict[str, Any]]
) -> Iterator[Finding]:
    for finding in check_masks_and_keypoints(cfg, "TRAIN", name, dicts):
        if isinstance(finding, Change):  # of INPUT.MASK_FORMAT
            yield finding
        else:
            yield dataclasses.replace(finding, key="MOCO.VAL_LOSS_DATA", value=str(names))
    classes, (head, key) = dataset_classes(cfg, name), head_classes(cfg)
    if len(classes) > head:
        yield Refusal(
            "MOCO.VAL_LOSS_DATA",
            str(names),
            f"{name!r} has {len(classes)} classes, but {key} {head}",
        )
    try:
        register_datasets(cfg.DATASETS.TRAIN[:1])
    except UserError:
        return  # which the check of the training set reports
    for trained in cfg.DATASETS.TRAIN[:1]:
        different = first_difference(classes, dataset_classes(cfg, trained))
        if different:
            number, one, other = different
            yield Refusal(
                "MOCO.VAL_LOSS_DATA",
                str(names),
                f"class {number} is {one!a} in {name!r} and {other!a} in {trained!r}; let their "
                "files name the same classes in the same order",
            )
