"""Whether a run's datasets are known, their files there, and their classes those of the head.

DATASETS.TRAIN and TEST take Detectron2's registered names, and paths (custom_datasets.py).
"""

from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from moco_d2.errors import UserError, closest
from moco_d2.transfer.custom_datasets import FORMS, register_by_path
from moco_d2.transfer.densepose import refuse_densepose


def register_datasets(names: tuple[str, ...]) -> None:
    """Register those of `names` that are paths; check that the others are registered. Idempotent.

    Raises:
        UserError: unknown name (names the closest), or a path that is not such a dataset.
    """
    for name in names:
        if name in DatasetCatalog.list():
            continue
        if not register_by_path(name):
            raise UserError(
                f"dataset {name!r} is not registered; "
                + (closest(name, DatasetCatalog.list()) or f"write {FORMS}")
            )


def load_checked(name: str) -> list[dict[str, Any]]:
    """The dataset's dicts, every image file present.

    Raises:
        UserError: annotations or an image are missing; names the file.
    """
    try:
        dicts = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise UserError(
            f"dataset {name!r}: {error.filename} does not exist; set DETECTRON2_DATASETS to the "
            "folder that holds VOC2007/, VOC2012/, coco/, lvis/ or cityscapes/"
        ) from error
    except AssertionError as error:  # Detectron2's loaders: an inconsistent file, or one missing
        reason = " ".join(str(error).split())
        raise UserError(f"dataset {name!r} cannot be read, because of: {reason}") from error
    except ModuleNotFoundError as error:
        raise UserError(f"dataset {name!r} needs {error.name}: pip install {error.name}") from error
    missing = [d["file_name"] for d in dicts if not Path(d["file_name"]).is_file()]
    if missing:
        raise UserError(
            f"dataset {name!r}: {len(missing)} of {len(dicts)} annotated images are missing, "
            f"first {missing[0]}; put them there or remove their annotations"
        )
    return dicts


def check_datasets(cfg: Any) -> None:
    """Refuse a config whose datasets are not there or have other classes than its head.

    Raises:
        UserError: as in register_datasets and load_checked, or the number of classes or keypoints
            is not the head's, or two datasets name other classes; or a dense pose run.
    """
    refuse_densepose(cfg)
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            f"DATASETS.TEST names {len(cfg.DATASETS.TEST)} sets; a run is recorded with the "
            "results of one"
        )
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    register_datasets(names)
    for name in names:
        load_checked(name)
        _check_classes(cfg, name, names[0])


def _check_classes(cfg: Any, name: str, first: str) -> None:
    """Refuse a dataset whose classes are not those of the head, or of the `first` dataset."""
    semantic = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    kind = "stuff_classes" if semantic else "thing_classes"
    head = "SEM_SEG_HEAD" if semantic else "ROI_HEADS"
    classes = MetadataCatalog.get(name).get(kind, [])
    expected = cfg.MODEL[head].NUM_CLASSES
    if classes and len(classes) != expected:
        raise UserError(
            f"dataset {name!r} has {len(classes)} classes and the head {expected}: "
            f"set MODEL.{head}.NUM_CLASSES {len(classes)}"
        )
    others = MetadataCatalog.get(first).get(kind, [])
    for number, (one, other) in enumerate(zip(classes, others, strict=False)):
        if one != other:
            raise UserError(
                f"class {number} of dataset {name!r} is {one!r}, and of {first!r} {other!r}: "
                "their files must name the same classes in the same order"
            )
    if cfg.MODEL.KEYPOINT_ON:
        keypoints = MetadataCatalog.get(name).get("keypoint_names", [])
        if len(keypoints) != cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
            raise UserError(
                f"dataset {name!r} has {len(keypoints)} keypoints and the head "
                f"{cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS}: set "
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {len(keypoints)}"
            )
