import hashlib
import logging
import os
import pickle

import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from moco_d2.errors import UserError
from moco_d2.pretrain.data.build import build_training_data
from moco_d2.pretrain.data.image_list import ImageList, PathTable, take_fraction
from moco_d2.pretrain.data.sources import list_images, list_registered, list_source, read_list


def save_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def test_class_folders_give_sorted_labels(tmp_path):
    save_images(tmp_path / "b" / "deep", "1.jpg")
    save_images(tmp_path / "a", "2.png", "1.PNG")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    images = list_source(str(tmp_path))
    assert list(images.paths) == [
        str(tmp_path / name) for name in ("a/1.PNG", "a/2.png", "b/deep/1.jpg")
    ]
    assert (list(images.labels), images.classes, len(images)) == ([0, 0, 1], ["a", "b"], 3)


def test_images_beside_class_folders_are_refused(tmp_path):
    save_images(tmp_path / "cat", "a.png")
    save_images(tmp_path, "stray.png")
    with pytest.raises(UserError, match=r"images \(stray.png\) beside class folders \(cat\)"):
        list_images(tmp_path)


def test_flat_folder_has_no_labels(tmp_path):
    save_images(tmp_path, "b.png", "a.jpg")
    images = list_images(tmp_path)
    assert list(images.paths) == [str(tmp_path / "a.jpg"), str(tmp_path / "b.png")]
    assert (images.labels, images.classes) == (None, [])


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"dataset folder {tmp_path}/no does not exist"):
        list_source(f"{tmp_path}/no")


def test_folder_without_images_is_named(tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "x.txt").write_text("x")
    with pytest.raises(UserError, match=f"no images in {tmp_path}"):
        list_images(tmp_path)


