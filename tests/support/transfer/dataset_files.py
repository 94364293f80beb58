"""Small datasets in the layouts and under the names of the real ones: what DETECTRON2_DATASETS
points to.
"""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from detectron2.data.datasets.builtin_meta import (
    COCO_CATEGORIES,
    COCO_PERSON_KEYPOINT_NAMES,
)
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as LVIS_V0_5
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as LVIS_V1
from PIL import Image

IMAGES = 2  # of each split
WIDTH, HEIGHT = 96, 64  # pixels
BOX = (20, 12, 70, 52)  # x0, y0, x1, y1 of the one object in each image
CAR_LABEL_ID, CAR_TRAIN_ID, IGNORED = 26, 13, 255  # of Cityscapes


def make_datasets(root: Path) -> Path:
    """VOC2007, VOC2012, coco, lvis and cityscapes below `root`."""
    for year, splits in (("VOC2007", ("trainval", "test")), ("VOC2012", ("trainval",))):
        make_voc_year(root / year, splits)
    make_coco(root / "coco")
    make_lvis(root / "lvis")
    make_cityscapes(root / "cityscapes")
    return root


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(90, 160, (HEIGHT, WIDTH, 3), np.uint8)
    x0, y0, x1, y1 = BOX
    pixels[y0:y1, x0:x1] = 230
    Image.fromarray(pixels).save(path)


def make_voc_year(root: Path, splits: tuple[str, ...]) -> None:
    """One year of the VOC devkit: detection splits, and VOC's segmentation with train_aug."""
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split in (*splits, "train_aug", "val"):
        names = [f"2007_{split}_{i}" for i in range(IMAGES)]
        task = "Main" if split in splits else "Segmentation"
        (root / "ImageSets" / task / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            _picture(root / "JPEGImages" / f"{name}.jpg")
            if task == "Main":
                _voc_xml(root / "Annotations" / f"{name}.xml")
                continue
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 7  # car
            labels[:, -1] = IGNORED
            _voc_labels(root, name, labels)


def _voc_labels(root: Path, name: str, labels: np.ndarray) -> None:
    """VOC's own label files have a palette of its colors; those with SBD's are gray."""
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        (root / folder).mkdir(exist_ok=True)
        image = Image.fromarray(labels)
        if folder == "SegmentationClass":
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        image.save(root / folder / f"{name}.png")


def _voc_xml(path: Path) -> None:
    annotation = ElementTree.Element("annotation")
    size = ElementTree.SubElement(annotation, "size")
    for tag, value in (("width", WIDTH), ("height", HEIGHT), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    obj = ElementTree.SubElement(annotation, "object")
    for tag, text in (("name", "car"), ("difficult", "0")):
        ElementTree.SubElement(obj, tag).text = text
    box = ElementTree.SubElement(obj, "bndbox")
    for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True):
        ElementTree.SubElement(box, tag).text = str(value)
    ElementTree.ElementTree(annotation).write(path)


def _coco_object(number: int, category_id: int) -> dict:
    x0, y0, x1, y1 = BOX
    return {
        "id": number + 1,
        "image_id": number,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
    }


def _coco_images(split: str) -> list[dict]:
    names = [f"{i:012d}.jpg" for i in range(IMAGES)]
    return [
        {
            "id": i,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/{split}/{name}",
            "width": WIDTH,
            "height": HEIGHT,
        }
        for i, name in enumerate(names)
    ]


def make_coco(root: Path) -> None:
    """COCO 2017: instances and person keypoints."""
    (root / "annotations").mkdir(parents=True)
    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    instances = [{"id": c["id"], "name": c["name"], "supercategory": "x"} for c in things]
    person = {"keypoints": list(COCO_PERSON_KEYPOINT_NAMES), "skeleton": [], **instances[0]}
    spread = np.linspace(BOX[:2], BOX[2:], len(COCO_PERSON_KEYPOINT_NAMES)).round()
    keypoints = [int(v) for x, y in spread for v in (x, y, 2)]  # 2: labeled and visible
    for split in ("train2017", "val2017"):
        images = _coco_images(split)
        for image in images:
            _picture(root / split / image["file_name"])
        cars = [_coco_object(i, 3) for i in range(IMAGES)]
        people = [
            _coco_object(i, 1) | {"keypoints": keypoints, "num_keypoints": len(spread)}
            for i in range(IMAGES)
        ]
        for kind, categories, objects in (
            ("instances", instances, cars),
            ("person_keypoints", [person], people),
        ):
            content = {"images": images, "annotations": objects, "categories": categories}
            file = root / "annotations" / f"{kind}_{split}.json"
            file.write_text(json.dumps({"info": {}, "licenses": [], **content}))


def make_lvis(root: Path) -> None:
    """LVIS v0.5 and v1 on the images of COCO 2017."""
    root.mkdir()
    for version, categories in (("v0.5", LVIS_V0_5), ("v1", LVIS_V1)):
        for split in ("train", "val"):
            extra = {"not_exhaustive_category_ids": [], "neg_category_ids": [2]}
            content = {
                "info": {},
                "licenses": [],
                "images": [image | extra for image in _coco_images(f"{split}2017")],
                "annotations": [_coco_object(i, 1) for i in range(IMAGES)],
                "categories": categories,
            }
            (root / f"lvis_{version}_{split}.json").write_text(json.dumps(content))


def make_cityscapes(root: Path) -> None:
    """Fine annotations: polygons, label, train and instance ids."""
    x0, y0, x1, y1 = BOX
    car = {"label": "car", "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}
    polygons = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": [car]}
    for split in ("train", "val"):
        for i in range(IMAGES):
            stem = f"aachen_{i:06d}_000019"
            _picture(root / "leftImg8bit" / split / "aachen" / f"{stem}_leftImg8bit.png")
            folder = root / "gtFine" / split / "aachen"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}_gtFine_polygons.json").write_text(json.dumps(polygons))
            for kind, background, value, dtype in (
                ("labelIds", 0, CAR_LABEL_ID, np.uint8),
                ("labelTrainIds", 0, CAR_TRAIN_ID, np.uint8),
                ("instanceIds", 0, CAR_LABEL_ID * 1000, np.uint16),
            ):
                ids = np.full((HEIGHT, WIDTH), background, dtype)
                ids[y0:y1, x0:x1] = value
                Image.fromarray(ids).save(folder / f"{stem}_gtFine_{kind}.png")
