"""The demo's images: textured shapes on a plain noisy background, as files in the usual layouts.

The demo has to show a benefit of MoCo within minutes on a laptop. A look is a shape with a texture.
Everything else varies: size, location, rotation, the texture's period and phase, contrast, and the
gray level of the background. The features of a random network mix these properties with the look.
MoCo's augmentations change most of these properties, so its features learn to ignore them. There is
no color, and backgrounds are similar: with wider gray levels (95 to 160), MoCo learned little but
the background.

The labels of pretraining are the shapes, and the classes to detect are the textures: another kind,
as the classes of ImageNet and of a detection set are.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_SHAPES = ("disc", "square", "star")
_TEXTURES = {"striped": "stripes", "checked": "checks", "ringed": "rings"}
# Name of a look -> (shape, texture), sorted by name like class folders.
LOOKS = dict(
    sorted(
        (f"{a}_{shape}", (shape, texture)) for a, texture in _TEXTURES.items() for shape in _SHAPES
    )
)
LOOK_NAMES = tuple(LOOKS)
#: The classes to detect. The labels of the supervised pretraining, the shapes, tell no two apart.
CLASSES = tuple(sorted(_TEXTURES))
#: The kind of labels of a list of pretraining images -> look -> its label.
LABELS = {
    "textures": {name: name.split("_")[0] for name in LOOK_NAMES},
    "shapes": {name: shape for name, (shape, _) in LOOKS.items()},
}

PRETRAIN_SIDE = 40  # side of a one-object image, pixels
_JPEG_QUALITY = 92
_OBJECT_SIDE = (28.0, 50.0)  # range of an object's diameter in a detection scene, pixels
_OBJECT_FRACTION = (0.65, 1.0)  # the same in a one-object image, as fraction of its side
_BACKGROUND = (112.0, 143.0)  # range of the gray level
_CONTRAST = (45.0, 65.0)  # range of the difference between texture and background, in gray levels
_PERIOD = (0.17, 0.24)  # range of the texture's period, as fraction of the object's diameter
_NOISE = 6.0  # standard deviation of the noise of a pixel

_TEMPLATE = 192  # side of a shape's template, pixels
_RADIUS = 92  # radius of a shape in its template, pixels


@dataclass(frozen=True)
class Object:
    """An object of a scene.

    Attributes:
        name: The look of the object.
        polygon: The outline, (points, 2), x and y in pixels from the top left corner of the image.
    """

    name: str
    polygon: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Return x0, y0, x1, y1 around the outline."""
        return (*self.polygon.min(axis=0).tolist(), *self.polygon.max(axis=0).tolist())

    @property
    def texture(self) -> str:
        return LABELS["textures"][self.name]

    @property
    def area(self) -> float:
        return float(cv2.contourArea(self.polygon.astype(np.float32)))


def draw_object_image(
    name: str, rng: np.random.Generator, side: int = PRETRAIN_SIDE
) -> tuple[np.ndarray, Object]:
    """Return a square image (side, side, 3) of uint8 with one large object of look `name`."""
    diameter = rng.uniform(*_OBJECT_FRACTION) * side
    center = rng.uniform(diameter / 2, side - diameter / 2, 2)
    canvas, (drawn,) = _render(side, side, [(name, diameter, center)], rng)
    return canvas, drawn


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, list[Object]]:
    """Return a detection scene (H, W, 3) of uint8, with W from 88 to 104, H from 72 to 88, and one
    or two objects that do not touch.
    """
    width, height = int(rng.integers(88, 105)), int(rng.integers(72, 89))
    wanted = int(rng.integers(1, 3))
    placed: list[tuple[str, float, np.ndarray]] = []
    for _ in range(20 * wanted):
        diameter = rng.uniform(*_OBJECT_SIDE)
        margin = diameter / 2 + 1
        center = rng.uniform((margin, margin), (width - margin, height - margin))
        if all(math.dist(center, c) > (diameter + d) / 2 for _, d, c in placed):
            placed.append((LOOK_NAMES[rng.integers(len(LOOK_NAMES))], diameter, center))
        if len(placed) == wanted:
            break
    return _render(width, height, placed, rng)


