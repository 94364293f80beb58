import json
import shutil

import pytest

from moco_d2.config import (
    add_moco_config,
    config_root,
    find_config,
    flatten,
    has_key,
    load_config,
    matched_sha256,
    to_plain,
)
from moco_d2.errors import UserError


def test_the_supervised_baseline_differs_in_the_pretext_only():
    moco, supervised = (
        flatten(load_config(name))
        for name in ("moco_v2_R50_200ep.yaml", "supervised_R50_200ep.yaml")
    )
    assert {key for key in moco if moco[key] != supervised[key]} == {"MOCO.PRETEXT"}


def test_adding_our_keys_twice_changes_nothing():
    cfg = load_config("moco_v2_R50_800ep.yaml")
    add_moco_config(cfg)
    assert cfg.MOCO.EPOCHS == 800


def test_find_config_takes_a_bare_name_or_a_path(tmp_path, monkeypatch):
    packaged = config_root() / "pretrain" / "moco_v2_R50_200ep.yaml"
    own = shutil.copy(packaged, tmp_path / "own.yaml")
    monkeypatch.chdir(tmp_path)
    assert find_config("moco_v2_R50_200ep.yaml") == packaged
    assert find_config("moco_v2_R50_200ep") == packaged
    assert find_config("configs/pretrain/moco_v2_R50_200ep.yaml") == packaged
    assert find_config("own.yaml").resolve() == own.resolve()
    own.rename(tmp_path / "moco_v2_R50_200ep.yaml")  # what lies here comes before what is packaged
    assert find_config("moco_v2_R50_200ep.yaml").resolve().parent == tmp_path


def test_missing_config_names_the_closest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'moco_v2_R50_800ep.yaml'"):
        find_config("moco_v2_R50_80ep.yaml")
    with pytest.raises(UserError, match="no config file"):
        find_config(str(tmp_path / "moco_v2_R50_200ep.yaml"))  # a path that exists but for the file
    with pytest.raises(UserError, match=f"see {config_root()}"):
        find_config("xxxxxxxxxxxxxxxxxx")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MOCO.ENCODER.DIMM", "64"], "unknown config key MOCO.ENCODER.DIMM; did you mean"),
        (["SOLVER.BASE_LR"], "overrides come in pairs"),
        (["SOLVER.BASE_LR", "fast"], "override on the command line: Type mismatch"),
        (["xyzzy", "1"], "unknown config key xyzzy; see moco_d2/config.py"),
    ],
)
def test_wrong_overrides_are_one_sentence(overrides, message):
    with pytest.raises(UserError) as caught:
        load_config("moco_v2_R50_200ep.yaml", overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("MOCO:\n  TEMPERATUR: 0.1\n", "unknown config key MOCO.TEMPERATUR; did you mean 'MOCO.T"),
        ("MOCO:\n  EPOCHS: many\n", "Type mismatch"),
        ("MOCO: [unclosed\n", "while parsing"),
        ("", "empty or no mapping"),
        ("- 1\n- 2\n", "empty or no mapping"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml"),
        ("_BASE_: [nowhere.yaml]\n", "nowhere.yaml"),
        ("VERSION: \xff\n", "can't decode byte 0xff"),
    ],
    ids=["key", "type", "syntax", "empty", "list", "base", "bases", "encoding"],
)
def test_wrong_files_are_one_sentence_that_names_them(tmp_path, yaml, message):
    file = tmp_path / "wrong.yaml"
    file.write_bytes(yaml.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("place", ["file", "base"])
def test_a_yaml_tag_that_runs_code_is_refused(tmp_path, place):
    (tmp_path / "evil.yaml").write_text(
        f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n"
    )
    (tmp_path / "base.yaml").write_text("_BASE_: evil.yaml\n")
    name = "evil.yaml" if place == "file" else "base.yaml"
    with pytest.raises(UserError, match=r"python/object/apply:os\.system"):
        load_config(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_has_key_follows_the_dots():
    cfg = load_config("moco_v1_R50_200ep.yaml")
    assert has_key(cfg, "MOCO.ENCODER.DIM") and has_key(cfg, "MOCO")
    assert not has_key(cfg, "MOCO.ENCODER.DIM.X") and not has_key(cfg, "MOCO.NONE")


def test_flatten_and_to_plain():
    cfg = load_config("moco_v1_R50_200ep.yaml")
    cfg.MOCO.TEMPERATURE = float("inf")
    flat = flatten(cfg.MOCO)
    assert flat["ENCODER.DIM"] == 128 and flat["LR_STEPS"] == (120, 160)
    assert not any(isinstance(value, dict) for value in flat.values())
    plain = to_plain(cfg)
    assert type(plain) is dict and type(plain["MOCO"]["ENCODER"]) is dict
    assert plain["MOCO"]["LR_STEPS"] == [120, 160]
    assert plain["MOCO"]["TEMPERATURE"] == "inf"
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_the_fingerprint_of_matched_runs_is_of_all_but_weights_seed_and_folder():
    def fingerprint(*overrides):
        return matched_sha256(to_plain(load_config("voc_C4_moco.yaml", overrides)))

    own = fingerprint()
    for free in (("MODEL.WEIGHTS", "x.pth"), ("SEED", "7"), ("OUTPUT_DIR", "elsewhere")):
        assert fingerprint(*free) == own
    for other in (
        *(("SOLVER.MAX_ITER", "9"), ("SOLVER.BASE_LR", "0.1"), ("SOLVER.WEIGHT_DECAY", "0.0")),
        *(("INPUT.FORMAT", "BGR"), ("MODEL.RESNETS.NORM", "BN"), ("TEST.PRECISE_BN.NUM_ITER", "9")),
        *(("DATASETS.TEST", "('voc_2012_val',)"), ("MOCO.VOC_EVALUATION", "exact")),
    ):
        assert fingerprint(*other) != own, other


def test_a_shell_command_in_a_file_is_refused_and_taken_from_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("VERSION: 2\nDATASETS:\n  TRAIN: ['shards:pipe:touch /tmp/x']\n")
    with pytest.raises(UserError, match=r"would run a shell command \(shards:pipe:touch /tmp/x\)"):
        load_config(file)
    typed = ["DATASETS.TRAIN", "('shards:pipe:cat a.tar',)"]
    assert load_config(file, typed).DATASETS.TRAIN == ("shards:pipe:cat a.tar",)
