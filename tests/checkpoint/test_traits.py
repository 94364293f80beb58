"""The input format and the place of the stride, which no tensor of a network shows."""

import json

import pytest
import torch
import yaml
from support.checkpoint.dialects import caffe2
from support.checkpoint.reference import as_detectron2

from moco_d2.checkpoint import families
from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.checkpoint.recognition import extract
from moco_d2.checkpoint.stated import read_stated
from moco_d2.errors import UserError

RGB = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], False)
MSRA = ("BGR", [103.53, 116.28, 123.675], [1, 1, 1], True)
FAIR = ("BGR", [103.53, 116.28, 123.675], [57.375, 57.12, 58.395], False)
FPN = "backbone.bottom_up."


@pytest.fixture(scope="module")
def _resnext():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_torchvision(Architecture(50, width_per_group=4, groups=2))
    return {n: t for n, t in network.state_dict().items() if not n.startswith("fc.")}


@pytest.fixture
def resnext(_resnext):
    """A small ResNeXt under torchvision's names."""
    return dict(_resnext)


def traits(source, tmp_path):
    """What the report of a conversion says, and its caveats."""
    report = convert(source, tmp_path / "w.pth")
    pixels = report["preprocessing"]
    found = (pixels["format"], pixels["pixel_mean"], pixels["pixel_std"], report["stride_in_1x1"])
    return found, " ".join(report["caveats"])


def detector(state, **entries):
    """A detector of Detectron2 with an FPN."""
    tensors = {FPN + name: tensor for name, tensor in as_detectron2(state).items()}
    heads = {"proposal_generator.rpn_head.conv.weight": torch.zeros(4, 4, 3, 3)}
    return {"model": tensors | heads, **entries}


@pytest.mark.parametrize(("network", "expected"), [("narrow", MSRA), ("resnext", FAIR)])
def test_networks_of_caffe2_are_those_of_msra_and_of_fair(
    network, expected, request, save, tmp_path
):
    arrays = caffe2(request.getfixturevalue(network))
    blobs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert traits(save({"blobs": blobs}), tmp_path)[0] == expected


@pytest.mark.parametrize(("network", "expected"), [("narrow", MSRA), ("resnext", FAIR)])
@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("model_final_280758.pkl", {}),
        ("detector.pth", {"__author__": "Detectron2 Model Zoo"}),
    ],
)
def test_models_of_detectron2s_zoo(network, expected, name, entries, request, save, tmp_path):
    source = save(detector(request.getfixturevalue(network), **entries), name)
    found, caveats = traits(source, tmp_path)
    assert found == expected
    assert "config.yaml beside it" in caveats


def test_networks_of_torchvision_and_moco_in_detectron2s_format_are_rgb(narrow, save, tmp_path):
    for author in ("torchvision", "MOCO"):
        source = save(detector(narrow, __author__=author))
        assert traits(source, tmp_path) == (RGB, "")


