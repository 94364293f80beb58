"""Images that cannot be opened or have another size are found before the first step."""

import os
import re

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from moco_d2.errors import UserError
from moco_d2.transfer.preflight.image_headers import check_images

WIDTH, HEIGHT = 90, 60
ORIENTATION = 274


def sample(file, width=WIDTH, height=HEIGHT):
    return {"file_name": str(file), "width": width, "height": height}


def picture(file, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(file, **options)
    return sample(file)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif", "ppm"])
def test_sound_images_of_all_formats(tmp_path, suffix):
    sound = picture(tmp_path / f"a.{suffix}")
    check_images("mine", [sound])
    check_images("mine", [{"file_name": sound["file_name"]}])  # semantic segmentation
    with pytest.raises(UserError, match="it has width 90 and height 60, but its annotations say w"):
        check_images("mine", [sound | {"width": HEIGHT, "height": WIDTH}])


def test_a_header_behind_a_long_profile_is_read(tmp_path):
    sound = picture(tmp_path / "a.jpg", icc_profile=bytes(100_000))
    check_images("mine", [sound])
    with pytest.raises(UserError, match="width 90 and height 60"):
        check_images("mine", [sound | {"width": 91}])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_size_is_that_of_the_image_as_detectron2_turns_it(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = picture(tmp_path / f"a.{suffix}", exif=exif)
    height, width, _ = read_image(turned["file_name"]).shape
    check_images("mine", [turned | {"width": width, "height": height}])
    with pytest.raises(UserError, match=f"it has width {width} and height {height}"):
        check_images("mine", [turned | {"width": height, "height": width}])


def test_images_that_exif_turns_are_counted(tmp_path, caplog):
    """Orientation 3 keeps the size, so that nothing else can show what the annotations mean."""
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    turned = [picture(tmp_path / f"{name}.jpg", exif=exif) for name in "cb"]
    check_images("mine", [picture(tmp_path / "a.jpg")])
    assert not caplog.records
    check_images("mine", [picture(tmp_path / "a.jpg"), *turned])
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "turn or mirror 2 of its 3 images, first " in record.message
    assert "b.jpg; their annotations must be those of the turned images" in record.message


def test_exif_that_follows_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = picture(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    moved = content[:start] + content[end:last] + content[start:end] + content[last:]
    (tmp_path / "a.png").write_bytes(moved)
    height, width, _ = read_image(turned["file_name"]).shape
    assert (width, height) == (HEIGHT, WIDTH)
    check_images("mine", [turned | {"width": width, "height": height}])


def test_labels_of_another_size_or_damaged_are_found(tmp_path):
    sound = picture(tmp_path / "a.jpg") | {"sem_seg_file_name": str(tmp_path / "labels.png")}
    labels = Image.new("L", (WIDTH, HEIGHT))
    labels.save(tmp_path / "labels.png")
    check_images("mine", [sound])
    labels.resize((WIDTH, HEIGHT + 1)).save(tmp_path / "labels.png")
    with pytest.raises(UserError, match=r"but .*labels\.png has width 90 and height 61"):
        check_images("mine", [sound])
    (tmp_path / "labels.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"first .*a\.jpg \(.*labels\.png has none of the formats"):
        check_images("mine", [sound])


def test_all_unusable_images_are_counted_and_the_first_is_named(tmp_path):
    sound, cut, text, small = (picture(tmp_path / f"{name}.jpg") for name in "abcd")
    os.truncate(cut["file_name"], 200)
    (tmp_path / "c.jpg").write_text("no image")
    picture(tmp_path / "d.jpg")
    with pytest.raises(UserError) as raised:
        check_images("mine", [small | {"width": 91}, text, sound, cut])
    sentence = r"^dataset 'mine': 3 of its 4 images cannot be used, first .*/b\.jpg \(.+\); repair"
    assert re.search(sentence, str(raised.value))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_for_another_check_and_a_pipe_keeps_nobody_waiting(tmp_path):
    check_images("mine", [sample(tmp_path / "gone.jpg")])
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="is not a regular file"):
        check_images("mine", [sample(tmp_path / "pipe.jpg")])
