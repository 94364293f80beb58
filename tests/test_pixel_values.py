"""Images of more than 8 bits give the same 8 bits to pretraining, fine-tuning and inference."""

import json

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image
from support.paths import TOOLS
from support.run_loggers import restored_loggers
from support.scripts import imported
from support.toy_data import make_class_folders, make_coco
from support.toy_shards import write_shard

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.pixel_values import check_range, reading
from moco_d2.pretrain.data.build import build_training_data
from moco_d2.pretrain.data.images import read_image
from moco_d2.pretrain.data.listed_stream import ListedData
from moco_d2.pretrain.probe.knn import KNNMonitor
from moco_d2.pretrain.probe.labeled import LabeledImages, list_labeled
from moco_d2.pretrain.probe.main import evaluate_checkpoint
from moco_d2.transfer.data.registered import load_dicts, register_datasets
from moco_d2.transfer.data.semantic_mapper import build_mapper
from moco_d2.transfer.evaluation.build import TestMapper
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import Refusal
from moco_d2.untrusted_images import open_image

SCANNER = (0.0, 4095.0)
RANGED = ("MOCO.INPUT.RANGE", "(0, 4095)")

FULL = np.arange(0, 65536, 17, dtype=np.uint16).reshape(16, 241)
SIGNED = np.arange(-1024, 3072, dtype=np.int32).reshape(64, 64)


def in_both(path, value_range=()):
    """The gray values of the image in pretraining, which fine-tuning must equal."""
    pixels = np.asarray(read_image(path, value_range))
    with reading(value_range):
        for image_format in ("RGB", "BGR"):
            assert np.array_equal(detectron2_read_image(str(path), image_format), pixels)
    assert pixels.ndim == 3 and np.ptp(pixels, axis=2).max() == 0
    return pixels[..., 0]


