"""A folder of images gives those that a person means, and the log says what was passed over."""

import logging
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from moco_d2.errors import UserError
from moco_d2.pretrain.data.folders import find_images
from moco_d2.pretrain.data.image_list import same_files
from moco_d2.pretrain.data.images import Skipped, UnreadableImages, read_image
from moco_d2.pretrain.data.sources import list_images, list_source


def save_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


@pytest.fixture
def root(tmp_path):
    """Two classes of two images."""
    for name in ("a", "b"):
        save_images(tmp_path / "set" / name, "1.jpg", "2.jpg")
    return tmp_path / "set"


@pytest.fixture
def log(caplog):
    # Detectron2's setup_logger, run by whichever test, cuts loggers off from the one pytest reads.
    caplog.set_level(logging.INFO)
    return caplog


def names(root):
    images = list_images(root)
    return [str(Path(p).relative_to(root)) for p in images.paths], images.classes


ALL = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]


@pytest.mark.parametrize(
    "folder, file, reason",
    [
        (".ipynb_checkpoints", "1-checkpoint.jpg", "hidden files and folders"),
        ("a/.ipynb_checkpoints", "1-checkpoint.jpg", "hidden files and folders"),
        ("a", "._1.jpg", "hidden files and folders"),
        (".", ".DS_Store.png", "hidden files and folders"),
        ("@eaDir/1.jpg", "SYNOPHOTO_THUMB_M.jpg", "folders of an operating system"),
        ("a/@eaDir/1.jpg", "SYNOPHOTO_THUMB_M.jpg", "folders of an operating system"),
        ("__MACOSX/a", "1.jpg", "folders of an operating system"),
        ("lost+found", "1.jpg", "folders of an operating system"),
    ],
)
def test_files_of_other_programs_are_passed_over(root, log, folder, file, reason):
    save_images(root / folder, file)
    assert names(root) == (ALL, ["a", "b"])
    assert f"passed over in {root}: 1 {reason} (first {root}/" in log.text


def test_the_log_has_all_numbers(root, log):
    (root / "a" / "notes.txt").write_text("x")
    (root / "b" / "x.heic").write_bytes(b"x")
    (root / "b" / "y.HEIC").write_bytes(b"x")
    (root / "empty").mkdir()
    list_source(str(root))
    assert f"{root}: 4 images, 2 classes" in log.text
    assert "3 files without the suffix of an image .heic, .txt (first" in log.text
    assert f"1 folders without images (first {root}/empty)" in log.text


@pytest.mark.parametrize(
    "name", ["x.gif", "x.jfif", "x.jpe", "x.pgm", "x.pbm", "x.pnm", "x.GIF", "x.JPEG"]
)
def test_every_format_that_is_read_is_found(root, name):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM"}
    suffix = name.partition(".")[2].lower()
    mode = "1" if suffix == "pbm" else "L"
    Image.new(mode, (8, 8)).save(root / "a" / name, kind.get(suffix))
    found, _ = names(root)
    assert f"a/{name}" in found
    assert read_image(root / "a" / name).size == (8, 8)


def test_linked_folders_and_files_are_read(root, tmp_path, log):
    save_images(tmp_path / "elsewhere" / "deep", "3.jpg")
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "other")
    save_images(tmp_path / "other", "4.jpg")
    (root / "b" / "5.jpg").symlink_to(root / "a" / "1.jpg")
    assert names(root) == (
        ["a/1.jpg", "a/2.jpg", "a/more/deep/3.jpg", "b/1.jpg", "b/2.jpg", "b/5.jpg", "c/4.jpg"],
        ["a", "b", "c"],
    )
    assert "passed over" not in log.text


def test_a_loop_of_links_ends(root, log):
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "here").symlink_to(".")
    (root / "b" / "loop").symlink_to("loop")
    assert names(root) == (ALL, ["a", "b"])
    assert "2 folders that are linked a second time" in log.text


@pytest.mark.parametrize("first", ["0", "c"])
def test_a_second_name_of_a_class_is_no_second_class(root, first, log):
    """Whether the link comes before the class or after it."""
    (root / first).symlink_to(root / "b")
    (root / "a" / "b").symlink_to(root / "b")
    assert names(root) == (ALL, ["a", "b"])
    assert "2 folders that are linked a second time" in log.text


