import os
import shutil
import subprocess
import sys
from urllib.parse import urlparse

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

import moco_d2
from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.checkpoint.weights_by_name import PUBLISHED
from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.files import sha256
from moco_d2.transfer.checkpointing import WeightsCheckpointer
from moco_d2.transfer.inference.detector import load_detector
from moco_d2.transfer.inference.export import export_detector
from moco_d2.transfer.inference.predict import Predictor
from moco_d2.transfer.weights import (
    RANDOM,
    check_weights_file,
    describe_weights,
    measure_coverage,
    pretrained_tensors,
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted torchvision ResNet-18."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(build_torchvision(Architecture(18)).state_dict(), folder / "resnet18.pth")
    convert(folder / "resnet18.pth", folder / "converted.pth")
    return folder / "converted.pth"


@pytest.fixture
def detector(tiny, words):
    def build(config):
        return build_model(load_config(config, [*tiny, "MODEL.DEVICE", "cpu"]))

    return build


def load(model, weights, **kwargs):
    with measure_coverage(model, **kwargs) as coverage:
        DetectionCheckpointer(model).load(str(weights))
    return coverage.result


def test_a_vit_is_its_blocks_patches_and_absolute_positions(tiny):
    """Relative positions begin at zero, and no pretraining has them."""
    sizes = {"EMBED_DIM": 32, "DEPTH": 2, "HEADS": 2, "GLOBAL_BLOCKS": 1}
    small = [str(word) for key, of in sizes.items() for word in (f"MOCO.VIT.{key}", of)]
    model = build_model(
        load_config("coco_vitdet_Ti_25ep_random.yaml", [*tiny, *small, "MODEL.DEVICE", "cpu"])
    )
    found = pretrained_tensors(model)
    assert len(found) == 2 * 12 + 3
    assert all(name.startswith("backbone.net.") and "rel_pos" not in name for name in found)
    assert "backbone.net.blocks.1.attn.rel_pos_h" in model.state_dict()
    missing = "backbone.net.blocks.1.attn.qkv.bias"
    file = {name: tensor.clone() for name, tensor in found.items()}
    with measure_coverage(model) as coverage:
        model.load_state_dict({n: t for n, t in file.items() if n != missing}, strict=False)
    assert (coverage.result.expected, coverage.result.missing) == (27, (missing,))
    assert coverage.result.beyond == ()


# 20 convolutions of a ResNet-18 with weight, 4 BatchNorm tensors each: 20 * 5 = 100.
@pytest.mark.parametrize("config", ["voc_C4_moco.yaml", "coco_FPN_1x_moco.yaml"])
def test_converted_weights_arrive_completely(detector, converted, config):
    model = detector(config)
    coverage = load(model, converted)
    assert (coverage.expected, coverage.loaded, coverage.missing) == (100, 100, ())
    assert not coverage.beyond
    file = torch.load(converted, weights_only=True)["model"]
    for name, tensor in pretrained_tensors(model).items():
        suffix = name.split("bottom_up.")[-1].removeprefix("backbone.").removeprefix("roi_heads.")
        torch.testing.assert_close(tensor, file[suffix], rtol=0, atol=0)


def test_extra_norm_is_not_expected_in_the_file(detector):
    assert not [
        n
        for n in pretrained_tensors(detector("voc_C4_moco.yaml"))
        if ".norm.w" in n and n.startswith("roi_heads.res5.norm")
    ]


def test_what_does_not_arrive_is_named_and_keeps_its_initial_value(detector, converted, tmp_path):
    content = torch.load(converted, weights_only=True)
    del content["model"]["res5.1.conv2.weight"]
    torch.save(content, tmp_path / "incomplete.pth")
    model = detector("voc_C4_moco.yaml")
    initial = model.state_dict()["roi_heads.res5.1.conv2.weight"].clone()
    coverage = load(model, tmp_path / "incomplete.pth")
    assert coverage.missing == ("roi_heads.res5.1.conv2.weight",)
    assert torch.equal(model.state_dict()["roi_heads.res5.1.conv2.weight"], initial)


@pytest.mark.parametrize("config", ["voc_C4_moco.yaml", "coco_FPN_1x_moco.yaml"])
def test_the_other_parts_of_a_finished_detector_are_noticed_and_can_begin_anew(
    detector, tmp_path, config
):
    finished, model, initial = detector(config), detector(config), detector(config)
    initial.load_state_dict(model.state_dict())
    torch.save({"model": finished.state_dict()}, tmp_path / "finished.pth")
    pretrained = pretrained_tensors(finished)
    others = {n for n, t in finished.state_dict().items() if t.is_floating_point()}
    others -= {*pretrained, "pixel_mean", "pixel_std"}
    for backbone_only in (True, False):
        coverage = load(model, tmp_path / "finished.pth", backbone_only=backbone_only)
        assert not coverage.missing and set(coverage.beyond) == others
        expected = initial if backbone_only else finished
        for name in others:
            assert torch.equal(model.state_dict()[name], expected.state_dict()[name]), name
        for name, tensor in pretrained.items():
            assert torch.equal(model.state_dict()[name], tensor), name


def test_foreign_names_are_noticed(detector, tmp_path):
    """Detectron2 itself only warns and trains from random values."""
    state = build_torchvision(Architecture(18)).state_dict()
    torch.save({"model": state}, tmp_path / "foreign.pth")
    assert load(detector("voc_C4_moco.yaml"), tmp_path / "foreign.pth").loaded == 0


def test_random_initialization_loads_nothing_and_changes_nothing(detector):
    model = detector("voc_C4_random.yaml")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load(model, RANDOM).loaded == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_empty_or_missing_weights_are_refused():
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty: set it to random:// for random"):
        check_weights_file("")
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty"):
        check_weights_file(" ")
    with pytest.raises(UserError, match="weights/none.pth does not exist: make it with tools/conv"):
        check_weights_file("weights/none.pth")
    check_weights_file(RANDOM)


def test_a_path_that_is_no_file_says_what_it_is(tmp_path):
    link = tmp_path / "dangling.pth"
    link.symlink_to(tmp_path / "absent.pth")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "mine.pth").touch()
    for weights, words in (
        (tmp_path, "is a folder; name the file of weights"),
        (folder, r"is a folder; name the file of weights inside it, perhaps mine\.pth"),
        (link, f"is a link to {tmp_path}/absent.pth, where no file is; "),
        (f"{link} ", "begins or ends with a space; "),
    ):
        with pytest.raises(UserError, match=f"^MODEL.WEIGHTS '.*{words}"):
            check_weights_file(str(weights))


