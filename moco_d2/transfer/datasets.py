"""Detection datasets by path, without code, and whether their files are there.

DATASETS.TRAIN and TEST take Detectron2's registered names, and

* ``voc:FOLDER:SPLIT``           a VOC year: FOLDER/{JPEGImages,Annotations,ImageSets}
* ``coco:ANNOTATIONS.json:IMAGES``  a COCO instances file and its image folder
"""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_voc_instances

from moco_d2.errors import UserError, closest

VOC_07_METRIC_YEAR = 2007  # 11-point AP, as the paper's VOC numbers


def register_datasets(names: tuple[str, ...]) -> None:
    """Register those of `names` that are paths; check that the others are registered. Idempotent.

    Raises:
        UserError: unknown name (names the closest), or a path that is not such a dataset.
    """
    for name in names:
        if name in DatasetCatalog.list():
            continue
        kind, _, rest = name.partition(":")
        if kind == "voc" and rest.count(":"):
            _register_voc(name, *rest.rsplit(":", 1))
        elif kind == "coco" and rest.count(":"):
            _register_coco(name, *rest.split(":", 1))
        else:
            raise UserError(
                f"dataset {name!r} is not registered; "
                + (
                    closest(name, DatasetCatalog.list())
                    or "write voc:FOLDER:SPLIT or coco:ANNOTATIONS.json:IMAGES"
                )
            )


def _register_voc(name: str, folder: str, split: str) -> None:
    root = Path(folder).expanduser()
    split_file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not split_file.is_file():
        raise UserError(
            f"dataset {name!r}: {split_file} does not exist; {folder} must be a VOC year with "
            "JPEGImages, "
            f"Annotations and ImageSets/Main/{split}.txt"
        )
    classes = _voc_class_names(root)
    DatasetCatalog.register(name, lambda: load_voc_instances(str(root), split, classes))
    MetadataCatalog.get(name).set(
        thing_classes=classes,
        dirname=str(root),
        split=split,
        year=VOC_07_METRIC_YEAR,
        evaluator_type="pascal_voc",
    )


def _voc_class_names(root: Path) -> list[str]:
    """Sorted names of all annotated objects of a VOC year, over all splits: train and test agree on
    the order.
    """
    names = set()
    for file in (root / "Annotations").glob("*.xml"):
        names |= {obj.findtext("name") for obj in ElementTree.parse(file).iter("object")}
    if not names:
        raise UserError(f"no annotated object in {root / 'Annotations'}/*.xml")
    return sorted(names)


def _register_coco(name: str, annotations: str, images: str) -> None:
    file = Path(annotations).expanduser()
    if not file.is_file():
        raise UserError(f"dataset {name!r}: annotation file {annotations} does not exist")
    try:
        categories = json.loads(file.read_text())["categories"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(
            f"dataset {name!r}: {annotations} is not a COCO instances file "
            f"({type(error).__name__}: {error})"
        ) from error
    folder = str(Path(images).expanduser())
    DatasetCatalog.register(name, lambda: load_coco_json(str(file), folder, name))
    MetadataCatalog.get(name).set(
        thing_classes=[c["name"] for c in sorted(categories, key=lambda c: c["id"])],
        json_file=str(file),
        image_root=folder,
        evaluator_type="coco",
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
            "folder that holds "
            "VOC2007/, VOC2012/ or coco/"
        ) from error
    missing = [d["file_name"] for d in dicts if not Path(d["file_name"]).is_file()]
    if missing:
        raise UserError(
            f"dataset {name!r}: {len(missing)} of {len(dicts)} annotated images are missing, "
            f"first {missing[0]}; "
            "put them there or remove their annotations"
        )
    return dicts


def check_datasets(cfg: Any) -> None:
    """Refuse a config whose datasets are not there or have other classes than its head.

    Raises:
        UserError: as in register_datasets and load_checked, or MODEL.ROI_HEADS.NUM_CLASSES differs.
    """
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            f"DATASETS.TEST names {len(cfg.DATASETS.TEST)} sets; a run is recorded with the "
            "results of one"
        )
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        load_checked(name)
        classes = MetadataCatalog.get(name).get("thing_classes", [])
        if classes and len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UserError(
                f"dataset {name!r} has {len(classes)} classes and the head "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: "
                f"set MODEL.ROI_HEADS.NUM_CLASSES {len(classes)}"
            )