@pytest.mark.parametrize(
    "train, held_out",
    [
        ("train", "val"),
        ("train2017", "val2017"),
        ("Training", "Testing"),
        ("trainset", "testset"),
        ("train", "validation"),
        ("training_set", "test_set"),
        ("train.X1", "val.X"),
        ("seg_train", "seg_test"),
        ("train_images", "val_images"),
        ("train_data", "test_data"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("Train", "Validate"),
        ("train", "holdout"),
        ("TrainImages", "TestImages"),
        ("train_1", "held_out_1"),
    ],
)
@pytest.mark.parametrize("deep", ["", "ILSVRC/Data/CLS-LOC"])
def test_splits_are_no_classes(tmp_path, root, train, held_out, deep):
    for name in (train, held_out):
        shutil.copytree(root, tmp_path / "all" / deep / name)
    with pytest.raises(UserError, match=f"has the splits {train} and {held_out}.*/{train}, or "):
        list_source(str(tmp_path / "all"))
    assert len(list_source(str(tmp_path / "all" / deep / train))) == 4


def test_a_class_may_be_called_train(root):
    save_images(root / "train", "1.jpg")  # the vehicle
    save_images(root / "evaluation_board", "1.jpg")
    assert len(list_images(root)) == 6


@pytest.mark.parametrize(
    "vehicles",
    [("train", "test_tube"), ("bullet_train", "test_tube"), ("trainer", "valley"), ("test", "val")],
)
def test_classes_that_only_begin_like_splits_are_classes(root, vehicles):
    for name in vehicles:
        save_images(root / name, "1.jpg")
    assert len(list_images(root)) == 6


def test_names_that_may_be_splits_are_in_the_log(root, log):
    save_images(root / "train", "1.jpg")
    save_images(root / "val_blurred", "1.jpg")
    list_images(root)
    assert f"{root} has train and val_blurred: if they are splits, name one of them" in log.text


@pytest.mark.parametrize(
    "images, masks",
    [
        ("JPEGImages", "SegmentationClass"),
        ("JPEGImages", "SegmentationObject"),
        ("leftImg8bit", "gtFine"),
        ("images", "masks"),
        ("images", "labels"),
        ("train_images", "train_masks"),
        ("rgb", "depth"),
    ],
)
@pytest.mark.parametrize("deep", ["", "VOC2012"])
def test_masks_are_no_images(tmp_path, images, masks, deep):
    folder = tmp_path / "all" / deep
    save_images(folder / images / "aachen", "1.png")
    (folder / masks).mkdir()
    (folder / masks / "1.txt").write_text("0 .5 .5 .1 .1")
    assert len(list_images(tmp_path / "all")) == 1
    save_images(folder / masks / "aachen", "1.png", "2.png")
    with pytest.raises(UserError, match=f"has {masks} beside {images}, so its 2 masks would be"):
        list_images(tmp_path / "all")
    assert len(list_images(folder / images)) == 1


def test_a_class_that_cannot_be_read_is_refused(root, monkeypatch):
    def scandir(folder):
        if str(folder).endswith("/b"):
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder)

    listing = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"set/b cannot be read \(Permission denied\)"):
        list_images(root)


def test_links_to_nothing_in_a_flat_folder_are_counted(tmp_path, log):
    save_images(tmp_path / "flat", "1.jpg")
    (tmp_path / "flat" / "2.jpg").symlink_to("absent.jpg")
    assert len(list_images(tmp_path / "flat")) == 1
    assert f"1 links to nothing, pipes and other special files (first {tmp_path}/flat" in log.text


def test_a_folder_of_nothing_but_hidden_files_says_so(tmp_path):
    save_images(tmp_path / "__MACOSX", "1.jpg")
    save_images(tmp_path / ".git", "1.jpg")
    with pytest.raises(UserError, match=r"no images in .*passed over: 1 hidden .*; 1 folders of"):
        list_images(tmp_path)


def test_hidden_files_in_a_flat_folder(tmp_path):
    save_images(tmp_path / "set", "1.jpg", "._1.jpg")
    assert find_images(str(tmp_path / "set")).flat == [str(tmp_path / "set/1.jpg")]


def test_names_that_are_not_utf8_are_read_and_logged(tmp_path, monkeypatch):
    for folder in (b"caf\xe9", b"b"):
        path = os.fsencode(tmp_path) + b"/set/" + folder
        os.makedirs(path)
        with open(path + b"/\xe9.png", "wb") as file:
            Image.new("RGB", (8, 8)).save(file, "PNG")
    Path(os.fsdecode(path + b"/\xe9.txt")).write_text("")
    monkeypatch.setattr(logging, "raiseExceptions", True)
    log = logging.FileHandler(tmp_path / "log.txt", encoding="utf-8")
    log.setLevel(logging.WARNING)
    monkeypatch.setattr(log, "handleError", lambda record: pytest.fail(f"not logged: {record}"))
    logger = logging.getLogger("moco_d2.pretrain.data")
    logger.addHandler(log)
    try:
        images = list_images(tmp_path / "set")
        UnreadableImages(1.0, num_images=2).add([Skipped(images.paths[0], "damaged")], seen=2)
    finally:
        logger.removeHandler(log)
    assert [read_image(path).size for path in images.paths] == [(8, 8)] * 2
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["passed", "skipped,"]


def test_the_same_files_are_found_under_other_names(root, tmp_path):
    save_images(tmp_path / "x" / "a", "1.jpg")
    (tmp_path / "x" / "a" / "link.jpg").symlink_to(root / "a" / "2.jpg")
    (tmp_path / "x" / "a" / "hard.jpg").hardlink_to(root / "b" / "1.jpg")
    (tmp_path / "x" / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "b" / "gone.jpg").symlink_to("nowhere.jpg")
    both = same_files(list_images(tmp_path / "x"), list_images(root))
    assert [Path(p).name for p in both] == ["hard.jpg", "link.jpg"]