def write_dataset(
    root: Path,
    *,
    seed: int,
    pretrain_images: int,
    knn_test_images: int,
    detection_train: int,
    detection_test: int,
) -> None:
    """Write the demo's images and annotations below `root`.

    ``pretrain/`` and ``pretrain_test/`` are class folders of one-object images, one per look.
    ``pretrain_textures.txt`` and ``pretrain_shapes.txt`` list the images of ``pretrain/`` with a
    label. ``VOC2007/`` is a folder of the Pascal VOC devkit, and ``coco/`` holds
    ``images/{train,test}`` and ``annotations/{train,test}.json``. All sets are drawn independently.
    The same arguments give the same bytes, and a set does not depend on the sizes of the others.

    Args:
        root: The output folder; existing files are overwritten.
        seed: Seed of all random choices.
        pretrain_images, knn_test_images: Numbers of one-object images, spread evenly over classes.
        detection_train, detection_test: Numbers of scenes in each of the two detection sets.
    """
    streams = [np.random.default_rng((seed, part)) for part in range(6)]
    _write_class_folders(root / "pretrain", pretrain_images, streams[0])
    _write_lists(root, pretrain_images)
    _write_class_folders(root / "pretrain_test", knn_test_images, streams[1])
    voc = root / "VOC2007"
    _write_voc_split(voc, "trainval", range(1, detection_train + 1), streams[2])
    last = detection_train + detection_test
    _write_voc_split(voc, "test", range(detection_train + 1, last + 1), streams[3])
    _write_coco_split(root / "coco", "train", detection_train, streams[4])
    _write_coco_split(root / "coco", "test", detection_test, streams[5])


def _write_class_folders(folder: Path, count: int, rng: np.random.Generator) -> None:
    for name in LOOK_NAMES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, file in _files(count):
        _write_jpeg(folder / name / file, draw_object_image(name, rng)[0])


def _write_lists(root: Path, count: int) -> None:
    for kind, labels in LABELS.items():
        lines = (f"pretrain/{name}/{file} {labels[name]}\n" for name, file in _files(count))
        (root / f"pretrain_{kind}.txt").write_text("".join(lines))


def _files(count: int) -> Iterator[tuple[str, str]]:
    """Yield look and file name of each one-object image."""
    for index in range(count):
        yield LOOK_NAMES[index % len(LOOK_NAMES)], f"{index:05d}.jpg"


def _write_voc_split(root: Path, split: str, numbers: range, rng: np.random.Generator) -> None:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}" for number in numbers]  # as in VOC2007: one numbering for all splits
    for name in names:
        image, objects = draw_scene(rng)
        _write_jpeg(root / "JPEGImages" / f"{name}.jpg", image)
        annotation = _voc_annotation(f"{name}.jpg", image.shape, objects)
        (root / "Annotations" / f"{name}.xml").write_text(annotation)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))


