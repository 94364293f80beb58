"""Small real files for the tests: class folders, a VOC year, a COCO set. Rectangles on noise."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

CLASSES = ("dark", "light")
SIDE = 64  # pixels

# A detector for these sets that takes a step in a tenth of a second, as words of a command line.
SMALL_DETECTOR = [
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "SOLVER.REFERENCE_WORLD_SIZE", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"),
    *("SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.0002"),
    *("TEST.PRECISE_BN.NUM_ITER", "1", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "4", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "4", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("MODEL.FPN.OUT_CHANNELS", "32"),
]
# The same of megabytes, where the weights are random: a slim ResNet-50.
SLIM_DETECTOR = [
    *SMALL_DETECTOR,
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
]
# Its backbone in a hundredth of the parameters, where nothing depends on which ResNet it is.
SLIM_BACKBONE = [
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
]


def _scene(rng: np.random.Generator, label: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A gray noisy image with one dark or light rectangle, and its box (x0, y0, x1, y1)."""
    pixels = rng.normal(128, 10, (SIDE, SIDE, 3))
    width, height = rng.integers(20, 40, 2)
    x, y = rng.integers(0, SIDE - width), rng.integers(0, SIDE - height)
    pixels[y : y + height, x : x + width] += (-80, 80)[label]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image, (int(x), int(y), int(x + width), int(y + height))


def make_class_folders(root: Path, per_class: int, seed: int = 0) -> Path:
    """root/{dark,light}/N.png"""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            _scene(rng, label)[0].save(root / name / f"{i}.png")
    return root


def make_voc(root: Path, images: int = 6, seed: int = 0) -> Path:
    """A VOC year with trainval and test splits of `images` each."""
    rng = np.random.default_rng(seed)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in ("trainval", "test"):
        names = [f"{split}{i:03d}" for i in range(images)]
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            image, box = _scene(rng, i % 2)
            image.save(root / "JPEGImages" / f"{name}.jpg")
            _write_xml(root / "Annotations" / f"{name}.xml", CLASSES[i % 2], box)
    return root


def _write_xml(path: Path, label: str, box: tuple[int, int, int, int]) -> None:
    annotation = ElementTree.Element("annotation")
    size = ElementTree.SubElement(annotation, "size")
    for tag, value in (("width", SIDE), ("height", SIDE), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    obj = ElementTree.SubElement(annotation, "object")
    for tag, value in (("name", label), ("pose", "Unspecified"), ("truncated", "0")):
        ElementTree.SubElement(obj, tag).text = value
    ElementTree.SubElement(obj, "difficult").text = "0"
    bndbox = ElementTree.SubElement(obj, "bndbox")
    # VOC counts pixels from 1 and includes the last one.
    for tag, value in zip(
        ("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]), strict=True
    ):
        ElementTree.SubElement(bndbox, tag).text = str(value)
    ElementTree.ElementTree(annotation).write(path)


def make_coco(root: Path, images: int = 6, seed: int = 0) -> Path:
    """root/{train,test}.json with polygons, and root/images."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    for split in ("train", "test"):
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        }
        for i in range(images):
            image, (x0, y0, x1, y1) = _scene(rng, i % 2)
            name = f"{split}{i}.jpg"
            image.save(root / "images" / name)
            content["images"].append({"id": i, "file_name": name, "width": SIDE, "height": SIDE})
            content["annotations"].append(
                {
                    "id": i + 1,
                    "image_id": i,
                    "category_id": i % 2 + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
        (root / f"{split}.json").write_text(json.dumps(content))
    return root