def save(array, path, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_have_256_equal_steps(tmp_path, suffix):
    path = save(FULL, tmp_path / f"x.{suffix}")
    assert np.array_equal(in_both(path), FULL >> 8)
    assert np.array_equal(in_both(path, (0.0, 65535.0)), FULL >> 8)


def test_twelve_bits_need_their_range(tmp_path):
    path = save(FULL >> 4, tmp_path / "x.png")
    assert in_both(path).max() == 15
    assert np.array_equal(in_both(path, (0, 4095)), FULL >> 8)


def test_values_outside_of_the_range_are_black_or_white(tmp_path):
    path = save(SIGNED, tmp_path / "x.tif")
    window = in_both(path, (-160, 240))
    assert window[SIGNED <= -160].max() == 0 and window[SIGNED >= 240].min() == 255
    assert window[SIGNED == 40] == 128
    assert (np.diff(window.ravel().astype(int)) >= 0).all()


def test_float_values_need_a_range(tmp_path):
    path = save((FULL / np.float32(65536)).astype(np.float32), tmp_path / "x.tif")
    assert np.array_equal(in_both(path, (0.0, 1.0)), FULL >> 8)
    for read in (read_image, lambda p: detectron2_read_image(str(p), "BGR")):
        with pytest.raises(UserError, match=r"x\.tif has float values.*MOCO\.INPUT\.RANGE"):
            read(path)


def test_integers_beyond_sixteen_bits_need_a_range(tmp_path):
    with pytest.raises(UserError, match=r"x\.tif has values from -1024 to 3071.*MOCO\.INPUT\.R"):
        read_image(save(SIGNED, tmp_path / "x.tif"))


def test_a_value_that_is_no_number_is_refused(tmp_path):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = np.nan
    with pytest.raises(UserError, match=r"x\.tif has a value that is not finite"):
        read_image(save(values, tmp_path / "x.tif"), (0, 1))


def test_low_values_that_are_white_stay_white(tmp_path):
    white_is_zero = {262: 0}
    path = save(FULL, tmp_path / "x.tif", tiffinfo=white_is_zero)
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
    assert np.array_equal(in_both(path), 255 - (FULL >> 8))


def test_a_turned_image_is_turned_and_scaled(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(FULL, tmp_path / "x.png", exif=exif)
    turned = detectron2_read_image(str(path), "RGB")[..., 0]
    assert np.array_equal(turned, np.rot90(FULL >> 8, -1))


def test_eight_bits_are_not_scaled(tmp_path):
    gray = save(FULL.astype(np.uint8), tmp_path / "x.png")
    assert np.array_equal(in_both(gray, (0, 4095)), FULL.astype(np.uint8))


def test_a_range_is_not_ignored_for_sixteen_bit_color(tmp_path):
    import cv2

    path = tmp_path / "x.png"
    cv2.imwrite(str(path), np.stack([FULL] * 3, axis=-1))
    assert np.array_equal(in_both(path), FULL >> 8)
    with pytest.raises(UserError, match=r"x\.png has 16-bit color.*convert it to 8 bits"):
        read_image(path, (0, 4095))


def test_labels_are_not_scaled(tmp_path):
    path = save(np.arange(16, dtype=np.uint8).reshape(4, 4), tmp_path / "x.png")
    assert np.array_equal(detectron2_read_image(str(path), "L")[..., 0].ravel(), np.arange(16))


@pytest.mark.parametrize(
    "array, value_range, problem",
    [
        (FULL, (), ""),
        (FULL >> 4, (), "reach only 6.2% of their range, so at most 64 gray levels.*(0, 4095)"),
        (FULL >> 2, (), "reach only 25.0% of their range"),
        (FULL >> 4, (0, 4095), ""),
        (FULL >> 4, (0, 65535), ""),  # stated, so it is meant
        (FULL.astype(np.float32), (), "has float values"),
        (FULL.astype(np.uint8), (), ""),
        (SIGNED, (), "has values from -1024"),
    ],
)
def test_a_dataset_that_the_range_does_not_fit_is_named(tmp_path, array, value_range, problem):
    files = [str(save(array, tmp_path / f"{i}.tif")) for i in range(3)]
    (tmp_path / "damaged.tif").write_bytes(b"II*\0")
    found = check_range([*files, str(tmp_path / "damaged.tif")], value_range, dataset="cells")
    assert found == "" if not problem else found.startswith("cells: ")
    for part in problem.split(".*"):
        assert part in found


def test_hot_pixels_do_not_hide_that_the_range_does_not_fit(tmp_path):
    array = FULL >> 4
    array[3, 5] = array[9, 200] = 65535
    files = [str(save(array, tmp_path / f"{i}.tif")) for i in range(3)]
    assert "reach only 6.2% of their range" in check_range(files, (), dataset="cells")
    assert check_range(files, (0, 65535), dataset="cells") == ""


def test_twelve_bits_that_the_file_states_are_served(tmp_path, monkeypatch):
    path = save(FULL >> 4, tmp_path / "x.tif")
    opened = open_image(path)
    opened.tag_v2._tags_v2[258] = (12,)
    monkeypatch.setattr("moco_d2.pretrain.data.images.open_image", lambda _: opened)
    assert np.array_equal(np.asarray(read_image(path))[..., 0], FULL >> 8)


def twelve_bits(path):
    """Write values of 12 bits in 16 over an image, as scanners do. Return its path as PNG."""
    with Image.open(path) as image:
        values = np.asarray(image.convert("L")).astype(np.uint16) << 4
    path.unlink()
    return save(values, path.with_suffix(".png"))


@pytest.fixture
def scans(tmp_path):
    """A class folder of 12-bit images."""
    root = make_class_folders(tmp_path / "train", 4)
    for path in sorted(root.glob("*/*.png")):
        twelve_bits(path)
    return root


def pretraining(name, *overrides):
    words = ("SOLVER.IMS_PER_BATCH", "8", "DATALOADER.NUM_WORKERS", "0", *overrides)
    return load_config(
        "moco_v2_R50_200ep.yaml",
        ["DATASETS.TRAIN", f"({str(name)!r},)", "MOCO.AUGMENTATION.SIZE", "16", *words],
    )


@pytest.mark.parametrize("shards", [False, True])
def test_pretraining_reads_with_the_range_of_the_config(tmp_path, scans, shards):
    source = scans
    if shards:
        members = {f"{i}.png": f.read_bytes() for i, f in enumerate(scans.glob("*/*.png"))}
        source = f"shards:{write_shard(tmp_path / '0.tar', members)}"
    with pytest.raises(UserError, match=r"at most 64 gray levels.*MOCO\.INPUT\.RANGE"):
        build_training_data(pretraining(source))
    data = build_training_data(pretraining(source, *RANGED))
    batches = data.batches()
    query = data.views(next(batches), 0)["query"]
    batches.close()
    assert isinstance(data, ListedData) != shards
    # The mean gray of the images is about 128; without the range it would be 8, and the
    # normalized values would lie about -2.
    assert query.mean().abs() < 0.5


def test_probes_read_with_the_range(scans):
    val = make_class_folders(scans.parent / "val", 2, seed=1)
    train, _ = list_labeled(scans.parent, value_range=SCANNER)
    brightness = LabeledImages(train, lambda image: torch.tensor(np.asarray(image)), seed=0)[0][0]
    assert brightness.float().mean() > 100
    with pytest.raises(UserError, match=r"/train: the 16-bit values.*--range LOW HIGH"):
        list_labeled(scans.parent)
    monitor = KNNMonitor(str(scans), str(val), size=16, value_range=SCANNER)
    assert np.asarray(monitor.train.read(0)).mean() > 100
    with pytest.raises(UserError, match=r"MOCO\.KNN\.TRAIN .*: the 16-bit values"):
        KNNMonitor(str(scans), str(val), size=16)


def test_linear_evaluation_records_its_range(scans, tmp_path, monkeypatch):
    val = make_class_folders(tmp_path / "val", 2, seed=1)
    words = ["--data", scans, "--val", val, "--output", tmp_path / "out", "--protocol", "knn"]
    words += ["--arch", "resnet18", "--size", 16, "--workers", 0, "--device", "cpu"]

    def evaluate(*more):
        monkeypatch.setattr("sys.argv", ["linear_eval.py", "random", *map(str, words), *more])
        with imported(TOOLS / "linear_eval.py") as tool, restored_loggers():
            evaluate_checkpoint(tool.parse_args())

    with pytest.raises(UserError, match="--range LOW HIGH"):
        evaluate()
    with pytest.raises(UserError, match="--range must name two finite values, the smaller first"):
        evaluate("--range", "4095", "0")
    evaluate("--range", "0", "4095")
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["settings"]["range"] == [0, 4095]


def test_fine_tuning_reads_what_pretraining_reads(tmp_path):
    root = make_coco(tmp_path)
    for split in ("train", "test"):
        content = json.loads((root / f"{split}.json").read_text())
        for entry in content["images"]:
            entry["file_name"] = twelve_bits(root / "images" / entry["file_name"]).name
        (root / f"{split}.json").write_text(json.dumps(content))
    names = {s: f"coco:{root}/{s}.json:{root}/images" for s in ("train", "test")}
    words = ("DATASETS.TRAIN", f"({names['train']!r},)", "DATASETS.TEST", f"({names['test']!r},)")
    words = (*words, "MODEL.ROI_HEADS.NUM_CLASSES", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)")
    words = (*words, "INPUT.MIN_SIZE_TEST", "64", "INPUT.RANDOM_FLIP", "none")
    found = check_datasets(load_config("coco_FPN_1x_random.yaml", [*words]))
    assert [f.key for f in found] == ["MOCO.INPUT.RANGE"] * 2
    assert all(isinstance(f, Refusal) for f in found)
    cfg = load_config("coco_FPN_1x_random.yaml", [*words, *RANGED])
    assert check_datasets(cfg) == []
    for split, mapper in (("train", build_mapper(cfg)), ("test", TestMapper(cfg))):
        register_datasets((names[split],))
        sample = load_dicts(names[split])[0]
        expected = np.asarray(read_image(sample["file_name"], SCANNER))
        assert expected.mean() > 100
        assert np.array_equal(mapper(sample)["image"].permute(1, 2, 0), expected)