def _voc_annotation(filename: str, shape: tuple[int, ...], objects: list[Object]) -> str:
    height, width, depth = shape
    size = _tags(width=width, height=height, depth=depth)
    lines = ["<annotation>", f"\t<folder>VOC2007</folder><filename>{filename}</filename>"]
    lines.append(f"\t<size>{size}</size><segmented>0</segmented>")
    for item in objects:
        x0, y0, x1, y1 = item.box
        # VOC counts pixels from 1 and includes the last. The box holds every pixel that is touched.
        corners = _tags(
            xmin=math.floor(x0) + 1, ymin=math.floor(y0) + 1, xmax=math.ceil(x1), ymax=math.ceil(y1)
        )
        facts = _tags(name=item.texture, pose="Unspecified", truncated=0, difficult=0)
        lines.append(f"\t<object>{facts}<bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def _tags(**values: object) -> str:
    return "".join(f"<{name}>{value}</{name}>" for name, value in values.items())


def _write_coco_split(root: Path, split: str, count: int, rng: np.random.Generator) -> None:
    (root / "images" / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        image, objects = draw_scene(rng)
        filename = f"{image_id:012d}.jpg"
        _write_jpeg(root / "images" / split / filename, image)
        height, width = image.shape[:2]
        images.append({"id": image_id, "file_name": filename, "height": height, "width": width})
        for item in objects:
            annotations.append(_coco_annotation(len(annotations) + 1, image_id, item))
    content = {
        "info": {"description": "moco_d2 demo, generated"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "texture"}
            for number, name in enumerate(CLASSES, start=1)
        ],
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def _coco_annotation(annotation_id: int, image_id: int, item: Object) -> dict[str, Any]:
    x0, y0, x1, y1 = item.box
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CLASSES.index(item.texture) + 1,
        "segmentation": [[round(float(v), 2) for v in item.polygon.ravel()]],
        "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
        "area": round(item.area, 2),
        "iscrowd": 0,
    }


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
        raise OSError(f"could not write {path}")


def _render(
    width: int,
    height: int,
    placed: list[tuple[str, float, np.ndarray]],
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[Object]]:
    """Draw an image with `placed` objects, each a tuple of class, diameter and center (x, y)."""
    canvas = np.full((height, width), rng.uniform(*_BACKGROUND), np.float32)
    objects = []
    for name, diameter, center in placed:
        shape, texture = LOOKS[name]
        angle, scale = rng.uniform(0, 2 * math.pi), diameter / (2 * _RADIUS)
        cos, sin = math.cos(angle), math.sin(angle)
        rotation = np.array([[cos, -sin], [sin, cos]])
        x0, y0 = np.maximum(np.floor(center - diameter / 2), 0).astype(int)
        x1, y1 = np.minimum(np.ceil(center + diameter / 2), (width, height)).astype(int)
        # Pixel centers of the enlarged patch, in template coordinates relative to its middle.
        xs, ys = (
            np.arange(low + 0.25, high, 0.5, dtype=np.float32) - np.float32(middle)
            for low, high, middle in ((x0, x1, center[0]), (y0, y1, center[1]))
        )
        u = (np.float32(cos) * xs + np.float32(sin) * ys[:, None]) / np.float32(scale)
        v = (np.float32(cos) * ys[:, None] - np.float32(sin) * xs) / np.float32(scale)
        middle = _TEMPLATE / 2
        inside = cv2.remap(_mask(shape), u + (middle - 0.5), v + (middle - 0.5), cv2.INTER_LINEAR)
        patch = inside * _pattern(texture, u, v, rng)
        patch = cv2.resize(patch, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
        canvas[y0:y1, x0:x1] += rng.uniform(*_CONTRAST) * patch
        outline = scale * _outline(shape) @ rotation.T + center
        objects.append(Object(name, outline.clip(0, (width, height))))
    noisy = canvas[..., None] + rng.normal(0, _NOISE, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8), objects


def _pattern(texture: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a texture of -1 and 1 at points (u, v), in template pixels from its middle."""
    frequency = 2 * math.pi / (rng.uniform(*_PERIOD) * 2 * _RADIUS)
    phase_u, phase_v = rng.uniform(0, 2 * math.pi, 2)
    if texture == "stripes":
        wave = np.sin(frequency * u + phase_u)
    elif texture == "checks":  # coarser, because the visible period is the diagonal of a check
        wave = np.sin(frequency / 1.3 * u + phase_u) * np.sin(frequency / 1.3 * v + phase_v)
    elif texture == "rings":
        wave = np.sin(frequency * np.hypot(u, v) + phase_u)
    else:
        raise ValueError(f"unknown texture {texture!r}")
    return np.where(wave > 0, np.float32(1), np.float32(-1))


@cache
def _mask(shape: str) -> np.ndarray:
    """Return the template of a shape, float32 of 0 and 1."""
    mask = np.zeros((_TEMPLATE, _TEMPLATE), np.uint8)
    middle = _TEMPLATE // 2
    if shape == "disc":
        cv2.circle(mask, (middle, middle), _RADIUS, 1, -1)
    else:
        cv2.fillPoly(mask, [np.rint(middle + np.array(list(_corners(shape)))).astype(np.int32)], 1)
    return mask.astype(np.float32)


def _corners(shape: str) -> Iterator[tuple[float, float]]:
    """Yield the corners of a polygon relative to its center, within the radius of the disc."""
    radii: tuple[float, ...]
    if shape == "square":
        count, radii = 4, (1.0,)
    elif shape == "star":
        count, radii = 10, (1.0, 0.45)
    else:
        raise ValueError(f"unknown shape {shape!r}")
    for index in range(count):
        radius = _RADIUS * radii[index % len(radii)]
        angle = 2 * math.pi * index / count - math.pi / 2
        yield radius * math.cos(angle), radius * math.sin(angle)


@cache
def _outline(shape: str) -> np.ndarray:
    """Return the outline of a shape, (points, 2), relative to the middle of its template."""
    contours, _ = cv2.findContours(
        _mask(shape).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    # A template pixel is at most a third of an image pixel, so this tolerance is not visible.
    points = cv2.approxPolyDP(contours[0], 1.0, closed=True)
    return points[:, 0] + (0.5 - _TEMPLATE / 2)  # a template pixel's center is at its index + 0.5
