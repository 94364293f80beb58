"""VOC folders as annotation programs write them are read as meant, or refused with the reason."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances
from PIL import Image
from support.toy_data import make_voc

from moco_d2.errors import UserError
from moco_d2.transfer.data.registered import load_dicts, register_datasets
from moco_d2.transfer.data.voc_annotations import read_objects, read_split
from moco_d2.transfer.data.voc_dataset import load_voc
from moco_d2.transfer.preflight.image_headers import check_images
from moco_d2.untrusted_images import image_size

SPLIT = "ImageSets/Main/test.txt"
ORIENTATION = 0x0112


@pytest.fixture
def root(tmp_path):
    """A VOC folder of two images in each split."""
    return make_voc(tmp_path / "VOC", images=2)


def load(root):
    name = f"voc:{root}:test"
    register_datasets((name,))
    return load_dicts(name)


def classes_of(root):
    return MetadataCatalog.get(f"voc:{root}:test").thing_classes


def rewrite(root, old, new, file="Annotations/test000.xml", count=1, **options):
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, count), **options)


def test_dicts_are_detectron2s(root):
    found = load_voc(root, "test", ["dark", "light"])
    assert found == load_voc_instances(str(root), "test", ["dark", "light"])


@pytest.mark.parametrize("name", [" dark\n", "\tdark", "dark\u00a0"])
def test_spaces_around_a_class_are_no_part_of_it(root, name):
    rewrite(root, "<name>dark<", f"<name>{name}<", encoding="utf-8")
    dicts = load(root)
    assert classes_of(root) == ["dark", "light"]
    assert dicts[0]["annotations"][0]["category_id"] == 0
    assert read_objects(root / "Annotations/test000.xml")[0].name == "dark"


def test_spaces_within_a_class_are_one(root):
    rewrite(root, "<name>dark<", "<name>traffic\n   light<")
    load(root)
    assert classes_of(root) == ["dark", "light", "traffic light"]


def test_classes_that_differ_only_in_case_need_a_list(root):
    rewrite(root, "<name>dark<", "<name>Dark<")
    with pytest.raises(UserError, match=r"'Dark' and 'dark' differ only in case.*classes\.txt"):
        load(root)
    (root / "classes.txt").write_text("Dark\ndark\nlight\n")
    load(root)
    assert classes_of(root) == ["Dark", "dark", "light"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("d\u0430rk", r"'d\\u0430rk' has Latin letters beside"),
        ("\u202edark", r"invisible character U\+202E"),
        ("da\u200brk", r"invisible character U\+200B"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_classes_that_deceive_a_reader_are_refused(root, name, message, listed):
    rewrite(root, "<name>dark<", f"<name>{name}<", encoding="utf-8")
    if listed:
        (root / "classes.txt").write_text(f"dark\n{name}\nlight\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load(root)


def test_a_class_that_is_listed_twice_is_refused(root):
    (root / "classes.txt").write_text("dark\nlight\ndark\n")
    with pytest.raises(UserError, match=r"classes\.txt, 'dark' is listed twice"):
        load(root)


def test_a_dataset_name_with_an_invisible_character_is_refused(tmp_path):
    root = make_voc(tmp_path / "VOC\u202e2007", images=1)
    with pytest.raises(UserError, match=r"has the invisible character U\+202E") as raised:
        load(root)
    assert str(raised.value).isprintable()


def test_names_may_have_spaces_and_end_in_a_number(root):
    for i, name in enumerate(("photo of 1", "photo of 0")):
        for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (root / folder / f"test00{i}.{suffix}").rename(root / folder / f"{name}.{suffix}")
    (root / SPLIT).write_text("photo of 1 \nphoto of 0\n")
    assert [d["image_id"] for d in load(root)] == ["photo of 1", "photo of 0"]


def test_a_list_of_one_class_is_no_split(root):
    (root / SPLIT).write_text("test000  1\ntest001 -1\n")
    with pytest.raises(UserError, match=r"test\.txt lists whether each image has an object of one"):
        load(root)


def test_a_byte_order_mark_is_no_part_of_a_name(root):
    for file in (SPLIT, "Annotations/test000.xml"):
        (root / file).write_bytes(b"\xef\xbb\xbf" + (root / file).read_bytes())
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfdark\r\nlight\r\n")
    assert [d["image_id"] for d in load(root)] == ["test000", "test001"]
    assert classes_of(root) == ["dark", "light"]


@pytest.mark.parametrize("file", [SPLIT, "classes.txt"])
def test_a_list_in_another_encoding_says_so(root, file):
    (root / file).write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=rf"{re.escape(file)} is not UTF-8.*write it in UTF-8"):
        load(root)


def test_an_image_listed_twice_stays_twice(root):
    (root / SPLIT).write_text("test001\ntest000\ntest001\n")
    assert sorted(d["image_id"] for d in load(root)) == ["test000", "test001", "test001"]
    assert read_split(str(root), "test") == {"test001": 2, "test000": 1}


@pytest.mark.parametrize(
    "lines",
    ["test000.jpg\rtest001.JPG\r", "JPEGImages/test000.jpg\n/a/b/test001.png\n"],
)
def test_lines_may_be_paths_of_images(root, lines):
    (root / SPLIT).write_text(lines)
    assert [d["image_id"] for d in load(root)] == ["test000", "test001"]


def test_a_name_that_looks_like_a_path_stays_if_there_is_its_annotation(root):
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (root / folder / f"test000.{suffix}").rename(root / folder / f"a.jpg.{suffix}")
    (root / SPLIT).write_text("a.jpg\n")
    assert [d["image_id"] for d in load(root)] == ["a.jpg"]


def test_hidden_files_are_no_annotations(root):
    (root / "Annotations/._test000.xml").write_bytes(b"\0\5\x16\7")
    assert len(load(root)) == 2


@pytest.mark.parametrize("declared", ["<?xml version='1.0' encoding='GBK'?>", ""])
def test_another_encoding_names_the_fix(root, declared):
    rewrite(root, "<annotation>", f"{declared}<annotation>")
    rewrite(root, "dark", "\u6697", encoding="gbk")
    with pytest.raises(UserError, match=r"test000\.xml .*is not UTF-8 .*; save it .* in UTF-8"):
        load(root)


@pytest.mark.parametrize(
    ("start", "end"),
    [("<objects><object>", "</object></objects>"), ("<Object>", "</Object>")],
)
def test_objects_in_an_unknown_place_are_not_dropped(root, start, end):
    rewrite(root, "<object>", start)
    rewrite(root, "</object>", end)
    with pytest.raises(UserError, match=r"test000\.xml .*an object is not an <object> directly in"):
        load(root)


def boxes(root, change):
    """Write change(x0, y0, x1, y1) as the boxes of all annotations."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    for file in (root / "Annotations").iterdir():
        tree = ElementTree.parse(file)
        elements = [tree.find(f"object/bndbox/{corner}") for corner in corners]
        for element, number in zip(elements, change(*(int(e.text) for e in elements)), strict=True):
            element.text = str(number)
        tree.write(file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x0, y0, x1, y1: (x0 / 64, y0 / 64, x1 / 64, y1 / 64), "are relative to the image"),
        (lambda *_: (40, 40, 20, 20), "inside their image if they are x, y, width, height"),
    ],
)
def test_boxes_in_another_layout_are_refused(root, change, sentence):
    boxes(root, change)
    with pytest.raises(UserError, match=sentence):
        load(root)