@pytest.mark.parametrize(
    "weights", ["random:/", "random:", "RANDOM://", "random:///", " random://"]
)
def test_another_spelling_of_random_is_answered_with_the_right_one(weights):
    with pytest.raises(UserError, match=f"MODEL.WEIGHTS is '{weights}': write random:// for"):
        check_weights_file(weights)


def test_description_for_the_record(converted):
    assert describe_weights(RANDOM) is None
    described = describe_weights(str(converted))
    assert described["file"] == "converted.pth"
    assert described["provenance"]["depth"] == 18
    assert len(described["sha256"]) == 64


def test_a_name_is_described_as_its_file(converted, tmp_path, monkeypatch):
    """From a filled cache: no network is asked."""
    monkeypatch.setenv("MOCO_D2_CACHE", str(tmp_path))
    stem = f"torchvision_resnet18-f37072fd-{moco_d2.__version__}"
    content = torch.load(converted, weights_only=True)
    # As if it had been made from the published file, whose hash begins so.
    published = "f37072fd" + "0" * 56
    content["provenance"] |= {
        "source_sha256": published,
        "published": {"name": "torchvision://resnet18", "algorithm": "sha256", "hash": published},
    }
    torch.save(content, tmp_path / "whole.pth")
    cached = tmp_path / f"{stem}-{sha256(tmp_path / 'whole.pth')[:16]}.pth"
    shutil.copy(tmp_path / "whole.pth", cached)
    by_name = describe_weights("torchvision://resnet18")
    assert by_name == describe_weights(str(tmp_path / "whole.pth")) | {"file": cached.name}


