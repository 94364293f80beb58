import functools
import itertools
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from PIL import Image
from support.toy_data import CLASSES, make_coco, make_voc
from support.transfer.dataset_files import make_cityscapes

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.data.registered import leave_out_missing, load_dicts, register_datasets
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import Refusal


def test_voc_folder_is_read_by_path(voc):
    name = voc["DATASETS.TRAIN"][0]
    register_datasets((name,))
    register_datasets((name,))  # idempotent
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == 6
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == list(CLASSES)
    assert metadata.evaluator_type == "pascal_voc"
    assert metadata.year == 2007
    x0, y0, x1, y1 = dicts[0]["annotations"][0]["bbox"]
    assert 0 <= x0 < x1 <= 64
    assert 0 <= y0 < y1 <= 64


def test_coco_file_is_read_by_path(coco):
    name = coco["DATASETS.TEST"][0]
    register_datasets((name,))
    assert len(DatasetCatalog.get(name)) == 6
    assert MetadataCatalog.get(name).thing_classes == list(CLASSES)
    assert MetadataCatalog.get(name).evaluator_type == "coco"


def test_misspelt_name_gets_the_closest():
    with pytest.raises(UserError, match=r"'voc_2007_tes' is not registered; did you mean 'voc_200"):
        register_datasets(("voc_2007_tes",))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("voc:/nowhere/VOC2007:test", r"/nowhere/VOC2007/ImageSets/Main/test.txt does not exist"),
        ("coco:/nowhere/a.json:/nowhere", r"annotation file /nowhere/a.json does not exist"),
    ],
)
def test_missing_folder_is_named(name, sentence):
    with pytest.raises(UserError, match=sentence):
        register_datasets((name,))


def test_text_that_is_no_annotation_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("not json")
    with pytest.raises(UserError, match="is not a COCO instances file"):
        register_datasets((f"coco:{tmp_path}/a.json:{tmp_path}",))


def test_builtin_set_that_is_not_there_says_where_it_is_looked_for():
    with pytest.raises(UserError, match="set DETECTRON2_DATASETS"):
        load_dicts("voc_2007_test")


def test_class_names_come_from_all_splits(tmp_path):
    """A class absent from the test split must not shift the others."""
    root = make_voc(tmp_path / "VOC2007")
    split = root / "ImageSets/Main/test.txt"
    split.write_text("test001\n" * 2)  # "light" only
    name = f"voc:{root}:test"
    register_datasets((name,))
    assert {a["category_id"] for d in load_dicts(name) for a in d["annotations"]} == {1}


def test_coco_category_order_is_that_of_the_ids(tmp_path):
    root = make_coco(tmp_path / "coco")
    file = Path(root / "test.json")
    content = json.loads(file.read_text())
    content["categories"].reverse()
    shutil.copy(file, tmp_path / "copy.json")
    (tmp_path / "copy.json").write_text(json.dumps(content))
    name = f"coco:{tmp_path}/copy.json:{root}/images"
    register_datasets((name,))
    load_dicts(name)
    assert MetadataCatalog.get(name).thing_classes == list(CLASSES)


def coco_file(folder, **changes):
    """A COCO file with gaps between the category ids, `changes` to its content, and its name."""
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 40,
                "bbox": [4, 4, 20, 20],
                "area": 400,
                "iscrowd": 0,
                "keypoints": [5, 5, 2, 9, 9, 2, 7, 7, 1],
                "num_keypoints": 3,
            }
        ],
        "categories": [{"id": 40, "name": "plane"}, {"id": 7, "name": "boat"}],
    }
    (folder / "a.json").write_text(json.dumps(content | changes))
    Image.new("RGB", (64, 48)).save(folder / "1.jpg")
    return f"coco:{folder}/a.json:{folder}"


def test_coco_category_ids_become_contiguous(tmp_path):
    name = coco_file(tmp_path)
    register_datasets((name,))
    (image,) = load_dicts(name)
    assert image["annotations"][0]["category_id"] == 1
    assert MetadataCatalog.get(name).thing_classes == ["boat", "plane"]


