"""Image files of strangers through every door that opens one: no other program is started, none
takes gigabytes, none keeps a run waiting, and the answer is one sentence.
"""

import functools
import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation.instances2dict import instances2dict
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image as detectron2_read_image
from detectron2.modeling import build_model
from detectron2.utils.visualizer import Visualizer
from PIL import EpsImagePlugin, Image, ImageFile
from support.commands import run_python
from support.small_network import SmallNetwork
from support.toy_data import SLIM_DETECTOR, make_voc
from support.toy_shards import write_shard
from torchvision.transforms.v2.functional import pil_to_tensor

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.pretrain.data.image_list import ImageList, PathTable
from moco_d2.pretrain.data.images import (
    UnreadableImageError,
    UnreadableImages,
    decode_pixels,
    read_image,
    read_pixels,
)
from moco_d2.pretrain.data.listed_stream import ListedSamples
from moco_d2.pretrain.data.samples import read_shard
from moco_d2.pretrain.data.stream import ViewMaker
from moco_d2.pretrain.probe.knn import extract_features
from moco_d2.pretrain.probe.labeled import LabeledImages
from moco_d2.pretrain.probe.neighbor_sheet import neighbor_sheet
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.data.semantic_mapper import SemanticMapper, read_labels
from moco_d2.transfer.data.training_data import TrainingBatches, build_training_batches
from moco_d2.transfer.evaluation.build import TestMapper
from moco_d2.transfer.evaluation.semantic import MeanIoUEvaluator
from moco_d2.transfer.inference.predict import draw_predictions
from moco_d2.transfer.inference.side_by_side import draw_side_by_side
from moco_d2.transfer.trainer import Trainer
from moco_d2.untrusted_images import FORMATS, MAX_PIXELS, open_image

POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"(%pipe%touch owned) (w) file\nshowpage\n%%EOF\n"
)
SIDE = 96


# What a stranger may have called an image.


def _png_of(width: int, height: int) -> bytes:
    """A few bytes that say how large they are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def postscript(file: Path) -> None:
    file.write_bytes(POSTSCRIPT)


def large(file: Path) -> None:
    """More pixels than are read, and less than Pillow's limit."""
    file.write_bytes(_png_of(12_000, 12_000))


def long(file: Path) -> None:
    """Sound, and then a hole up to a terabyte."""
    Image.new("L", (SIDE, SIDE)).save(file, "PNG")
    os.truncate(file, 1 << 40)


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def giant(file: Path) -> None:
    """More pixels than Pillow's own limit."""
    file.write_bytes(_png_of(100_000, 100_000))


def _jpeg(**options: object) -> bytes:
    content = io.BytesIO()
    Image.new("L", (SIDE, SIDE), 128).save(content, "JPEG", **options)
    return content.getvalue()


def scans(file: Path, count: int = 1000) -> None:
    """A progressive JPEG whose last scan comes again and again."""
    content = _jpeg(progressive=True)
    scan = content[content.rfind(b"\xff\xda") : -2]
    file.write_bytes(content[:-2] + scan * count + b"\xff\xd9")


def exifs(file: Path, count: int = 101) -> None:
    """Segments of EXIF, of which each costs what all before it weigh."""
    content = _jpeg()
    file.write_bytes(content[:2] + b"\xff\xe1\0\x09Exif\0\0x" * count + content[2:])


