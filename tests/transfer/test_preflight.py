import logging

import pytest

from moco_d2.config import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.preflight import check_config, check_coverage, enforce
from moco_d2.transfer.weights import Coverage

PROVENANCE = {
    "preprocessing": {
        "format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
    },
    "stride_in_1x1": False,
    "depth": 50,
    "width_per_group": 64,
    "groups": 1,
    "width_factor": 1,
}


def findings(config, *overrides, provenance=PROVENANCE):
    return [str(f) for f in check_config(load_config(config, overrides), provenance)]


@pytest.mark.parametrize("config", ["voc_C4_moco.yaml", "coco_FPN_1x_moco.yaml"])
def test_packaged_configs_have_no_finding(config):
    assert findings(config) == []


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.BACKBONE.FREEZE_AT is 2: it freezes the first"),
        ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RESNETS.NORM is FrozenBN: the protocol tunes"),
        ("MODEL.FPN.NORM", "", "MODEL.FPN.NORM is empty: without it the run can diverge"),
        ("SEED", "-1", "SEED is -1: runs could not be told apart"),
        ("INPUT.FORMAT", "BGR", "INPUT.FORMAT is BGR: MODEL.WEIGHTS was made with 'RGB'"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", "MODEL.PIXEL_STD is [1.0, 1.0, 1.0]: MODEL.WEIGHT"),
        ("MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]", "MODEL.PIXEL_MEAN is [0.0, 0.0, 0.0]: MODEL.WEI"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", "True", "MODEL.RESNETS.STRIDE_IN_1X1 is True: MODEL.WEIG"),
        ("MODEL.RESNETS.DEPTH", "101", "MODEL.RESNETS.DEPTH is 101: MODEL.WEIGHTS was made with"),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", "16", "MODEL.RESNETS.WIDTH_PER_GROUP is 16: MODEL.WEIG"),
        ("MODEL.RESNETS.NUM_GROUPS", "32", "MODEL.RESNETS.NUM_GROUPS is 32: MODEL.WEIGHTS was m"),
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", "128", "MODEL.RESNETS.STEM_OUT_CHANNELS is 128: MODE"),
    ],
)
def test_each_finding_names_key_value_and_fix(key, value, sentence):
    found = findings("coco_FPN_1x_moco.yaml", key, value)
    assert len(found) == 1
    assert found[0].startswith(sentence)
    assert "set" in found[0]


def test_weights_without_provenance_are_not_contradicted():
    assert findings("voc_C4_moco.yaml", "INPUT.FORMAT", "BGR", provenance=None) == []


def test_incomplete_backbone_is_a_finding_unless_random():
    missing = Coverage(318, ("backbone.res2.0.conv1.weight",))
    (found,) = check_coverage(load_config("voc_C4_moco.yaml"), missing)
    assert "only 317 of 318 backbone tensors arrived, first missing backbone.res2" in str(found)
    assert check_coverage(load_config("voc_C4_random.yaml"), missing) == []
    assert check_coverage(load_config("voc_C4_moco.yaml"), Coverage(318, ())) == []


def test_findings_stop_the_run_and_force_lets_it_go_on_with_warnings(caplog):
    found = check_config(load_config("voc_C4_moco.yaml", ["SEED", "-1"]), None)
    logger = logging.getLogger("test")
    with pytest.raises(UserError, match="SEED is -1.*--force"):
        enforce(found, force=False, logger=logger)
    with caplog.at_level(logging.WARNING):
        enforce(found, force=True, logger=logger)
    assert "overruled by --force: SEED is -1" in caplog.text
    enforce([], force=False, logger=logger)