def test_a_list_is_relative_to_its_folder(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text("a/1.jpg\n\n/elsewhere/my picture.png\n  b.JPEG  \n")
    save_images(tmp_path, "b.JPEG")
    images = list_source(f"list:{file}")
    assert list(images.paths) == [
        f"{tmp_path}/a/1.jpg",
        "/elsewhere/my picture.png",
        f"{tmp_path}/b.JPEG",
    ]
    assert (images.labels, images.classes) == (None, [])


def test_labels_of_a_list_are_indices_or_names(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text("1.jpg 3\nmy picture.png\t0\n2.jpg  1\n")
    images = read_list(file)
    assert list(images.paths) == [
        f"{tmp_path}/{name}" for name in ("1.jpg", "my picture.png", "2.jpg")
    ]
    assert (list(images.labels), images.classes) == ([3, 0, 1], ["0", "1", "2", "3"])
    file.write_text("1.jpg dog\n2.jpg cat\n3.jpg dog\n")
    images = read_list(file)
    assert (list(images.labels), images.classes) == ([1, 0, 1], ["cat", "dog"])


@pytest.mark.parametrize(
    "content, message",
    [
        ("", r"train\.txt is empty"),
        ("1.jpg 0\n2.jpg\n", r"labels on only 1 of 2 lines"),
        ("1.jpg\nnotes.txt\n", r"line 2 names no image \('notes\.txt'\)"),
        ("1.jpg dog or cat\n", r"line 1 names no image"),
        ("1.jpg\x00a.jpg", r"line 1 has a zero byte"),
    ],
)
def test_a_list_that_makes_no_sense_is_one_sentence(tmp_path, content, message):
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "train.txt")


@pytest.mark.parametrize("labels", ["0 -1", "cat -1", "0.0 1.0", "0 +1"])
def test_numbers_that_are_no_indices_cost_only_the_labels(tmp_path, make_config, labels):
    save_images(tmp_path, "1.jpg", "2.jpg")
    first, second = labels.split()
    (tmp_path / "train.txt").write_text(f"1.jpg {first}\n2.jpg {second}\n")
    run = {"DATASETS.TRAIN": (f"list:{tmp_path}/train.txt",), "SOLVER.IMS_PER_BATCH": 2}
    data = build_training_data(make_config(run))
    assert (data.num_images, data.classes) == (2, [])
    with pytest.raises(UserError, match=r"train.txt has none \(it has the label .*indices from 0"):
        build_training_data(make_config({**run, "MOCO.PRETEXT": "supervised"}))


def test_what_is_doubtful_in_a_list_is_in_the_log(tmp_path, caplog):
    file = tmp_path / "train.txt"
    file.write_text("1.jpg cat\n2.jpg Cat\n1.jpg cat\n1.jpg cat\n")
    with caplog.at_level(logging.WARNING):
        assert read_list(file).classes == ["Cat", "cat"]
    assert caplog.messages == [
        f"2 lines of {file} name an image again",
        f"{file} has Cat and cat, which are two classes",
    ]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    file = tmp_path / "train.txt"
    file.write_bytes(b"\xef\xbb\xbf1.jpg 0\n2.jpg 1\n")
    assert list(read_list(file).paths) == [f"{tmp_path}/1.jpg", f"{tmp_path}/2.jpg"]


@pytest.mark.parametrize("number", [1, 2, 40])
def test_a_list_of_another_folder_is_refused_before_training(tmp_path, number):
    names = [f"{i}.jpg" for i in range(number)]
    (tmp_path / "train.txt").write_text("\n".join(names))
    with pytest.raises(UserError, match=r"none of \d+ images exists, first .*0\.jpg: paths in a"):
        list_source(f"list:{tmp_path}/train.txt")
    save_images(tmp_path, names[-1])  # others are counted when training reaches them
    assert len(list_source(f"list:{tmp_path}/train.txt")) == number


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "MOCO.KNN.TRAIN", "MOCO.KNN.TEST"])
@pytest.mark.parametrize("place", [".", "runs/1"])
def test_a_run_writes_no_images_into_its_set(make_config, tmp_path, key, place):
    save_images(tmp_path / "set" / "a", *(f"{i}.jpg" for i in range(8)))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    run = {key: str(tmp_path / "set"), "OUTPUT_DIR": str(tmp_path / "link" / place)}
    with pytest.raises(UserError, match=rf"^OUTPUT_DIR .*link.* is in {key} .*/set, and"):
        build_training_data(make_config(run))
    beside = {**run, "OUTPUT_DIR": str(tmp_path / "set of runs")}
    assert build_training_data(make_config(beside)).num_images


def test_a_list_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"list of images gone\.txt does not exist"):
        list_source("list:gone.txt")


def test_registered_datasets_give_their_images_without_labels():
    name = "toy_for_test_sources"
    DatasetCatalog.register(name, lambda: [{"file_name": f"/x/{i}.jpg"} for i in (1, 0, 1)])
    try:
        images = list_source(name)
        assert list(images.paths) == ["/x/1.jpg", "/x/0.jpg"]
        assert (images.labels, images.classes) == (None, [])
    finally:
        DatasetCatalog.remove(name)


@pytest.mark.parametrize(
    "record", [{"file_name": "a\0b.jpg"}, {"file_name": "\ud800.jpg"}, {"file_name": None}, {}]
)
def test_a_registered_image_without_a_usable_name_is_refused(record):
    name = "unusable_for_test_sources"
    DatasetCatalog.register(name, lambda: [{"file_name": "a.jpg"}, record])
    try:
        with pytest.raises(UserError, match=f"{name}.*no usable file_name.*repair its annotations"):
            list_source(name)
    finally:
        DatasetCatalog.remove(name)


def test_coco_is_registered_and_its_absence_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "coco_2017_train" in DatasetCatalog
    with pytest.raises(UserError, match=r"coco_2017_train is registered.*DETECTRON2_DATASETS"):
        list_registered("coco_2017_train")
    with pytest.raises(UserError, match=r"neither a folder nor .* did you mean 'coco_2017_train'"):
        list_source("coco_2017_trian")


