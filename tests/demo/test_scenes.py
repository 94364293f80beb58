"""The generated images and their annotations."""

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from moco_d2.demo import scenes

SIZES = {"pretrain_images": 18, "knn_test_images": 9, "detection_train": 6, "detection_test": 4}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    scenes.write_dataset(root, seed=3, **SIZES)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def object_pixels(image: np.ndarray) -> np.ndarray:
    """Where a scene differs from its background, by more than noise."""
    gray = image.astype(np.float32).mean(axis=2)
    return np.abs(gray - np.median(gray)) > 25


def test_same_seed_same_bytes(dataset, tmp_path):
    scenes.write_dataset(tmp_path, seed=3, **SIZES)
    assert digests(tmp_path) == digests(dataset)


def test_other_seed_other_images(dataset, tmp_path):
    scenes.write_dataset(tmp_path, seed=4, **SIZES)
    ours, theirs = digests(dataset), digests(tmp_path)
    images = [name for name in ours if name.endswith(".jpg")]
    assert all(ours[name] != theirs[name] for name in images)


def test_no_image_is_in_two_sets(dataset):
    images = [digest for name, digest in digests(dataset).items() if name.endswith(".jpg")]
    assert len(images) == 18 + 9 + 2 * (6 + 4)
    assert len(set(images)) == len(images)


def test_a_set_does_not_depend_on_the_sizes_of_the_others(dataset, tmp_path):
    scenes.write_dataset(tmp_path, seed=3, **{**SIZES, "pretrain_images": 9, "detection_train": 2})
    ours, theirs = digests(dataset), digests(tmp_path)
    for folder in ("pretrain_test", "coco/images/test"):
        part = {name: d for name, d in ours.items() if name.startswith(folder)}
        assert part == {name: d for name, d in theirs.items() if name.startswith(folder)}
    assert ours["coco/annotations/test.json"] == theirs["coco/annotations/test.json"]


def test_class_folders(dataset):
    for split, each in (("pretrain", 2), ("pretrain_test", 1)):
        folders = sorted(p.name for p in (dataset / split).iterdir())
        assert folders == list(scenes.LOOK_NAMES)
        for name in folders:
            images = list((dataset / split / name).glob("*.jpg"))
            assert len(images) == each
            assert Image.open(images[0]).size == (scenes.PRETRAIN_SIDE, scenes.PRETRAIN_SIDE)


def test_lists_label_the_same_images_by_texture_and_by_shape(dataset):
    """No label of one kind tells the labels of the other kind apart."""
    from moco_d2.pretrain.data.sources import read_list

    lists = {kind: read_list(dataset / f"pretrain_{kind}.txt") for kind in scenes.LABELS}
    textures, shapes = (list(lists[kind].classes) for kind in ("textures", "shapes"))
    assert textures == ["checked", "ringed", "striped"]
    assert textures == list(scenes.CLASSES)
    paths = [list(images.paths) for images in lists.values()]
    assert paths[0] == paths[1]
    assert len(paths[0]) == SIZES["pretrain_images"]
    pairs = set(zip(*(images.labels for images in lists.values()), strict=True))
    assert len(pairs) == len(textures) * len(shapes)
    for path, texture, shape in zip(paths[0], *(i.labels for i in lists.values()), strict=True):
        assert Path(path).is_file()
        assert Path(path).parent.name == f"{textures[texture]}_{shapes[shape]}"