def test_a_name_that_leads_nowhere_is_a_user_error():
    with pytest.raises(UserError, match="vision://resnet05; did you mean 'torchvision://resnet50'"):
        describe_weights("torchvision://resnet05")
    with pytest.raises(UserError, match="published weights; did you mean 'torchvision://resnet50'"):
        describe_weights("torchvison://resnet50")
    with pytest.raises(UserError, match="published weights; did you mean 'moco://v2_800ep'"):
        check_weights_file("moko://v2_800ep")


@pytest.mark.parametrize(
    "weights",
    [
        *("http://localhost:9/w.pth", "https://localhost:9/w.pth?x=1", "HTTP://localhost:9/w.pth"),
        *("http:/localhost:9/w.pth", "ftp://localhost/w.pth", "s3://bucket/w.pth"),
        *("detectron2://w.pth", "catalog://w.pth", "file:///w.pth", "random://w.pth"),
    ],
)
def test_weights_are_fetched_from_no_address(weights, monkeypatch, tmp_path):
    """By none of the ways to use them; and what would be fetched is named."""

    def connect(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    cfg = load_config("voc_C4_random.yaml", ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu"])
    for door in (
        lambda: check_weights_file(weights),
        lambda: describe_weights(weights),
        lambda: load_detector(cfg),
        lambda: export_detector(cfg, tmp_path / "out.pth"),
        lambda: Predictor(cfg),
        lambda: WeightsCheckpointer(torch.nn.Linear(1, 1)).load(weights),
    ):
        with pytest.raises(
            UserError, match=r"yourself, check its sha256, and set .* weights/w\.pth"
        ):
            door()
    with pytest.raises(UserError):  # pretraining continues files only
        load_checkpoint(weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
@pytest.mark.parametrize("changed", ["{}", "{}?download=1"])
def test_the_address_of_published_weights_is_answered_with_their_name(entry, changed):
    for address in (entry.url, entry.url.replace("https://", "http://")):
        weights = changed.format(address)
        with pytest.raises(UserError) as caught:
            check_weights_file(weights)
        assert f"set MODEL.WEIGHTS {entry.name}, which" in str(caught.value)


def test_any_other_address_is_named_once_in_a_short_sentence():
    address = "https://example.org/moco/r-50-1000ep.pth.tar"
    with pytest.raises(UserError, match=r"with tools/convert\.py first$") as caught:
        check_weights_file(address)
    assert str(caught.value).count("example.org") == 1 and len(str(caught.value)) <= 260
    with pytest.raises(UserError) as caught:
        check_weights_file("https://example.org/" + "x" * 5000)
    assert len(str(caught.value)) < 450


def test_the_papers_supervised_baseline_says_where_its_file_is():
    with pytest.raises(UserError) as caught:
        check_weights_file(load_config("voc_C4_supervised_msra.yaml").MODEL.WEIGHTS)
    address = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    said = f"fetch {address} yourself, check its sha256, and set MODEL.WEIGHTS weights/R-50.pkl"
    assert said in str(caught.value)


def test_random_survives_what_todays_main_does_to_a_path():
    again = urlparse(RANDOM)._replace(query="").geturl()
    assert torch.load(PathManager.get_local_path(again), weights_only=True) == {"model": {}}


def test_the_temporary_folder_is_made_when_it_is_needed(tmp_path):
    """Every process that ends without cleaning up, by a signal or os._exit, would leave it."""
    code = (
        "import moco_d2, os, pathlib\n"
        "import moco_d2.transfer.weights\n"
        "from detectron2.checkpoint import DetectionCheckpointer\n"
        "from detectron2.utils.file_io import PathManager\n"
        "folder = pathlib.Path(os.environ['TMPDIR'])\n"
        "print(len(list(folder.glob('moco_d2_*'))))\n"
        "files = [pathlib.Path(PathManager.get_local_path('random://')) for _ in range(2)]\n"
        "print(len({f.parent for f in files}), files[0].is_file(), files[0].parents[1] == folder)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["0", "1", "True", "True"]
    assert not list(tmp_path.glob("moco_d2_*"))