@pytest.mark.parametrize("size", ["", "<size></size>", "<size><width>0</width><height/></size>"])
def test_a_missing_size_is_that_of_the_image(root, size):
    text = (root / "Annotations/test000.xml").read_text()
    text = re.sub(r"<size>.*</size>", size, text, flags=re.DOTALL)
    (root / "Annotations/test000.xml").write_text(text)
    Image.new("RGB", (96, 80)).save(root / "JPEGImages/test000.jpg")
    assert (load(root)[0]["width"], load(root)[0]["height"]) == (96, 80)


def test_a_missing_size_of_an_image_that_is_not_there_names_the_image(root):
    rewrite(root, "<size>", "<other>")
    rewrite(root, "</size>", "</other>")
    (root / "JPEGImages/test000.jpg").unlink()
    with pytest.raises(UserError, match=r"the size of image .*test000\.jpg cannot be read"):
        load(root)


def turned_image(path, orientation, size=(48, 64)):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", size).save(path, exif=exif)


def test_an_annotation_of_the_image_before_it_is_turned_is_refused(root):
    turned_image(root / "JPEGImages/test000.jpg", 6)  # a viewer shows 64 x 48
    rewrite(root, "<width>64<", "<width>48<")
    message = r"test000\.jpg .* its size before its EXIF orientation \(6\) turns it"
    with pytest.raises(UserError, match=message):
        check_images("voc", load(root))
    rewrite(root, "<width>48<", "<width>64<")
    rewrite(root, "<height>64<", "<height>48<")
    check_images("voc", load(root))


def test_a_missing_size_is_that_of_the_turned_image(root):
    turned_image(root / "JPEGImages/test000.jpg", 6)
    rewrite(root, "<size>", "<other>")
    rewrite(root, "</size>", "</other>")
    assert (load(root)[0]["width"], load(root)[0]["height"]) == (64, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_sizes_are_those_that_detectron2_reads(tmp_path, orientation, suffix):
    from detectron2.data.detection_utils import read_image

    turned_image(tmp_path / f"x.{suffix}", orientation)
    size, found = image_size(tmp_path / f"x.{suffix}")
    assert found == orientation
    assert size == read_image(str(tmp_path / f"x.{suffix}"), "RGB").shape[1::-1]


def test_a_header_longer_than_usual_is_read(tmp_path):
    with Image.new("RGB", (6, 4)) as image:
        image.save(tmp_path / "x.jpg", icc_profile=bytes(200_000))
    assert image_size(tmp_path / "x.jpg") == ((6, 4), 1)


@pytest.mark.parametrize("text, difficult", [("", False), (" 1\n", True), ("0", False)])
def test_an_empty_difficult_is_0(root, text, difficult):
    rewrite(root, "<difficult>0<", f"<difficult>{text}<")
    load(root)
    assert read_objects(root / "Annotations/test000.xml")[0].difficult == difficult


@pytest.mark.parametrize("text", ["yes", "2", "-1"])
def test_another_difficult_is_refused(root, text):
    rewrite(root, "<difficult>0<", f"<difficult>{text}<")
    with pytest.raises(UserError, match=rf"damaged \(an object has difficult '{text}"):
        load(root)


def test_images_may_have_another_format(root):
    gray = Image.fromarray(np.full((64, 64), 40_000, np.uint16))
    gray.save(root / "JPEGImages/test000.PNG")
    gray.save(root / "JPEGImages/test001.png")
    (root / "JPEGImages/test000.jpg").unlink()
    (root / "JPEGImages/._test001.tif").write_bytes(b"")
    files = [d["file_name"] for d in load(root)]
    assert files == [f"{root}/JPEGImages/test000.PNG", f"{root}/JPEGImages/test001.jpg"]
    assert len(DatasetCatalog.get(f"voc:{root}:test")) == 2
