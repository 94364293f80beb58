"""Dataset dicts of semantic segmentation -> training images with their labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image
from detectron2.utils.file_io import PathManager

from moco_d2.errors import UserError
from moco_d2.transfer.data.scale_augmentation import build_scale_augmentations
from moco_d2.untrusted_images import check_regular, is_unreadable, open_image


class SemanticMapper:
    """Reads an image and its labels, and augments both.

    Detectron2's DatasetMapper reads labels as gray values. VOC's label files have a palette, so
    that it would train on the brightness of the colors in which the classes are displayed.
    """

    def __init__(
        self,
        augmentations: Sequence[T.Augmentation],
        *,
        image_format: str,
        num_classes: int,
        ignore_value: int,
    ):
        """
        Args:
            augmentations: applied in order.
            image_format: "RGB" or "BGR".
            num_classes: labels are 0 to num_classes - 1, or
            ignore_value: of pixels that are not trained on.
        """
        self._augmentations = T.AugmentationList(list(augmentations))
        self._image_format = image_format
        self._num_classes = num_classes
        self._ignore_value = ignore_value

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Returns:
            the dict with "image", (3, H, W) uint8, and "sem_seg", (H, W) int64, without
            "sem_seg_file_name".

        Raises:
            SizeMismatchError: the labels are not of the image's size.
            UserError: as in read_labels, or a label is that of no class.
        """
        sample = dict(dataset_dict)
        image = read_image(sample["file_name"], format=self._image_format)
        check_image_size(sample, image)
        file = sample.pop("sem_seg_file_name")
        labels = read_labels(file)
        if labels.shape != image.shape[:2]:
            raise SizeMismatchError(
                f"its labels {file} have {labels.shape} rows and columns, the image "
                f"{image.shape[:2]}"
            )
        self._check_classes(labels, file)
        augmented = T.AugInput(image, sem_seg=labels)
        self._augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        sample["image"] = torch.as_tensor(pixels)
        sample["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype(np.int64))
        return sample

    def _check_classes(self, labels: np.ndarray, file: str) -> None:
        # On a GPU such a label would be an assertion in a kernel.
        counts = np.bincount(labels.ravel())
        present = np.flatnonzero(counts)
        unknown = present[(present >= self._num_classes) & (present != self._ignore_value)]
        if unknown.size:
            raise UserError(
                f"{file} has label {unknown[0]}, and the head {self._num_classes} classes: labels "
                f"must be 0 to {self._num_classes - 1}, or {self._ignore_value} for pixels that "
                "are ignored"
            )


def read_labels(file: str) -> np.ndarray:
    """The labels (H, W) uint8 of an image file, gray or with a palette, whose colors do not
    matter.

    Raises:
        UserError: the file has colors, and no labels; or it cannot be read.
    """
    try:
        check_regular(file)
        with PathManager.open(file, "rb") as f, open_image(f) as image:
            if image.mode not in ("L", "P"):
                raise UserError(
                    f"{file} is an image of mode {image.mode}, and labels are one byte a pixel, "
                    "gray or with a palette: convert its colors to class numbers"
                )
            return np.array(image)
    except Exception as error:
        raise_if_labels_unreadable(error, file)
        raise


def raise_if_labels_unreadable(error: Exception, file: str) -> None:
    """Raise a UserError that names a label file if `error` came of reading it."""
    if is_unreadable(error):
        reason = " ".join(str(error).split())
        raise UserError(f"labels {file} cannot be read ({reason}); replace the file") from error


def build_mapper(cfg: CfgNode) -> DatasetMapper | SemanticMapper:
    """What makes training images of dataset dicts: SemanticMapper for a SemanticSegmentor, with
    build_scale_augmentations if MOCO.RANDOM_SCALE is set; else Detectron2's.

    Raises:
        UserError: as in build_scale_augmentations, or MOCO.RANDOM_SCALE for a detector.
    """
    if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor":
        if cfg.MOCO.RANDOM_SCALE:
            raise UserError(
                f"MOCO.RANDOM_SCALE is for a SemanticSegmentor, and MODEL.META_ARCHITECTURE is "
                f"{cfg.MODEL.META_ARCHITECTURE}: set INPUT.MIN_SIZE_TRAIN, and MOCO.RANDOM_SCALE ()"
            )
        return DatasetMapper(cfg, is_train=True)
    return SemanticMapper(
        build_scale_augmentations(cfg)
        if cfg.MOCO.RANDOM_SCALE
        else DatasetMapper.from_config(cfg, is_train=True)["augmentations"],
        image_format=cfg.INPUT.FORMAT,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
