"""Drawing detections of a finished run, through the function and through the command."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from support.paths import TOOLS
from support.toy_data import make_voc

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.inference.detector import load_detector
from moco_d2.transfer.inference.predict import Predictor, draw, draw_predictions, split_words

TOOL = TOOLS / "train_net.py"


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    """model_final.pth of each config, with random weights: what they find does not matter."""

    def make(config):
        file = tmp_path_factory.mktemp("run") / "model_final.pth"
        model = build_model(load_config(config, [*tiny, *ONE_PROCESS]))
        torch.save({"model": model.state_dict(), "iteration": 1}, file)
        return str(file)

    return {config: make(config) for config in ("voc_C4_random.yaml", "coco_FPN_1x_random.yaml")}


ONE_PROCESS = ("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN")


@pytest.fixture
def finished(tiny, words, weights, voc, coco, tmp_path):
    """Overrides, as words, that describe a finished run of a config."""

    def overrides(config):
        return [
            *tiny,
            *words(voc if config.startswith("voc") else coco),
            *ONE_PROCESS,
            *("MODEL.WEIGHTS", weights[config], "OUTPUT_DIR", str(tmp_path / "out")),
        ]

    return overrides


@pytest.fixture
def image(voc):
    root = voc["DATASETS.TEST"][0].split(":")[1]
    return f"{root}/JPEGImages/test000.jpg"


@pytest.mark.parametrize("config", ["voc_C4_random.yaml", "coco_FPN_1x_random.yaml"])
def test_drawn_image_has_the_size_of_the_image_and_something_in_it(
    finished, image, tmp_path, config
):
    cfg = load_config(config, [*finished(config), "MOCO.DRAW_SCORE", "0.0"])
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    (file,) = draw_predictions(cfg, [image])
    assert file == tmp_path / "out/predictions/test000.png"
    drawn, original = (np.array(Image.open(path)).astype(int) for path in (file, image))
    assert drawn.shape == original.shape
    assert np.abs(drawn - original).mean() > 1
    cfg.MOCO.DRAW_SCORE = 1.1
    (file,) = draw_predictions(cfg, [image])
    assert np.abs(np.array(Image.open(file)).astype(int) - original).mean() < 1


def test_predictor_finds_what_the_evaluation_finds(finished, image):
    """The same resizing and channel order as the loader of the test set."""
    from detectron2.data import build_detection_test_loader

    from moco_d2.transfer.data.registered import register_datasets

    cfg = load_config("voc_C4_random.yaml", finished("voc_C4_random.yaml"))
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    register_datasets(cfg.DATASETS.TEST)
    inputs = next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])))
    assert inputs[0]["file_name"] == image
    with torch.no_grad():
        expected = load_detector(cfg)(inputs)[0]["instances"]
    found = Predictor(cfg)(read_image(image, format=cfg.INPUT.FORMAT))["instances"]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, expected.scores)


def test_instances_below_the_score_are_left_out_and_regions_are_drawn():
    height, width = 120, 400  # room for the labels
    pixels = np.full((height, width, 3), 128, np.uint8)
    metadata = Metadata()
    metadata.set(thing_classes=["a"], stuff_classes=["ground", "sky"])
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.tensor([[20.0, 40, 80, 100], [300, 40, 360, 100]]))
    instances.scores = torch.tensor([0.9, 0.4])
    instances.pred_classes = torch.tensor([0, 0])
    drawn = draw(pixels, {"instances": instances}, metadata, 0.5).astype(int)
    assert np.abs(drawn[:, :150] - 128).max() > 50
    assert np.abs(drawn[:, 250:] - 128).max() < 5
    regions = torch.zeros(2, height, width)
    regions[0, :, :200] = regions[1, :, 200:] = 1
    drawn = draw(pixels, {"sem_seg": regions}, metadata, 0.5).astype(int)
    assert np.abs(drawn[20, 20] - drawn[20, 380]).sum() > 30


def test_the_log_says_how_many_detections_each_image_has(finished, image, caplog):
    """The score in the middle divides the detections of both images."""
    config = "voc_C4_random.yaml"
    cfg = load_config(config, finished(config))
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    other = image.replace("test000", "test001")

    def lines(score):
        cfg.MOCO.DRAW_SCORE = score
        caplog.clear()
        with caplog.at_level("INFO", logger="moco_d2"):
            draw_predictions(cfg, [image, other])
        return [m for m in caplog.messages if " detection" in m or " image" in m][-3:]

    model = Predictor(cfg)
    scores = [
        model(read_image(file, format=cfg.INPUT.FORMAT))["instances"].scores.tolist()
        for file in (image, other)
    ]
    middle = sorted(scores[0] + scores[1])[len(scores[0])]
    above = [sum(score >= middle for score in of_image) for of_image in scores]
    first, second, both = lines(middle)
    for line, file, n, of_image in zip((first, second), (image, other), above, scores, strict=True):
        assert line.startswith(f"{file}: {n} detection{'s' * (n != 1)} with a score of {middle:g}")
        assert len(of_image) == n or f", {len(of_image) - n} below" in line
    assert both.startswith(f"2 images: {sum(above)} detections with a score of {middle:g} or more")
    first, _, both = lines(1.0)
    assert f"0 detections with a score of 1 or more, {len(scores[0])} below, the best " in first
    assert f"{max(scores[0]):.2f}; drawn in " in first
    assert both.endswith("2 of the images have none; lower MOCO.DRAW_SCORE to draw more")


def test_semantic_segmentation_of_a_finished_run(tiny, image, tmp_path):
    architecture = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor")
    cfg = load_config("coco_FPN_1x_random.yaml", [*tiny, *ONE_PROCESS, *architecture])
    cfg.DATASETS.TEST = ()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    (file,) = draw_predictions(cfg, [image])
    drawn, original = (np.array(Image.open(path)).astype(int) for path in (file, image))
    assert drawn.shape == original.shape
    assert np.abs(drawn - original).mean() > 5


def test_images_of_one_name_get_files_of_their_own(finished, image, tmp_path):
    other = tmp_path / "other" / "test000.png"
    other.parent.mkdir()
    Image.open(image).save(other)
    cfg = load_config("voc_C4_random.yaml", finished("voc_C4_random.yaml"))
    files = draw_predictions(cfg, [image, other])
    assert [file.name for file in files] == ["test000.png", "test000_2.png"]
    assert all(file.is_file() for file in files)


def test_classes_are_numbers_where_the_dataset_is_not(finished, image, caplog):
    cfg = load_config("voc_C4_random.yaml", finished("voc_C4_random.yaml"))
    cfg.DATASETS.TEST = ("voc:/nowhere:test",)
    with caplog.at_level("WARNING", logger="moco_d2"):
        assert draw_predictions(cfg, [image])
    assert "classes are drawn as numbers" in caplog.text


@pytest.mark.parametrize("classes", [("dark",), ("dark", "light", "other")])
def test_classes_are_numbers_where_the_dataset_has_another_number(
    finished, image, tmp_path, caplog, classes
):
    root = make_voc(tmp_path / "VOC", images=2)
    for file in (root / "Annotations").iterdir():
        file.write_text(file.read_text().replace("light", "dark"))
    (root / "classes.txt").write_text("\n".join(classes))
    config = "voc_C4_random.yaml"
    words = [*finished(config), "DATASETS.TEST", f"voc:{root}:test", "MOCO.DRAW_SCORE", "0.0"]
    with caplog.at_level("WARNING", logger="moco_d2"):
        assert draw_predictions(load_config(config, words), [image])
    assert f"numbers: 'voc:{root}:test' has {len(classes)} classes and the head 2" in caplog.text


def test_classes_are_numbers_where_the_dataset_has_another_order(
    finished, image, tmp_path, caplog, weights, voc
):
    config = "voc_C4_random.yaml"
    root = make_voc(tmp_path / "VOC", images=2)
    (root / "classes.txt").write_text("light\ndark\n")
    file = Path(weights[config]).with_name("config.yaml")
    file.write_text(load_config(config, ["DATASETS.TRAIN", *voc["DATASETS.TRAIN"]]).dump())
    words = [*finished(config), "DATASETS.TEST", f"voc:{root}:test"]
    with caplog.at_level("WARNING", logger="moco_d2"):
        assert draw_predictions(load_config(config, words), [image])
    file.unlink()
    assert "classes are drawn as numbers: class 0 is 'light' in dataset" in caplog.text


def test_an_image_is_not_overwritten_by_its_own_prediction(finished, image, tmp_path):
    mine = tmp_path / "out/predictions/mine.png"
    mine.parent.mkdir(parents=True)
    Image.open(image).save(mine)
    before = mine.read_bytes()
    cfg = load_config("voc_C4_random.yaml", finished("voc_C4_random.yaml"))
    (file,) = draw_predictions(cfg, [mine])
    assert file.name == "mine_2.png"
    assert mine.read_bytes() == before


def test_twelve_bits_need_their_range(finished, image, tmp_path):
    pixels = np.asarray(Image.open(image).convert("L")).astype(np.uint16) * 16
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    config = "voc_C4_random.yaml"
    with pytest.raises(UserError, match=r"^--predict: the 16-bit values .* MOCO\.INPUT\.RANGE"):
        draw_predictions(load_config(config, finished(config)), [tmp_path / "deep.png"])
    words = [*finished(config), "MOCO.INPUT.RANGE", "(0, 4095)"]
    assert draw_predictions(load_config(config, words), [tmp_path / "deep.png"])


def test_a_folder_is_called_a_folder(finished, image):
    cfg = load_config("voc_C4_random.yaml", finished("voc_C4_random.yaml"))
    folder = Path(image).parent
    with pytest.raises(UserError, match=rf"{folder} is a folder; name its images, as {folder}/\*"):
        draw_predictions(cfg, [folder])


def test_image_that_is_none_or_is_not_there_is_one_sentence(finished, image, tmp_path):
    cfg = load_config("voc_C4_random.yaml", finished("voc_C4_random.yaml"))
    with pytest.raises(UserError, match=r"image nowhere\.jpg does not exist"):
        draw_predictions(cfg, [image, "nowhere.jpg"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "half.jpg").write_bytes(Path(image).read_bytes()[:700])
    for broken in ("text.jpg", "half.jpg"):
        with pytest.raises(UserError, match=f"{broken} cannot be read"):
            draw_predictions(cfg, [tmp_path / broken])
    with pytest.raises(UserError, match="names no image"):
        draw_predictions(cfg, [])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("MODEL.WEIGHTS", "random://"), "is not a finished detector"),
        (("MODEL.WEIGHTS", ""), "MODEL.WEIGHTS '' is not a finished detector"),
        (("MODEL.WEIGHTS", "."), r"MODEL\.WEIGHTS \. is a folder; name the file of weights"),
        (("MODEL.WEIGHTS", "nowhere.pth"), "does not exist; set it to the model_final.pth"),
        (("MODEL.ROI_HEADS.NUM_CLASSES", "3"), r"6 of its \d+ tensors .*box_predictor"),
        (("MODEL.RESNETS.DEPTH", "34"), "is not this config's detector"),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused(finished, change, sentence):
    cfg = load_config("coco_FPN_1x_random.yaml", [*finished("coco_FPN_1x_random.yaml"), *change])
    with pytest.raises(UserError, match=sentence):
        load_detector(cfg)


def test_overrides_may_follow_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_words(["a.jpg", "b.jpg", "MODEL.WEIGHTS", "x.pth", "SEED", "1"]) == (
        ["a.jpg", "b.jpg"],
        ["MODEL.WEIGHTS", "x.pth", "SEED", "1"],
    )
    assert split_words(["IMG.JPG"]) == (["IMG.JPG"], [])
    (tmp_path / "MODEL.jpg").touch()
    assert split_words(["MODEL.jpg"]) == (["MODEL.jpg"], [])


def test_command(finished, image, tmp_path, monkeypatch):
    config = "voc_C4_random.yaml"
    command = [str(TOOL), "--config", config, "--predict", image, *finished(config)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert ended.value.code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions"]
    assert (tmp_path / "out/predictions/test000.png").is_file()