def test_voc_layout(dataset):
    root = dataset / "VOC2007"
    splits = {
        split: (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        for split in ("trainval", "test")
    }
    assert [len(names) for names in splits.values()] == [6, 4]
    assert not set(splits["trainval"]) & set(splits["test"])
    for name in splits["trainval"] + splits["test"]:
        top = ElementTree.parse(root / "Annotations" / f"{name}.xml").getroot()
        assert top.findtext("folder") == "VOC2007"
        assert top.findtext("filename") == f"{name}.jpg"
        width, height = Image.open(root / "JPEGImages" / f"{name}.jpg").size
        size = [int(top.findtext(f"size/{tag}")) for tag in ("width", "height", "depth")]
        assert size == [width, height, 3]
        assert top.findall("object")
        for item in top.iter("object"):
            assert item.findtext("name") in scenes.CLASSES
            assert item.findtext("difficult") == item.findtext("truncated") == "0"
            assert item.findtext("pose")
            x0, y0, x1, y1 = (
                int(item.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax")
            )
            assert 1 <= x0 < x1 <= width
            assert 1 <= y0 < y1 <= height


def test_voc_boxes_hold_the_objects_and_little_else(dataset):
    """What lies outside the boxes is background, and each side of a box is close to the object."""
    root = dataset / "VOC2007"
    for annotation in (root / "Annotations").glob("*.xml"):
        image = np.asarray(Image.open(root / "JPEGImages" / f"{annotation.stem}.jpg"))
        found = object_pixels(image)
        outside = np.ones(found.shape, bool)
        for box in ElementTree.parse(annotation).getroot().iter("bndbox"):
            x0, y0, x1, y1 = (int(box.findtext(t)) for t in ("xmin", "ymin", "xmax", "ymax"))
            inside = found[y0 - 1 : y1, x0 - 1 : x1]
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            assert max(rows[0], columns[0]) <= 6
            assert min(rows[-1] - len(inside), columns[-1] - inside.shape[1]) >= -6
            outside[max(0, y0 - 2) : y1 + 1, max(0, x0 - 2) : x1 + 1] = False
        assert found[outside].mean() < 0.01


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("test", 4)])
def test_coco_annotations(dataset, split, count):
    from pycocotools.coco import COCO

    root = dataset / "coco"
    coco = COCO(str(root / "annotations" / f"{split}.json"))
    assert len(coco.imgs) == count
    assert [coco.cats[i]["name"] for i in sorted(coco.cats)] == list(scenes.CLASSES)
    assert min(coco.cats) == 1
    for image in coco.imgs.values():
        path = root / "images" / split / image["file_name"]
        assert Image.open(path).size == (image["width"], image["height"])
        assert coco.imgToAnns[image["id"]]
    for annotation in coco.anns.values():
        x, y, width, height = annotation["bbox"]
        image = coco.imgs[annotation["image_id"]]
        assert 0 <= x < x + width <= image["width"]
        assert 0 <= y < y + height <= image["height"]
        assert annotation["iscrowd"] == 0
        mask = coco.annToMask(annotation)
        assert mask.sum() == pytest.approx(annotation["area"], rel=0.08)
        assert mask.sum() == mask[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1].sum()


def test_coco_masks_cover_the_objects(dataset):
    from pycocotools.coco import COCO

    root = dataset / "coco"
    coco = COCO(str(root / "annotations" / "train.json"))
    for image in coco.imgs.values():
        pixels = np.asarray(Image.open(root / "images" / "train" / image["file_name"]))
        mask = sum(coco.annToMask(a) for a in coco.imgToAnns[image["id"]]) > 0
        found = object_pixels(pixels)
        assert found[mask].mean() > 0.7
        assert found[~mask].mean() < 0.02


def test_annotations_name_category_and_area_of_what_was_drawn():
    image, objects = scenes.draw_scene(np.random.default_rng(0))
    assert image.dtype == np.uint8
    assert 1 <= len(objects) <= 3
    for item in objects:
        x0, y0, x1, y1 = item.box
        assert 14 < min(x1 - x0, y1 - y0) <= max(x1 - x0, y1 - y0) < 46
        assert 0.2 < item.area / ((x1 - x0) * (y1 - y0)) <= 1


@pytest.mark.parametrize("name", scenes.LOOK_NAMES)
def test_one_object_fills_much_of_its_image(name):
    image, found = scenes.draw_object_image(name, np.random.default_rng(1), side=48)
    assert image.shape == (48, 48, 3)
    assert found.name == name
    assert found.area > 0.08 * 48 * 48


def test_mean_color_tells_nothing_about_the_class():
    """No class is brighter, nor more colorful, than another."""
    rng = np.random.default_rng(0)
    means = np.array(
        [
            [scenes.draw_object_image(name, rng)[0].mean(axis=(0, 1)) for _ in range(40)]
            for name in scenes.LOOK_NAMES
        ]
    )
    assert np.ptp(means.mean(axis=1)) < 15
    assert np.ptp(means, axis=2).max() < 3  # gray


def test_jpegs_are_of_high_quality(dataset):
    path = next((dataset / "coco" / "images" / "test").glob("*.jpg"))
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert max(max(table) for table in image.quantization.values()) < 30


def test_json_holds_plain_numbers(dataset):
    content = json.loads((dataset / "coco" / "annotations" / "train.json").read_text())
    polygon = content["annotations"][0]["segmentation"][0]
    assert len(polygon) >= 6
    assert len(polygon) % 2 == 0
    assert all(isinstance(value, float) for value in polygon)