def test_coco_keypoints_come_with_their_names_and_mirror_pairs(tmp_path):
    points = {"keypoints": ["left_wing", "right_wing", "nose"], "skeleton": []}
    name = coco_file(tmp_path, categories=[{"id": 40, "name": "plane", **points}])
    register_datasets((name,))
    assert MetadataCatalog.get(name).keypoint_flip_map == [("left_wing", "right_wing")]
    assert len(load_dicts(name)[0]["annotations"][0]["keypoints"]) == 9
    data = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    cfg = load_config("coco_keypoint_FPN_2x_random.yaml", data)
    assert [str(finding) for finding in check_datasets(cfg)][1:] == 2 * [
        f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is 17: {name!r} has 3 keypoints; set "
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS 3"
    ]
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05] * 3
    (apart,) = check_datasets(cfg)
    assert "in DATASETS.TRAIN" in str(apart)
    assert create_keypoint_hflip_indices(cfg.DATASETS.TRAIN) == [1, 0, 2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"categories": []}, "it has no categories"),
        (
            {"categories": [{"id": 40, "name": "a"}, {"id": 41, "name": "a"}]},
            "categories 40 and 41 have the same name, 'a'; rename one, or merge them",
        ),
        (
            {"categories": [{"id": 40, "name": "dark"}, {"id": 41, "name": "\u202edark"}]},
            r"'\\u202edark' has the invisible character U\+202E",
        ),
        (
            {"categories": [{"id": 40, "name": "dark"}, {"id": 41, "name": "d\u0430rk"}]},
            r"'d\\u0430rk' has Latin letters beside Cyrillic",
        ),
        (
            {"categories": [{"id": 40, "name": "dark"}, {"id": 41, "name": "dark "}]},
            "'dark' and 'dark ' look alike",
        ),
        ({"categories": [{"id": 40, "name": " "}]}, "category 40 has an empty name; give it"),
        (
            {"images": [{"id": 1, "file_name": "1.jpg", "width": 64}]},
            r"entry 0 of 'images' \('1.jpg'\) has no 'height', the size of the image in pixels;",
        ),
        (
            {"images": [{"id": 2, "file_name": "1.jpg", "width": 64, "height": 48}]},
            "none of its 1 annotations is of one of its 1 images, such as image_id 1,",
        ),
        ({"categories": [{"id": 1, "name": "a"}]}, "category_id 40, which 'categories' lacks"),
    ],
)
def test_inconsistent_coco_files_are_refused(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        register_datasets((coco_file(tmp_path, **changes),))


def _one(part, **changes):
    """The parts of a sound COCO file, of which one's only entry is changed."""
    entries = {
        "images": {"id": 1, "file_name": "1.jpg", "width": 64, "height": 48},
        "annotations": {"id": 1, "image_id": 1, "category_id": 40, "bbox": [4, 4, 9, 9]},
        "categories": {"id": 40, "name": "plane"},
    }
    return {key: [e | changes if key == part else e] for key, e in entries.items()}


NO_IDS = ("1", "x", -1, None, [1], {}, 1.0, 1.5, True, 2**53 + 1, math.nan)


@pytest.mark.parametrize(
    ("part", "field", "values"),
    [
        ("categories", "name", (["x"], None, 7, {}, "a\0b")),
        ("categories", "keypoints", (5, [1, 2], "left", {"left": 1}, [["left"]])),
        ("categories", "id", NO_IDS),
        ("annotations", "category_id", NO_IDS),
        ("annotations", "image_id", NO_IDS),
        ("annotations", "id", ([1], {}, None, True)),
        ("annotations", "iscrowd", ([1], "0", "1", None, 2, -1)),
        ("annotations", "area", ("x", [], None, True, math.nan, math.inf, 1e300, -1)),
        ("annotations", "num_keypoints", ("3", None, 1.5, -1, True)),
        ("annotations", "segmentation", (5, "abc", [1, 2, 3], [{"a": 1}])),
        ("annotations", "keypoints", (5, "abc", {"a": 1}, [[5, 5, 2], [9, 9, 2]])),
        ("images", "file_name", (5, None, ["1.jpg"], "a\0b", "\ud83d.jpg")),
        ("images", "id", NO_IDS),
    ],
)
def test_fields_of_another_type_are_one_sentence(tmp_path, part, field, values):
    for value in values:
        name = coco_file(tmp_path, **_one(part, **{field: value}))
        with pytest.raises(UserError) as raised:
            register_datasets((name,))
        assert f"a.json is not a COCO instances file: entry 0 of {part!r} has the {field}" in str(
            raised.value
        )
        assert "\n" not in str(raised.value)
    for entry in (5, None, [], "x"):
        with pytest.raises(UserError, match=f"entry 0 of {part!r} is .*, which is not a mapping"):
            register_datasets((coco_file(tmp_path, **_one(part) | {part: [entry]}),))
    for entries in (5, None, {}, "x"):
        with pytest.raises(UserError, match=f"{part!r} is .*, which is not a list"):
            register_datasets((coco_file(tmp_path, **_one(part) | {part: entries}),))


def test_annotation_ids_may_be_anything_and_masks_absent(tmp_path):
    content = _one("images")
    content["annotations"] = [
        entry
        for i in (0, 1.5, -2, "three", 10**30)
        for entry in _one("annotations", id=i, segmentation=None, iscrowd=False)["annotations"]
    ]
    content["annotations"][1]["segmentation"] = []
    name = coco_file(tmp_path, **content)
    register_datasets((name,))
    (image,) = load_dicts(name)
    assert [a["category_id"] for a in image["annotations"]] == [0] * 5


@pytest.mark.parametrize("part", ["images", "categories"])
def test_an_id_that_two_entries_have_is_refused(tmp_path, part):
    content = _one(part)
    content[part] = [*content[part], content[part][0] | {"name": "ship", "file_name": "2.jpg"}]
    with pytest.raises(UserError, match=f"{part!r} has the id .* twice, in its entries 0 and 1"):
        register_datasets((coco_file(tmp_path, **content),))


def test_categories_with_different_keypoints_are_refused(tmp_path):
    categories = [
        {"id": 40, "name": "plane", "keypoints": ["nose"]},
        {"id": 41, "name": "boat", "keypoints": ["bow"]},
    ]
    with pytest.raises(UserError, match=r"different keypoints, \['nose'\] and \['bow'\]"):
        register_datasets((coco_file(tmp_path, categories=categories),))


def test_a_file_that_is_registered_in_code_is_checked_as_well(tmp_path):
    coco_file(tmp_path, **_one("annotations", iscrowd=None))
    name = f"in code {tmp_path}"
    register_coco_instances(name, {}, str(tmp_path / "a.json"), str(tmp_path))
    with pytest.raises(UserError, match=r"entry 0 of 'annotations' has the iscrowd None"):
        load_dicts(name)


def test_an_lvis_file_that_is_registered_in_code_is_checked_as_well(tmp_path):
    coco_file(tmp_path, **_one("annotations", area=math.inf))
    name, file = f"lvis in code {tmp_path}", str(tmp_path / "a.json")
    DatasetCatalog.register(name, lambda: load_lvis_json(file, str(tmp_path)))
    MetadataCatalog.get(name).set(json_file=file, evaluator_type="lvis")
    with pytest.raises(UserError, match=r"entry 0 of 'annotations' has the area inf"):
        load_dicts(name)


@pytest.mark.parametrize(
    ("box", "evidence"),
    [
        ([30, 20, 60, 40], "boxes leave their image if they are x, y, width, height"),
        ([0.25, 0.25, 0.5, 0.5], "boxes have only values from 0 to 1"),
    ],
)
@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_boxes_in_another_layout_are_refused(check, voc, tmp_path, box, evidence, split):
    name = coco_file(tmp_path, **_one("annotations", bbox=box))
    found = check(f"DATASETS.{split}", str((name,)))[0]
    assert isinstance(found, Refusal) and found.key == f"DATASETS.{split}"
    assert evidence in found.message


def test_annotations_that_are_a_pipe_keep_nobody_waiting(tmp_path):
    root = make_voc(tmp_path / "VOC2007")
    name = f"registered at {root}"
    register_pascal_voc(name, str(root), "test", 2007, CLASSES)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    register_coco_instances(f"coco at {root}", {}, str(tmp_path / "a.json"), str(tmp_path))
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"a\.json is not a regular file"):
        load_dicts(f"coco at {root}")
    with pytest.raises(UserError, match=r"annotation file .*a\.json does not exist"):
        register_datasets((f"coco:{tmp_path}/a.json:{tmp_path}",))
    for file in (root / "Annotations/test001.xml", root / "ImageSets/Main/test.txt"):
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UserError, match=f"{file.name} is not a regular file"):
            load_dicts(name)
        file.unlink()
        file.write_text("")


