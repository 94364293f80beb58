import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from moco_d2.engine.loader import build_loader
from moco_d2.errors import UserError
from moco_d2.pretrain.augmentation.views import build_augmentation
from moco_d2.pretrain.data.images import (
    Skipped,
    UnreadableImageError,
    UnreadableImages,
    decode_image,
    decode_pixels,
    read_image,
    read_pixels,
)

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0, 1.004, ... 255 in 8 bits


def assert_same_pixels(path) -> None:
    """Training gets the pixels that Pillow decodes."""
    pixels = read_pixels(path)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(read_image(path)))
    assert torch.equal(decode_pixels(path.read_bytes(), "x"), pixels)


def noise(size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (65, 50)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"keep_rgb": True},
        {"restart_marker_rows": 1},
    ],
    ids=str,
)
def test_every_kind_of_jpeg_has_pillows_pixels(tmp_path, size, options):
    for mode in ("RGB", "L", "CMYK"):
        noise(size).convert(mode).save(tmp_path / "x.jpg", **options)
        assert_same_pixels(tmp_path / "x.jpg")


def test_without_torchvisions_decoder_pillow_decodes(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("torchvision was built without libjpeg")

    noise((65, 50)).save(tmp_path / "x.jpg")
    pixels = read_pixels(tmp_path / "x.jpg")
    monkeypatch.setattr("torchvision.io.decode_jpeg", fails)
    assert torch.equal(read_pixels(tmp_path / "x.jpg"), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
@pytest.mark.parametrize("size", [(1, 1), (5, 4)])
def test_every_kind_of_picture_is_read_and_augmented(tmp_path, mode, size):
    name = "x.tif" if mode in ("CMYK", "I") else "x.png"
    Image.new(mode, size).save(tmp_path / name)
    image = read_image(str(tmp_path / name))
    assert (image.mode, image.size) == ("RGB", size)
    assert_same_pixels(tmp_path / name)
    for version in ("v1", "v2"):
        for decoded in (image, read_pixels(tmp_path / name)):
            assert build_augmentation(version, size=8)(decoded).shape == (3, 8, 8)


def test_colors_of_every_kind_of_picture(tmp_path):
    """One dull red in many encodings."""
    red = (200, 40, 30)
    picture = Image.new("RGB", (16, 16), red)
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    transparent = picture.copy()
    transparent.putalpha(Image.new("L", (16, 16), 10))
    ink = Image.merge("CMYK", [Image.new("L", (16, 16), 255 - v) for v in (*red, 255)])
    for image, name in (
        (palette, "palette.png"),
        (transparent, "transparent.png"),
        (ink, "ink.jpg"),
        (ink, "ink.tif"),
        (picture, "x.webp"),
    ):
        options = {"quality": 100} if name.endswith((".jpg", ".webp")) else {}
        image.save(tmp_path / name, **options)
        found = np.asarray(read_image(tmp_path / name))[8, 8].astype(int)
        assert abs(found - red).max() <= 6, name  # lossy formats


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_cut_off(tmp_path, extension):
    Image.fromarray(RAMP).save(tmp_path / f"x.{extension}")
    found = np.asarray(read_image(tmp_path / f"x.{extension}"))
    assert np.array_equal(found, np.stack([RAMP >> 8] * 3, axis=-1))


def test_32_bit_integers_hold_sixteen_bit_pictures(tmp_path):
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "x.tif")
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.tif"))[..., 0], RAMP >> 8)


def test_exif_orientation_is_left_alone_as_in_the_official_code(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.new("RGB", (6, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (6, 4)


def test_a_file_that_does_not_decode_is_named(tmp_path):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"<html>404</html>")
    for read, decode in ((read_image, decode_image), (read_pixels, decode_pixels)):
        damaged.write_bytes(b"<html>404</html>")
        with pytest.raises(UnreadableImageError, match=f"image {damaged} cannot be read"):
            read(damaged)
        noise((64, 64)).save(damaged)
        damaged.write_bytes(damaged.read_bytes()[:-200])
        with pytest.raises(
            UnreadableImageError, match=f"image {damaged} cannot be read .*is truncated"
        ):
            read(damaged)
        with pytest.raises(UnreadableImageError, match=r"image gone\.jpg cannot be read"):
            read("gone.jpg")
        with pytest.raises(UnreadableImageError, match=r"image a\.tar/b\.jpg cannot be read"):
            decode(damaged.read_bytes(), "a.tar/b.jpg")


def test_a_picture_too_large_to_be_one_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"bomb\.png cannot be read"):
        read_image(tmp_path / "bomb.png")


def test_bytes_are_decoded_as_files_are(tmp_path):
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "PNG")
    (tmp_path / "x.png").write_bytes(file.getvalue())
    found = decode_image(file.getvalue(), "x"), read_image(tmp_path / "x.png")
    assert np.array_equal(*map(np.asarray, found))


def test_each_unreadable_image_is_logged_and_counted_once(caplog):
    unreadable = UnreadableImages(0.01, num_images=100_000)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            unreadable.add([Skipped("a.jpg", "no image"), Skipped("b.jpg")], seen=8)
    assert len(unreadable) == 2 and unreadable.seen == 400
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "a.jpg (no image)",
        "b.jpg",
    ]


@pytest.mark.parametrize(
    "limit, num_images, seen, allowed",
    [
        (0.01, 100_000, 8, 10),  # of the 1000 that count at least
        (0.01, 100_000, 20_000, 200),  # of those seen
        (0.01, 3_000, 20_000, 30),  # of the dataset
        (0.10, 24, 8, 2),
        (0.0, 24, 8, 0),
    ],
)
def test_more_than_the_allowed_share_stops_the_run(limit, num_images, seen, allowed):
    unreadable = UnreadableImages(limit, num_images=num_images)
    unreadable.add([Skipped(f"{i}.jpg") for i in range(allowed)], seen=seen)
    with pytest.raises(UserError, match=rf"^{allowed + 1} of \d+ .*\.jpg.*MOCO\.DATA\.MAX_UNREAD"):
        unreadable.add([Skipped("last.jpg")], seen=0)


def test_a_run_may_skip_every_unreadable_image_it_is_told_to():
    UnreadableImages(1.0, num_images=3).add(map(Skipped, "abc"), seen=3)


def test_colors_of_half_the_height_have_pillows_pixels(tmp_path):
    """As photos of 4:2:2 that are turned by a quarter without a loss; torchvision's differ."""
    file = io.BytesIO()
    noise((64, 64)).save(file, "JPEG", subsampling="4:2:2")
    luma, turned = bytes([1, 0x21, 0]), bytes([1, 0x12, 0])  # as many blocks in another order
    assert file.getvalue().count(luma) == 1
    (tmp_path / "x.jpg").write_bytes(file.getvalue().replace(luma, turned))
    assert_same_pixels(tmp_path / "x.jpg")


def test_flaws_that_decoders_pass_over_do_not_write_to_the_terminal(capfd):
    """libjpeg's lines have no name of a file."""
    file = io.BytesIO()
    noise((40, 30)).save(file, "JPEG")
    flawed = file.getvalue()[:-2] + bytes(range(64)) + file.getvalue()[-2:]
    decode_pixels(flawed, "flawed.jpg")
    assert "extraneous bytes" in capfd.readouterr().err  # it is such a flaw

    class Flawed(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return decode_pixels(flawed, "flawed.jpg")

    assert len(list(build_loader(Flawed(), num_workers=1))) == 2
    assert "extraneous" not in capfd.readouterr().err