def test_path_table_is_a_list_of_names():
    names = ["", "a.jpg", "ä/ö.png", os.fsdecode(b"\xff.jpg")]
    table = PathTable(names)
    assert list(table) == list(pickle.loads(pickle.dumps(table))) == names
    assert (len(table), table[-1], table[0], table[1:3]) == (4, names[3], "", names[1:3])
    for outside in (4, -5):
        with pytest.raises(IndexError):
            table[outside]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["/data/a.jpg"],
        ["a.jpg", "b.jpg"],
        ["/data/x/a.jpg", "/data/x/b.jpg", "/data/xy/a.jpg"],
        ["/data/x/a.jpg", "/elsewhere/a.jpg", "/data/x/b.jpg"],
        ["data/x/a.jpg", "/data/x/a.jpg"],
        ["/d/\udcff/a.jpg", "/d/\udcff/b.jpg", "/d/\u00e4/b.jpg"],
        [f"/data/{i % 7}/{i:050d}.jpg" for i in range(50_000)],  # of several blocks
        [*(f"/data/x/{i:050d}.jpg" for i in range(50_000)), "/data/y.jpg", "/data/x/0.jpg"],
    ],
)
def test_the_digest_is_that_of_the_names_below_their_folder(names):
    table, shared = PathTable(names), os.path.commonprefix(names)  # noqa: RUF071
    start = len(os.fsencode(shared[: shared.rfind("/") + 1]))
    plain = b"".join(os.fsencode(name)[start:] + b"\0" for name in names)
    assert table.digest() == hashlib.sha256(plain).hexdigest()
    assert table.repeated() == 0
    assert PathTable([*names, *names[:2]]).repeated() == len(names[:2])


def test_smaller_shares_lie_within_larger_ones():
    images = ImageList(PathTable(f"{i}.jpg" for i in range(200)), list(range(200)), ["a", "b"])
    assert take_fraction(images, 1) is images
    parts = {share: take_fraction(images, share) for share in (0.1, 0.5, 0.001)}
    assert [len(part) for part in parts.values()] == [20, 100, 1]
    assert set(parts[0.1].paths) < set(parts[0.5].paths)
    for part in parts.values():
        assert list(part.paths) == [f"{i}.jpg" for i in part.labels]
        assert list(part.labels) == sorted(part.labels) and part.classes == ["a", "b"]
    assert list(parts[0.1].labels) != list(range(20))  # drawn, not cut off
    assert list(take_fraction(images, 0.1).paths) == list(parts[0.1].paths)
    assert take_fraction(ImageList(images.paths, None, []), 0.5).labels is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg\n" + "x" * 20_000 + ".jpg\n", "line 2 has more than 10,000 characters"),
        ("a.jpg 0\nb.jpg 2000000000\n", "has the label 2000000000"),
        ("a.jpg 0\nb.jpg 1000000\n", "has the label 1000000"),
        ("a.jpg 0\nb.jpg " + "9" * 5000 + "\n", "has the label 99999999999999999999:"),
    ],
)
def test_a_list_that_asks_for_gigabytes_is_refused(tmp_path, content, message):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "list.txt")


def test_numbers_of_classes_may_have_zeros_in_front(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg 0\nb.jpg 0000000002\n")
    assert read_list(tmp_path / "list.txt").classes == ["0", "1", "2"]


@pytest.mark.parametrize("content", [None, "[", "{}", '{"images": [5], "annotations": []}'])
def test_annotations_of_a_registered_dataset_that_are_none(tmp_path, content):
    file = tmp_path / "a.json"
    if content is None:
        os.mkfifo(file)  # whoever opens it waits for ever
    else:
        file.write_text(content)
    name = f"registered {tmp_path}"
    register_coco_instances(name, {}, str(file), str(tmp_path))
    wanted = r"a\.json is not a regular file" if content is None else "its annotations are damaged"
    with pytest.raises(UserError, match=wanted) as raised:
        list_registered(name)
    assert "\n" not in str(raised.value)