def test_coco_results_file_is_not_taken_for_annotations(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match=r"is not a COCO instances file: it has no 'images'"):
        register_datasets((f"coco:{tmp_path}/results.json:{tmp_path}",))


@pytest.mark.parametrize("name", ["coco:a.json", "voc:VOC2007", "coco::images", "voc:"])
def test_half_a_path_gets_the_form(name):
    with pytest.raises(UserError, match="write voc:FOLDER:SPLIT or coco:ANNOTATIONS.json:IMAGES"):
        register_datasets((name,))


def test_missing_image_folder_is_named(tmp_path):
    coco_file(tmp_path)
    with pytest.raises(UserError, match=r"image folder .*nowhere does not exist"):
        register_datasets((f"coco:{tmp_path}/a.json:{tmp_path}/nowhere",))


def test_a_folder_of_annotations_and_a_file_of_images_are_called_what_they_are(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    with pytest.raises(UserError, match=f"annotation file {folder} is a folder; name .* inside it"):
        register_datasets((f"coco:{folder}:{tmp_path}",))
    (folder / "train.json").touch()
    with pytest.raises(UserError, match=r"inside it, perhaps train\.json$"):
        register_datasets((f"coco:{folder}:{tmp_path}",))
    with pytest.raises(UserError, match=r"tarin\.json does not exist; .* 'train\.json'\?$"):
        register_datasets((f"coco:{folder}/tarin.json:{tmp_path}",))
    with pytest.raises(UserError, match=r"image folder .*train\.json is a file; name its folder"):
        register_datasets((f"coco:{folder}/train.json:{folder}/train.json",))


def test_voc_classes_may_be_listed_in_an_order_of_their_own(tmp_path):
    root = make_voc(tmp_path / "VOC2007")
    (root / "classes.txt").write_text("light\nother\ndark\n")
    name = f"voc:{root}:test"
    register_datasets((name,))
    assert MetadataCatalog.get(name).thing_classes == ["light", "other", "dark"]
    assert {a["category_id"] for d in load_dicts(name) for a in d["annotations"]} == {0, 2}


def test_voc_class_that_is_not_listed_is_named(tmp_path):
    root = make_voc(tmp_path / "VOC2007")
    (root / "classes.txt").write_text("light\n")
    with pytest.raises(UserError, match=r"test000.xml has an object 'dark', which .*classes.txt"):
        register_datasets((f"voc:{root}:test",))


def test_broken_voc_annotation_is_named(tmp_path):
    root = make_voc(tmp_path / "VOC2007")
    (root / "Annotations" / "test003.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"test003.xml is not an XML file"):
        register_datasets((f"voc:{root}:test",))


VOC, COCO = "voc_C4_random.yaml", "coco_FPN_1x_random.yaml"
TWO = ("MODEL.ROI_HEADS.NUM_CLASSES", "2")


@pytest.fixture
def check(voc, words):
    """Findings about the tiny VOC year and changes to its config."""

    def check(*overrides, eval_only=False):
        cfg = load_config(VOC, [*words(voc), *TWO, *overrides])
        return check_datasets(cfg, eval_only=eval_only)

    return check


def data(train, test):
    return ("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)")


def test_datasets_that_are_in_order(check):
    assert check() == []


@pytest.mark.parametrize(("number", "can_run"), [(20, True), (1, False)])
def test_another_number_of_classes_than_the_head(check, voc, number, can_run):
    key = "MODEL.ROI_HEADS.NUM_CLASSES"
    (found,) = check(key, str(number))
    train, test = voc["DATASETS.TRAIN"][0], voc["DATASETS.TEST"][0]
    fate = ", and the evaluation ignores the head's other classes" if can_run else ""
    assert str(found) == (
        f"{key} is {number}: there are 2 classes in {train!r} and {test!r}{fate}; set {key} 2"
    )
    assert isinstance(found, Refusal) != can_run


def test_datasets_of_different_numbers_of_classes(check, tmp_path):
    root = make_voc(tmp_path / "VOC2007")
    (root / "classes.txt").write_text("dark\nlight\nother\n")
    (found,) = check("DATASETS.TEST", f"('voc:{root}:test',)")
    assert str(found) == (
        f"MODEL.ROI_HEADS.NUM_CLASSES is 2: there are 3 classes in 'voc:{root}:test'; let all "
        "their files name the same classes (in classes.txt of a VOC folder)"
    )


def test_classes_in_another_order(check, voc, tmp_path):
    root = make_voc(tmp_path / "VOC2007")
    (root / "classes.txt").write_text("light\ndark\n")
    (other,) = voc["DATASETS.TEST"]
    (found,) = check(*data(f"voc:{root}:trainval", other))
    assert str(found) == (
        f"DATASETS.TEST is ({other!r},): class 0 is 'dark' in dataset {other!r} and 'light' in "
        f"'voc:{root}:trainval'; let their files name the same classes in the same order "
        "(in classes.txt of a VOC folder)"
    )
    assert not isinstance(found, Refusal)
    both = f"('voc:{root}:trainval', {other!r})"
    apart, first, second = check("DATASETS.TRAIN", both)  # Detectron2 does not join them
    assert "images are in DATASETS.TRAIN" in str(apart)
    assert (first.key, second.key) == ("DATASETS.TRAIN", "DATASETS.TEST")
    assert isinstance(first, Refusal) and not isinstance(second, Refusal)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_test_image_that_is_a_link_to_a_training_image(check, tmp_path, link):
    first, second = (make_voc(tmp_path / f"VOC{i}", images=2, seed=i) for i in range(2))
    image = second / "JPEGImages/test001.jpg"
    image.unlink()
    link(first / "JPEGImages/trainval001.jpg", image)
    (found,) = check(*data(f"voc:{first}:trainval", f"voc:{second}:test"))
    assert f"1 of its 2 images are in DATASETS.TRAIN, first {image}; name a set" in str(found)


def test_classes_that_look_alike_in_two_datasets_are_told_apart(check, tmp_path):
    names = []
    for i, label in enumerate(("cop", "\u0441\u043e\u0440")):
        root = make_voc(tmp_path / f"VOC{i}", images=2, seed=i)
        for file in (root / "Annotations").iterdir():
            file.write_text(file.read_text().replace(">dark<", f">{label}<"), encoding="utf-8")
        (root / "classes.txt").write_text(f"{label}\nlight\n", encoding="utf-8")
        names.append(f"voc:{root}:test")
    (found,) = check(*data(*names))
    assert f"class 0 is {label!a} in dataset {names[1]!r} and 'cop' in" in str(found)


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_evaluated_on_what_was_trained_on(check, voc, coco, kind):
    train, test = (name for (name,) in (voc if kind == "voc" else coco).values())
    config = VOC if kind == "voc" else COCO
    cfg = load_config(config, [*data(train, train), *TWO])
    (found,) = check_datasets(cfg)
    assert str(found).startswith(
        f"DATASETS.TEST is ({train!r},): 6 of its 6 images are in DATASETS.TRAIN, first /"
    )
    assert "; name a set that is not trained on" in str(found)
    assert not isinstance(found, Refusal)  # --force: whether a detector can learn at all
    both = ["DATASETS.TRAIN", str((train, test)), "DATASETS.TEST", str((test,))]
    assert len(check_datasets(load_config(config, [*both, *TWO]))) == 1
    assert check_datasets(cfg, eval_only=True) == []


BOMB = """<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">{}]>
<annotation><object><name>&e;</name></object></annotation>"""


def test_an_annotation_that_unfolds_is_refused_before_detectron2_reads_it(tmp_path):
    root = make_voc(tmp_path / "VOC2007")
    entities = (f'<!ENTITY {b} "{10 * f"&{a};"}">' for a, b in itertools.pairwise("abcde"))
    (root / "Annotations/test003.xml").write_text(BOMB.format("".join(entities)))
    with pytest.raises(UserError, match=r"test003\.xml .*it declares the XML entity 'a'"):
        register_datasets((f"voc:{root}:test",))
    name = f"registered at {root}"
    register_pascal_voc(name, str(root), "test", 2007, CLASSES)  # as the packaged ones are
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    with pytest.raises(UserError, match=r"test003\.xml .*it declares the XML entity 'a'"):
        load_dicts(name)


def test_annotations_nested_without_end_are_one_sentence(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"a\.json is not a COCO instances file"):
        register_datasets((f"coco:{tmp_path}/a.json:{tmp_path}",))


def test_proposals_from_a_pickle_are_refused(voc, words):
    """Detectron2 unpickles them, whatever is in them."""
    cfg = load_config(VOC, [*words(voc), "MODEL.LOAD_PROPOSALS", "True"])
    found = check_datasets(cfg)[0]
    assert isinstance(found, Refusal)
    assert re.match(r"MODEL\.LOAD_PROPOSALS is True: .* can run code", str(found))


def test_a_test_set_that_is_named_twice_is_refused(voc, words):
    cfg = load_config(VOC, [*words(voc), *TWO, "DATASETS.TEST", str(voc["DATASETS.TEST"] * 2)])
    found = check_datasets(cfg)[0]
    assert isinstance(found, Refusal)
    assert "it names a set twice, but a record has one result of a set" in str(found)


def test_only_an_evaluation_needs_a_test_set(voc, words):
    cfg = load_config(VOC, [*words(voc), *TWO, "DATASETS.TEST", "()"])
    assert check_datasets(cfg) == []
    (found,) = check_datasets(cfg, eval_only=True)
    assert isinstance(found, Refusal) and str(found).startswith("DATASETS.TEST is (): it names no")


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_images_that_are_missing(tmp_path, kind):
    if kind == "voc":
        root = make_voc(tmp_path / "VOC2007")
        train, test = (f"voc:{root}:{split}" for split in ("trainval", "test"))
        victims = [root / f"JPEGImages/{name}002.jpg" for name in ("trainval", "test")]
    else:
        root = make_coco(tmp_path / "coco")
        train, test = (f"coco:{root}/{split}.json:{root}/images" for split in ("train", "test"))
        victims = [root / f"images/{name}2.jpg" for name in ("train", "test")]
    cfg = load_config(VOC if kind == "voc" else COCO, [*data(train, test), *TWO])
    assert check_datasets(cfg) == []
    for victim in victims:
        victim.unlink()
    in_train, in_test = check_datasets(cfg)
    assert str(in_train) == (
        f"DATASETS.TRAIN is ({train!r},): dataset {train!r}: files of 1 of its 6 images are "
        f"missing, first {victims[0]}; add the files or remove their annotations, or train "
        "without these images"
    )
    assert not isinstance(in_train, Refusal)
    assert str(in_test) == (
        f"DATASETS.TEST is ({test!r},): dataset {test!r}: files of 1 of its 6 images are missing, "
        f"first {victims[1]}; add the files or remove their annotations"
    )
    assert isinstance(in_test, Refusal)
    assert check_datasets(cfg, eval_only=True) == [in_test]
    leave_out_missing(cfg.DATASETS.TRAIN)
    assert [Path(d["file_name"]) == victims[0] for d in load_dicts(train)] == [False] * 5
    assert check_datasets(cfg) == [in_test]


def test_labels_that_are_missing_count_as_the_images_do(tmp_path):
    make_cityscapes(tmp_path)
    folders = (str(tmp_path / kind / "train") for kind in ("leftImg8bit", "gtFine"))
    name = f"cityscapes in {tmp_path}"
    dicts = load_cityscapes_semantic(*folders)
    DatasetCatalog.register(name, lambda: dicts)
    Path(dicts[0]["sem_seg_file_name"]).unlink()
    leave_out_missing((name,))
    assert load_dicts(name) == dicts[1:]
    DatasetCatalog.remove(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("voc_2007_tes", "dataset 'voc_2007_tes' is not registered; did you mean 'voc_2007_test'"),
        ("voc_2007_test", "does not exist; set DETECTRON2_DATASETS to the folder that holds VOC2"),
        ("coco:/nowhere/a.json:/nowhere", "annotation file /nowhere/a.json does not exist"),
    ],
)
def test_a_dataset_that_is_not_there_cannot_run(check, name, sentence):
    found = check(*data(name, name))
    assert [finding.key for finding in found] == ["DATASETS.TRAIN", "DATASETS.TEST"]
    for finding in found:
        assert isinstance(finding, Refusal)
        assert finding.value == f"('{name}',)"
        assert sentence in finding.message


def test_training_data_need_not_be_there_for_an_evaluation(check):
    assert check("DATASETS.TRAIN", "('nowhere',)", eval_only=True) == []


def test_no_training_data_at_all(check):
    (found,) = check("DATASETS.TRAIN", "()")
    assert str(found).startswith("DATASETS.TRAIN is (): it names no dataset; write voc:FOLDER:SPL")


def test_how_a_dataset_is_evaluated_is_asked_before_training(check):
    DatasetCatalog.register("without evaluator", lambda: [{"file_name": __file__}])
    MetadataCatalog.get("without evaluator").set(thing_classes=list(CLASSES))
    (found,) = check("DATASETS.TEST", "('without evaluator',)")
    assert isinstance(found, Refusal) and "has no evaluator_type" in found.message
    DatasetCatalog.remove("without evaluator")


def test_what_detectron2_asserts_about_a_dataset_is_one_sentence(tmp_path):
    make_cityscapes(tmp_path)
    for file in tmp_path.rglob("*_gtFine_labelTrainIds.png"):
        file.unlink()
    folders = (str(tmp_path / kind / "train") for kind in ("leftImg8bit", "gtFine"))
    name = f"cityscapes in {tmp_path}"
    DatasetCatalog.register(name, functools.partial(load_cityscapes_semantic, *folders))
    with pytest.raises(UserError, match=r"cannot be read: .*createTrainIdLabelImgs.py"):
        load_dicts(name)
    DatasetCatalog.remove(name)


def test_no_training_image_that_is_there_has_an_object(tmp_path):
    root = make_coco(tmp_path / "coco", images=3)
    file = root / "train.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:2]
    file.write_text(json.dumps(content))
    train, test = (f"coco:{root}/{split}.json:{root}/images" for split in ("train", "test"))
    cfg = load_config(COCO, [*data(train, test), *TWO])
    (root / "images/train0.jpg").unlink()
    (found,) = check_datasets(cfg)
    assert not isinstance(found, Refusal)
    (root / "images/train1.jpg").unlink()
    (found,) = check_datasets(cfg)
    assert isinstance(found, Refusal)
    assert "files of 2 of its 3 images are missing" in found.message
    assert "or train without these images" not in found.message


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("a\\1.jpg", r" \(there is .*/a/1.jpg: write / instead of \\\); add the files"),
        ("a/1.JPG", r" \(there is 1\.jpg, which differs in upper and lower case\); add"),
        ("a/2.jpg", r"first .*/a/2\.jpg; add the files"),
        ("b/1.jpg", r"first .*/b/1\.jpg; add the files"),
    ],
)
def test_a_missing_file_whose_name_is_written_in_another_way(tmp_path, written, hint):
    (tmp_path / "a").mkdir()
    name = coco_file(tmp_path, **_one("images", file_name=written))
    (tmp_path / "1.jpg").rename(tmp_path / "a/1.jpg")
    found = check_datasets(load_config(COCO, [*data(name, name), *TWO]))[0]
    assert re.search(hint, found.message)


def test_training_sets_that_are_one_set(coco):
    (name,), (test,) = coco["DATASETS.TRAIN"], coco["DATASETS.TEST"]
    again = name.replace("/train.json", "/./train.json")
    assert again != name
    for other in (name, again):
        names = ("DATASETS.TRAIN", str((name, other)), "DATASETS.TEST", str((test,)))
        (found,) = check_datasets(load_config(COCO, [*names, *TWO]))
        assert not isinstance(found, Refusal)
        assert f"6 of the 6 images of dataset {other!r} are in a set before it" in found.message
