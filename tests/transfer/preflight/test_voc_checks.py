"""VOC sets whose files are sound one by one, but give another AP than a person means."""

import re

import pytest
from support.toy_data import make_voc

from moco_d2.config.load import load_config
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import Refusal

IMAGES = 6


@pytest.fixture
def root(tmp_path):
    return make_voc(tmp_path / "VOC", images=IMAGES)


def findings(root):
    names = {key: f"voc:{root}:{split}" for key, split in (("TRAIN", "trainval"), ("TEST", "test"))}
    words = [word for key, name in names.items() for word in (f"DATASETS.{key}", name)]
    return check_datasets(
        load_config("voc_C4_random.yaml", [*words, "MODEL.ROI_HEADS.NUM_CLASSES", "2"])
    )


def rewrite(root, split, pattern, new, images=range(IMAGES)):
    for i in images:
        file = root / f"Annotations/{split}{i:03d}.xml"
        text, count = re.subn(pattern, new, file.read_text())
        assert count
        file.write_text(text)


def test_a_sound_set_has_no_finding_and_no_warning(root, caplog):
    assert findings(root) == []
    assert not caplog.records


@pytest.mark.parametrize(("key", "split"), [("TRAIN", "trainval"), ("TEST", "test")])
def test_an_image_that_is_listed_twice_is_named(root, key, split):
    file = root / f"ImageSets/Main/{split}.txt"
    file.write_text(f"{file.read_text()}{split}003\n{split}003\n")
    (finding,) = findings(root)
    assert str(finding).startswith(f"DATASETS.{key} is")
    assert f"{split}.txt lists image {split}003 3 times; list it once" in finding.message


def test_objects_that_are_listed_twice_are_counted(root):
    rewrite(root, "test", "(<object>.*</object>)", r"\1\1", images=[2, 4])
    (finding,) = findings(root)
    assert "2 of its 8 objects repeat the box and the class" in finding.message
    assert "Annotations/test002.xml; remove them" in finding.message


def test_a_few_objects_that_are_listed_twice_are_only_logged(root, caplog, monkeypatch):
    monkeypatch.setattr("moco_d2.transfer.preflight.findings._FEW", 0.2)
    rewrite(root, "test", "(<object>.*</object>)", r"\1\1", images=[2])
    assert findings(root) == []
    assert "1 of its 7 objects repeat" in caplog.text


@pytest.mark.parametrize("size", [None, ""])
def test_boxes_of_larger_images_are_found(root, size):
    if size is not None:
        rewrite(root, "test", "<size>.*</size>", size)
    rewrite(root, "test", r"<(x|y)(min|max)>(\d+)<", lambda m: f"<{m[1]}{m[2]}>{2 * int(m[3])}<")
    (finding,) = findings(root)
    assert "boxes leave their image, such as" in finding.message
    assert "in 64 x 64 pixels; correct them, or use the images that were" in finding.message


def test_two_boxes_that_leave_their_image_are_no_evidence(root):
    rewrite(root, "test", r"<xmax>\d+<", "<xmax>90<", images=[0, 1])
    assert findings(root) == []
    rewrite(root, "test", r"<xmax>\d+<", "<xmax>90<", images=[2])
    assert len(findings(root)) == 1


def test_a_test_set_of_difficult_objects_is_refused(root):
    rewrite(root, "test", "<difficult>0", "<difficult>1")
    (finding,) = findings(root)
    assert isinstance(finding, Refusal)
    assert "all 6 objects" in finding.message
    assert "are difficult" in finding.message


@pytest.mark.parametrize(
    ("split", "pattern", "new", "sentence"),
    [
        ("test", "<difficult>0", "<difficult>1", "no object that is not difficult of 1 of its 2"),
        ("trainval", "<name>light", "<name>dark", "no object of 1 of its 2 classes (light): no de"),
    ],
)
def test_classes_without_objects_are_named(root, caplog, split, pattern, new, sentence):
    rewrite(root, split, pattern, new, images=range(1, IMAGES, 2))
    assert findings(root) == []
    assert sentence in caplog.text
    assert "(light)" in caplog.text


def test_a_folder_that_lacks_a_class_is_told_how_to_name_it(root, tmp_path):
    other = make_voc(tmp_path / "other", images=IMAGES)
    rewrite(other, "test", "<name>light", "<name>dark", images=range(1, IMAGES, 2))
    rewrite(other, "trainval", "<name>light", "<name>dark", images=range(1, IMAGES, 2))
    names = ["DATASETS.TRAIN", f"voc:{root}:trainval", "DATASETS.TEST", f"voc:{other}:test"]
    found = check_datasets(
        load_config("voc_C4_random.yaml", [*names, "MODEL.ROI_HEADS.NUM_CLASSES", "2"])
    )
    assert "name the same classes (in classes.txt of a VOC folder)" in str(found[0])