SENTENCES = {
    postscript: "has none of the formats that are read, JPEG, PNG",
    large: r"12000 x 12000 pixels, and at most 100,000,000 are read",
    giant: r"10,000,000,000 pixels, and at most 100,000,000 are read",
    scans: "has more than 100 scans, and no more are read",
    exifs: "has more than 100 EXIF segments, and no more are read",
    long: r"1,099,511,627,776 bytes, and at most 400,000,000 are read",
    pipe: "is (no|not a regular) file",
}


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A file that is there once anybody has started Ghostscript."""
    marker, folder = tmp_path / "ghostscript-was-started", tmp_path / "bin"
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\n: > {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return marker


def test_pillow_by_itself_starts_ghostscript_over_a_jpg(started, tmp_path):
    """What all this is for; and who opens images outside Detectron2 still can."""
    postscript(tmp_path / "x.jpg")
    with pytest.raises(OSError), Image.open(tmp_path / "x.jpg") as image:
        assert image.format == "EPS"
        image.load()
    assert started.exists()


# The doors of pretraining. Each gets a file and opens it.


def _listed(file: Path) -> ImageList:
    return ImageList(PathTable([str(file)]), [0], ["a"])


def _class_folder(file: Path) -> None:
    views = ViewMaker(torch.nn.Identity(), names=("query",), seed=0)
    ListedSamples(_listed(file), views)[0, 0]


def _shard(file: Path) -> None:
    shard = write_shard(file.parent / "0.tar", {"a.jpg": file.read_bytes()})
    (image,) = read_shard(str(shard))
    decode_pixels(image.content, image.name)


def _knn(file: Path) -> None:
    extract_features(SmallNetwork(4), _listed(file), size=8)


def _neighbors(file: Path) -> None:
    features = torch.ones(1, 4), torch.zeros(1, dtype=torch.long)
    neighbor_sheet(_listed(file), _listed(file), features, features, queries=1, title="")


PRETRAINING = {
    "read_image": read_image,
    "read_pixels": read_pixels,
    "class folder": _class_folder,
    "shard": _shard,
    "kNN": _knn,
    "linear evaluation": lambda file: LabeledImages(_listed(file), pil_to_tensor, seed=0)[0, 0],
    "neighbors": _neighbors,
}


# Of fine-tuning.


def _dict(file: Path) -> dict:
    return {"file_name": str(file), "width": SIDE, "height": SIDE, "annotations": []}


def _with_labels(file: Path) -> dict:
    """A sound image, whose labels are `file`."""
    image = file.with_name("sound.png")
    Image.new("RGB", (SIDE, SIDE)).save(image)
    return {"file_name": str(image), "sem_seg_file_name": str(file)}


@functools.cache
def _loaded_config():
    return load_config(
        "voc_C4_random.yaml", [*SLIM_DETECTOR, "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"]
    )


def _config():
    cfg = _loaded_config().clone()
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def _voc_with(file: Path, split: str):
    """A config whose images of a split are all that file."""
    root = make_voc(file.parent / "VOC2007", images=2)
    for image in (root / "JPEGImages").glob(f"{split}*.jpg"):
        image.unlink()
        os.link(file, image)
    cfg = _config()
    cfg.DATASETS.TRAIN = (f"voc:{root}:trainval",)
    cfg.DATASETS.TEST = (f"voc:{root}:test",)
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    return cfg


def _training(file: Path) -> None:
    next(iter(build_training_batches(_voc_with(file, "trainval"))))


def _semantic_training(file: Path) -> None:
    SemanticMapper([], image_format="RGB", num_classes=21, ignore_value=255)(_with_labels(file))


def _grouping(file: Path) -> None:
    order = {"build_sampler": None, "batch_size": 1, "seed": 0}
    TrainingBatches([{"file_name": str(file)}], mapper=dict, **order)


class _Anything(torch.nn.Module):
    def forward(self, inputs):
        return [{} for _ in inputs]


class _Counts:
    def reset(self) -> None: ...

    def process(self, inputs, outputs) -> None: ...

    def evaluate(self) -> dict:
        return {}


def _evaluation(file: Path, workers: int = 0) -> None:
    cfg = _voc_with(file, "test")
    cfg.DATALOADER.NUM_WORKERS = workers
    Trainer.test(cfg, _Anything(), [_Counts()])


def _label_evaluation(file: Path) -> None:
    sample = _with_labels(file)
    name = f"labels {file}"
    DatasetCatalog.register(name, lambda: [sample])
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255)
    evaluator = MeanIoUEvaluator(name, distributed=False)
    evaluator.reset()
    evaluator.process([sample], [{"sem_seg": torch.zeros(2, SIDE, SIDE)}])


def _finished(folder: Path, cfg) -> Path:
    folder.mkdir(exist_ok=True)
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(folder), str(folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return folder


def _prediction(file: Path) -> None:
    cfg = _config()
    _finished(file.parent / "run", cfg)
    draw_predictions(cfg, [file])


def _side_by_side(file: Path) -> None:
    cfg = _voc_with(file, "test")
    draw_side_by_side({"run": _finished(file.parent / "run", cfg)}, file.parent / "picture.png")


FINE_TUNING = {
    "training": _training,
    "labels": lambda file: read_labels(str(file)),
    "labels in training": _semantic_training,
    "grouping": _grouping,
    "test images": lambda file: TestMapper(_config())(_dict(file)),
    "evaluation": _evaluation,
    "evaluation in workers": lambda file: _evaluation(file, workers=1),
    "labels in evaluation": _label_evaluation,
    "--predict": _prediction,
    "side by side": _side_by_side,
}
DOORS = PRETRAINING | FINE_TUNING


@pytest.mark.parametrize("make", SENTENCES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("door", DOORS)
def test_what_no_image_should_be_is_one_sentence_at_every_door(started, tmp_path, door, make):
    if door == "shard" and make in (long, pipe):
        pytest.skip("no member of a shard is either")
    file = tmp_path / "x.jpg"
    make(file)
    with pytest.raises(UserError) as raised:
        DOORS[door](file)
    assert not started.exists()
    said = str(raised.value)
    sentence = SENTENCES[make]
    if (door, make) == ("--predict", pipe):
        sentence = "does not exist"
    assert re.search(sentence, said), said
    assert re.search(r"x\.jpg|a\.jpg|test00\d\.jpg|trainval00\d\.jpg", said), said
    assert "\n" not in said and "Traceback" not in said


def _cityscapes_label(file: Path) -> None:
    instances2dict([str(file)])


# Detectron2's own: a script that uses Detectron2 with our configs, and nothing else of ours.

DETECTRON2 = {
    "read_image": lambda file: detectron2_read_image(str(file), "BGR"),
    "DatasetMapper": lambda file: DatasetMapper(_config(), is_train=True)(_dict(file)),
    "labels": lambda file: DatasetMapper(is_train=True, augmentations=[], image_format="RGB")(
        _with_labels(file)
    ),
    "visualizer": lambda file: Visualizer(
        np.zeros((SIDE, SIDE, 3), np.uint8), MetadataCatalog.get("nothing")
    ).draw_dataset_dict({"sem_seg_file_name": str(file)}),
    "cityscapes": _cityscapes_label,
}


@pytest.mark.parametrize("make", SENTENCES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("door", DETECTRON2)
def test_detectron2_opens_no_other_file_than_we_do(started, tmp_path, door, make):
    if (door, make) == ("visualizer", pipe):
        pytest.skip("no door of a run: Detectron2 opens it for whoever draws a dataset")
    file = tmp_path / "x.jpg"
    make(file)
    with pytest.raises((OSError, Image.DecompressionBombError)) as raised:
        DETECTRON2[door](file)
    assert re.search(SENTENCES[make], str(raised.value))
    assert not started.exists()


# What each format of ours is for, and that others are not asked.


@pytest.mark.parametrize("format", FORMATS)
def test_formats_that_are_read(tmp_path, format):
    expected = Image.new("RGB", (6, 5), (9, 9, 9))
    expected.save(tmp_path / "x", format)
    with open_image(tmp_path / "x") as image, Image.open(tmp_path / "x") as theirs:
        assert (image.format, image.size) == (format, (6, 5))
        assert np.array_equal(image.convert("RGB"), theirs.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "x"), expected) or format == "WEBP"


def test_a_jpeg_of_several_pictures_gives_its_first(tmp_path):
    first, second = (Image.new("RGB", (8, 8), (v, v, v)) for v in (10, 200))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    assert np.asarray(read_image(tmp_path / "x.jpg")).max() < 20


def test_no_other_reader_is_asked(tmp_path, monkeypatch):
    """Those of Pillow that start programs, and those that any package has registered."""
    asked = []

    class Asked(ImageFile.ImageFile):
        format = "ANY"

        def _open(self) -> None:
            asked.append(self.fp)
            raise SyntaxError

    Image.init()
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    Image.register_open("ANY", Asked)
    for name in set(Image.OPEN) - set(FORMATS):
        Image.OPEN[name] = (Asked, None)
    (tmp_path / "x.jpg").write_bytes(b"no image at all, of no kind")
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / "x.jpg")
    with pytest.raises(OSError):
        detectron2_read_image(str(tmp_path / "x.jpg"))
    assert asked == []
    with pytest.raises(OSError):
        Image.open(tmp_path / "x.jpg")
    assert len(asked) > 10


@pytest.mark.parametrize("format", ["GIF", "ICO", "TGA", "PCX", "SGI"])
def test_who_opens_images_elsewhere_is_left_alone(tmp_path, format):
    Image.new("L", (16, 16)).save(tmp_path / "x", format)
    assert Image.open(tmp_path / "x").format == format
    assert Image.open(str(tmp_path / "x"), "r", [format]).format == format
    with pytest.raises(ValueError, match="bad mode"):
        Image.open(tmp_path / "x", "w")


def test_scans_are_counted_where_they_are(tmp_path):
    """Not in what else a file holds: a film behind the picture, a preview in a segment."""
    file = tmp_path / "x.jpg"
    scans(file, 90)
    few = file.read_bytes()
    preview = b"\xff\xe5\x10\x02" + b"\xff\xda" * 0x800
    for content in (few, few + b"\xff\xda" * 1000, few[:2] + preview + few[2:]):
        file.write_bytes(content)
        for source in (file, str(file), io.BytesIO(content)):
            assert open_image(source).convert("RGB").size == (SIDE, SIDE)
    # Fill bytes before a marker; and a file that is not progressive, with a component a scan.
    last = few[few.rfind(b"\xff\xda") : -2]
    frame = b"\xff\xd8\xff\xc0\0\x11\x08\0\x60\0\x60\x03" + bytes(9)
    one = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    for content in (few[:-2] + (b"\xff\xff" + last) * 100, frame + one * 101):
        with pytest.raises(Image.DecompressionBombError, match="more than 100 scans"):
            open_image(io.BytesIO(content))
    exifs(file, 100)
    assert read_image(file).size == (SIDE, SIDE)


def test_the_reason_is_said_where_an_image_is_skipped(tmp_path, caplog):
    names = ("a.jpg", "b.jpg")
    Image.new("L", (SIDE, SIDE)).save(tmp_path / names[0])
    large(tmp_path / names[1])
    paths = PathTable([str(tmp_path / name) for name in names])
    views = ViewMaker(torch.nn.Identity(), names=("query",), seed=0)
    sample = ListedSamples(ImageList(paths, [0, 0], ["a"]), views)[0, 1]
    with pytest.raises(UserError, match=r"^1 of 2 images cannot be read .*MAX_UNREADABLE$"):
        UnreadableImages(0, num_images=2).add(sample["unreadable"], seen=2)
    assert re.search(r"b\.jpg \(.* 12000 x 12000 pixels, and at most", caplog.text)


# Memory.


def test_the_limit_is_where_it_is_said_to_be(tmp_path, monkeypatch):
    file = tmp_path / "x.png"
    file.write_bytes(_png_of(10_000, 10_000))
    with open_image(file) as image:
        assert image.width * image.height == MAX_PIXELS
    file.write_bytes(_png_of(10_001, 10_000))
    with pytest.raises(Image.DecompressionBombError, match=f"{file} has 10001 x 10000 pixels"):
        open_image(file)
    Image.new("L", (8, 8)).save(file)
    size = file.stat().st_size
    monkeypatch.setattr("moco_d2.untrusted_images.MAX_FILE_BYTES", size)
    assert open_image(io.BytesIO(file.read_bytes())).size == (8, 8)
    monkeypatch.setattr("moco_d2.untrusted_images.MAX_FILE_BYTES", size - 1)
    for source in (file, str(file), io.BytesIO(file.read_bytes())):
        with pytest.raises(OSError, match=f"has {size} bytes"):
            open_image(source)


def _tiled_tiff(file: Path, side: int) -> None:
    """A small image, whose one tile is not."""
    data = zlib.compress(bytes(side * side), 1)
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 325: len(data)}
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[324] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    header = b"II*\0" + struct.pack("<IH", 8, len(tags))
    file.write_bytes(header + entries + struct.pack("<I", 0) + data)


def test_a_tile_counts_as_what_it_decodes_to(tmp_path):
    _tiled_tiff(tmp_path / "x.tif", 256)
    assert read_image(tmp_path / "x.tif").size == (64, 64)
    _tiled_tiff(tmp_path / "x.tif", 10_016)
    with pytest.raises(UnreadableImageError, match="tiles of 10016 x 10016 pixels"):
        read_image(tmp_path / "x.tif")


def test_strips_are_bounded(tmp_path, monkeypatch):
    Image.new("L", (16, 9)).save(tmp_path / "x.tif", strip_size=1)
    assert read_image(tmp_path / "x.tif").size == (16, 9)
    monkeypatch.setattr("moco_d2.untrusted_images.MAX_STRIPS", 0)
    with pytest.raises(UnreadableImageError, match=r"x\.tif has \d+ strips, and at most 0"):
        read_image(tmp_path / "x.tif")


def test_an_image_takes_no_more_memory_than_is_stated(tmp_path):
    """16 bytes a pixel, in a process of its own."""
    side = 3000
    exif = Image.Exif()
    exif[0x0112] = 6  # Detectron2 turns it
    Image.new("I;16", (side, side), 40_000).save(tmp_path / "gray.png", compress_level=1)
    Image.new("RGBA", (side, side)).save(tmp_path / "alpha.png", compress_level=1)
    Image.new("RGB", (side, side)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (8, 8)).save(tmp_path / "small.jpg")
    code = (
        "import sys, moco_d2\n"
        "from moco_d2.pretrain.data.images import read_image as ours\n"
        "from detectron2.data.detection_utils import read_image as theirs\n"
        "def memory(name):\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith(name)) * 1024\n"
        "for name in sys.argv[1:]:\n"
        "    open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak starts anew
        "    before = memory('VmRSS')\n"
        "    image = theirs(name, 'BGR') if 'turned' in name else ours(name)\n"
        "    print(memory('VmHWM') - before)\n"
        "    del image\n"
    )
    names = ("small.jpg", "gray.png", "alpha.png", "turned.jpg")
    ended = run_python("-c", code, *(tmp_path / name for name in names))
    assert ended.returncode == 0, ended.stderr
    taken = dict(zip(names, map(int, ended.stdout.split()), strict=True))
    for name in names[1:]:
        assert 3 * side**2 < taken[name] < 16 * side**2 + (8 << 20), taken
