"""Semantic segmentation of PASCAL VOC 2012, with train_aug: VOC's training images and those that
SBD annotates, 10,582 in all (paper, appendix A.5).

These files are read below the folder DETECTRON2_DATASETS:

    VOC2012/JPEGImages/*.jpg
    VOC2012/ImageSets/Segmentation/{train,val,trainval}.txt     as VOC distributes them
    VOC2012/SegmentationClass/*.png
    VOC2012/ImageSets/Segmentation/{train_aug,trainaug}.txt     either name
    VOC2012/SegmentationClassAug/*.png                          labels of all images of train_aug

Label files hold class numbers: 0 is the background, and 255 marks pixels to ignore.
"""

import functools
import os
import re
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from moco_d2.errors import UserError
from moco_d2.transfer.data.voc_annotations import without_suffix

CLASSES = ("background", *CLASS_NAMES)
IGNORED = 255  # object boundaries and difficult objects
SPLITS = ("train", "val", "trainval", "train_aug")
_FOLDER = "VOC2012"
_AUGMENTED = "train_aug"
_AUGMENTED_LISTS = ("train_aug", "trainaug")  # both are in use


def register_voc_segmentation(root: str | Path | None = None) -> None:
    """Register ``voc_2012_sem_seg_{train,val,trainval,train_aug}`` with Detectron2. Splits that are
    already registered are not changed.

    Args:
        root: The folder that holds VOC2012 (default: DETECTRON2_DATASETS, as in Detectron2).
    """
    if root is None:
        root = os.getenv("DETECTRON2_DATASETS", "datasets")
    folder = Path(root).expanduser() / _FOLDER
    for split in SPLITS:
        name = f"voc_2012_sem_seg_{split}"
        if name in DatasetCatalog.list():
            continue
        DatasetCatalog.register(name, functools.partial(load_voc_segmentation, folder, split))
        MetadataCatalog.get(name).set(
            stuff_classes=list(CLASSES),
            ignore_label=IGNORED,
            evaluator_type="sem_seg",
            dirname=str(folder),
            split=split,
        )


def load_voc_segmentation(folder: str | Path, split: str) -> list[dict[str, Any]]:
    """Return ``{"file_name", "sem_seg_file_name", "image_id"}`` for each image of a split.

    Args:
        folder: The folder VOC2012.
        split: One of SPLITS.

    Raises:
        UserError: If the list of the split or a label file is missing. The message names the file.
    """
    folder = Path(folder)
    labels = folder / ("SegmentationClassAug" if split == _AUGMENTED else "SegmentationClass")
    lines = _split_list(folder, split).read_text(encoding="utf-8-sig").splitlines()
    names = [_image_name(line) for line in lines if line.strip()]
    dicts = [
        {
            "file_name": str(folder / "JPEGImages" / f"{name}.jpg"),
            "sem_seg_file_name": str(labels / f"{name}.png"),
            "image_id": name,
        }
        for name in names
    ]
    missing = [d["sem_seg_file_name"] for d in dicts if not Path(d["sem_seg_file_name"]).is_file()]
    if missing:
        raise UserError(
            f"VOC segmentation {split}: {len(missing)} of {len(dicts)} label files are missing, "
            f"first {missing[0]}; add them{_advice(split)}"
        )
    return dicts


def _image_name(line: str) -> str:
    """Return the name of a line, which may have spaces and dots. Some lists of train_aug have
    /JPEGImages/NAME.jpg and /SegmentationClassAug/NAME.png.
    """
    return without_suffix(re.split(r"\s+(?=\S*/)", line.strip())[0].rpartition("/")[2])


def _split_list(folder: Path, split: str) -> Path:
    """Return the file that lists the image names of a split."""
    lists = folder / "ImageSets" / "Segmentation"
    names = _AUGMENTED_LISTS if split == _AUGMENTED else (split,)
    files = [lists / f"{name}.txt" for name in names]
    for file in files:
        if file.is_file():
            return file
    raise UserError(
        f"VOC segmentation {split}: there is no {' or '.join(map(str, files))}; set "
        f"DETECTRON2_DATASETS to the folder that holds {_FOLDER}/{_advice(split)}"
    )


def _advice(split: str) -> str:
    if split != _AUGMENTED:
        return ""
    return (
        ": train_aug is not part of VOC; its list and labels (SegmentationClassAug) are made from "
        "VOC's train and SBD"
    )


register_voc_segmentation()