def test_a_detector_of_unknown_origin_has_a_caveat(narrow, save, tmp_path):
    found, caveats = traits(save(detector(narrow), "model_final.pth"), tmp_path)
    assert found == RGB
    assert "does not state its input format" in caveats


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"MODEL": {"RESNETS": {"DEPTH": 50}}}, MSRA),  # Detectron2's defaults
        (
            {
                "INPUT": {"FORMAT": "RGB"},
                "MODEL": {
                    "PIXEL_MEAN": "(1.0, 2, 3)",  # yacs evaluates text
                    "PIXEL_STD": [4, 5.5, 6],
                    "RESNETS": {"STRIDE_IN_1X1": False},
                },
            },
            ("RGB", [1, 2, 3], [4, 5.5, 6], False),
        ),
    ],
)
def test_the_config_of_a_run_states_its_traits(content, expected, narrow, save, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    for name in ("model_final.pth", "model_final_280758.pkl"):
        found, caveats = traits(save(detector(narrow), name), tmp_path)
        assert found == expected
        assert caveats == "the input format and the stride are those of the config.yaml beside it"


def test_a_dilation_in_the_config_is_a_caveat(narrow, save, tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: {RESNETS: {RES5_DILATION: 2}}")
    assert "dilates res5 by 2" in traits(save(detector(narrow)), tmp_path)[1]


def test_a_config_of_another_program_states_nothing(narrow, save, tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: resnet50\nINPUT: {FORMAT: BGR}\n")
    assert traits(save(detector(narrow)), tmp_path)[0] == RGB


@pytest.mark.parametrize(
    "text",
    [
        "MODEL: [",
        "!!python/object/apply:os.system [ls]",
        "MODEL: {RESNETS: {STRIDE_IN_1X1: 3}}",
        "MODEL: {RESNETS: {}, PIXEL_STD: [0, 0, 0]}",
        "MODEL: {RESNETS: {}, PIXEL_MEAN: [.nan, 0, 0]}",
        "{INPUT: {FORMAT: L}, MODEL: {RESNETS: {}}}",
    ],
)
def test_a_config_that_cannot_be_read_is_refused(text, narrow, save, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"the config\.yaml beside it.* cannot be read \(.+\); "):
        convert(save(detector(narrow)), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_json_file_that_cannot_be_read_is_refused(name, small, save, tmp_path):
    (tmp_path / name).write_text("{broken")
    with pytest.raises(UserError, match=rf"the {name} beside it.* cannot be read"):
        convert(save(small), tmp_path / "w.pth")


def test_the_report_in_a_file_counts_more_than_files_beside_it(narrow, save, tmp_path):
    """Converted weights may lie in the folder of any run."""
    convert(save(narrow, "caffe.pth"), tmp_path / "weights.pth")
    (tmp_path / "config.yaml").write_text("MODEL: [")
    extracted, _ = extract(
        load_checkpoint(tmp_path / "weights.pth"), stated=read_stated(tmp_path / "weights.pth")
    )
    assert (extracted.traits.input, extracted.traits.stride_in_1x1) == (families.MSRA, True)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet50_msra-5891d200.pth", "resnet50_caffe-788b5fa3.pth"),
        *("resnet101_caffe.pth", "detectron2_resnet50_caffe_bgr.pth"),
    ],
)
def test_names_of_caffes_networks(name, narrow, save, tmp_path):
    found, caveats = traits(save(narrow, name), tmp_path)
    assert found == MSRA
    assert "by its file name, it is one of Caffe's style" in caveats


def test_names_of_caffes_networks_in_other_formats(narrow, save, tmp_path):
    for content in ({"state_dict": narrow, "author": "x"}, as_detectron2(narrow)):
        assert traits(save(content, "resnet50_msra.pth"), tmp_path)[0] == MSRA


def test_openmmlabs_copy_of_fairs_resnext(resnext, save, tmp_path):
    assert traits(save(resnext, "resnext101_32x8d-1516f1aa.pth"), tmp_path)[0] == FAIR
    assert traits(save(resnext, "resnext101_32x8d-8ba56ff5.pth"), tmp_path)[0] == RGB


def openmmlab(state, config="", **tensors):
    heads = {"rpn_head.rpn_conv.weight": torch.zeros(4, 4, 3, 3)}
    state_dict = {f"backbone.{name}": tensor for name, tensor in state.items()}
    return {"meta": {"config": config}, "state_dict": state_dict | heads | tensors}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("model = dict(style='pytorch')", RGB),
        ("mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True", RGB),
        ("mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False", FAIR),
        ("style='caffe'", MSRA),
        ("style='caffe', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]", MSRA),
        ("mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25]", ("RGB", [127.5] * 3, [63.75] * 3, False)),
    ],
)
def test_the_config_in_a_file_of_openmmlab(config, expected, narrow, save, tmp_path):
    """A detector with its heads."""
    assert traits(save(openmmlab(narrow, config)), tmp_path)[0] == expected


def constants(mean, std):
    return {
        name: torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
        for name, values in (("mean", mean), ("std", std))
    }


def test_mean_and_std_among_the_tensors(narrow, save, tmp_path):
    half = [127.5] * 3
    for given, expected in (
        (RGB[1:3], RGB),
        (FAIR[1:3], FAIR),
        ((half, half), ("RGB", half, half, False)),
    ):
        tensors = constants(*given)
        source = openmmlab(narrow, **{f"data_preprocessor.{n}": t for n, t in tensors.items()})
        assert traits(save(source), tmp_path)[0] == expected
    for expected in (RGB, FAIR, MSRA):
        source = detector(narrow)
        source["model"] |= {f"pixel_{n}": t for n, t in constants(*expected[1:3]).items()}
        assert traits(save(source), tmp_path)[0] == expected


def test_tensors_of_mean_and_std_that_contradict_the_config_are_refused(narrow, save, tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: {RESNETS: {}}")
    source = detector(narrow)
    source["model"] |= {f"pixel_{n}": t for n, t in constants(*RGB[1:3]).items()}
    with pytest.raises(UserError, match=r"pixel_mean and pixel_std say .*config says"):
        convert(save(source), tmp_path / "w.pth")
    source["model"]["pixel_std"] = torch.zeros(3)
    with pytest.raises(UserError, match="pixel_mean and pixel_std are no mean and std of pixels"):
        convert(save(source), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"output_stride": 8}, "output_stride 8"),
        ({"act_layer": "silu"}, "act_layer 'silu'"),
        ({"aa_layer": "avg"}, "aa_layer 'avg'"),
        ({"replace_stem_pool": True}, "replace_stem_pool True"),
        ({"of_a_later_version": [1]}, "of_a_later_version"),
    ],
)
def test_arguments_of_timm_that_change_the_network_are_refused(
    arguments, word, small, save, tmp_path
):
    config = {"architecture": "resnet18", "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"config\.json says model_args {word}"):
        convert(save(small), tmp_path / "w.pth")


def test_arguments_of_timm_that_change_nothing(small, save, tmp_path):
    arguments = {"output_stride": 32, "act_layer": "relu", "num_classes": 10, "avg_down": False}
    config = {"architecture": "resnet18", "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert traits(save(small), tmp_path)[0] == RGB
