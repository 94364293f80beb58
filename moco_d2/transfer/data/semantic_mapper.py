"""The mapper from dataset dicts of semantic segmentation to training images with labels."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image
from detectron2.utils.file_io import PathManager
from PIL import Image

from moco_d2.errors import UserError
from moco_d2.pixel_values import ValueRange, reading
from moco_d2.transfer.data.scale_augmentation import (
    build_large_scale_jitter,
    build_scale_augmentations,
)
from moco_d2.untrusted_images import check_regular, is_unreadable, open_image


class SemanticMapper:
    """Reads an image and its labels, and augments both.

    Detectron2's DatasetMapper reads labels as gray values. VOC's label files have a palette, so
    DatasetMapper would train on the brightness of the palette's colors.
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
            augmentations: Augmentations in the order in which they are applied.
            image_format: "RGB" or "BGR".
            num_classes: Number of classes; labels are 0 to num_classes - 1.
            ignore_value: Label of pixels that the loss ignores.
        """
        self._augmentations = T.AugmentationList(list(augmentations))
        self._image_format = image_format
        self._num_classes = num_classes
        self._ignore_value = ignore_value

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Returns:
            The dict with "image", (3, H, W) uint8, and "sem_seg", (H, W) int64, without
            "sem_seg_file_name".

        Raises:
            SizeMismatchError: If the labels have another size than the image.
            UserError: If the labels cannot be read (see read_labels), or one is not a class.
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
        check_labels(labels, file, self._num_classes, self._ignore_value)
        augmented = T.AugInput(image, sem_seg=labels)
        self._augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        sample["image"] = torch.as_tensor(pixels)
        sample["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype(np.int64))
        return sample


def check_labels(
    labels: np.ndarray, file: str, num_classes: int, ignore_value: int | None
) -> np.ndarray:
    """Return the sorted values that occur in `labels`, without `ignore_value`.

    Raises:
        UserError: If one is not a class. On a GPU, it would fail an assertion in a kernel, without
            the name of the file; SemSegEvaluator would count it as another class.
    """
    present = np.flatnonzero(np.bincount(labels.ravel()))
    present = present[present != ignore_value]
    if present.size and present[-1] >= num_classes:
        unknown = present[present >= num_classes][0]
        ignored = "" if ignore_value is None else f", or {ignore_value} for pixels to ignore"
        raise UserError(
            f"{file} has label {unknown}, but there are {num_classes} classes: labels must be 0 to "
            f"{num_classes - 1}{ignored}"
        )
    return present


def read_labels(file: str) -> np.ndarray:
    """Return the labels (H, W) uint8 of a gray image file, or the indices of one with a palette.

    Raises:
        UserError: If the file has color channels or another number of bits, or cannot be read.
    """
    with _opened(file) as image:
        return np.array(image)


def check_label_header(file: str) -> None:
    """Check what the header of a label file shows.

    Raises:
        UserError: As in read_labels.
    """
    with _opened(file):
        pass


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Image.Image]:
    try:
        check_regular(file)
        with PathManager.open(file, "rb") as f, open_image(f) as image:
            if image.mode not in ("L", "P"):
                raise UserError(
                    f"{file} is an image of mode {image.mode}, but labels have one byte per pixel, "
                    "gray or with a palette: convert its colors to class numbers"
                )
            yield image
    except Exception as error:
        raise_if_labels_unreadable(error, file)
        raise


def raise_if_labels_unreadable(error: Exception, file: str) -> None:
    """Raise a UserError that names the label file if `error` means that it cannot be read."""
    if is_unreadable(error):
        reason = " ".join(str(error).split())
        raise UserError(f"labels {file} cannot be read ({reason}); replace the file") from error


class RangedMapper:
    """A mapper whose images are read with MOCO.INPUT.RANGE."""

    def __init__(self, mapper: Callable[[dict[str, Any]], dict[str, Any]], value_range: ValueRange):
        self.mapper, self.value_range = mapper, tuple(value_range)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        with reading(self.value_range):
            return self.mapper(sample)


def build_mapper(cfg: CfgNode) -> RangedMapper:
    """Return the mapper of `_build_mapper`, which reads images with MOCO.INPUT.RANGE.

    Raises:
        UserError: As in _build_mapper.
    """
    return RangedMapper(_build_mapper(cfg), cfg.MOCO.INPUT.RANGE)


def _build_mapper(cfg: CfgNode) -> DatasetMapper | SemanticMapper:
    """Return the mapper from dataset dicts to training images: SemanticMapper for a
    SemanticSegmentor (with build_scale_augmentations if MOCO.RANDOM_SCALE is set), otherwise
    Detectron2's (with build_large_scale_jitter).

    Raises:
        UserError: As in build_scale_augmentations and build_large_scale_jitter.
    """
    if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor":
        if not cfg.MOCO.RANDOM_SCALE:
            return DatasetMapper(cfg, is_train=True)
        jitter = build_large_scale_jitter(cfg)
        settings = DatasetMapper.from_config(cfg, is_train=True)
        return DatasetMapper(**{**settings, "augmentations": jitter})
    return SemanticMapper(
        build_scale_augmentations(cfg)
        if cfg.MOCO.RANDOM_SCALE
        else DatasetMapper.from_config(cfg, is_train=True)["augmentations"],
        image_format=cfg.INPUT.FORMAT,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
