import json
import shutil

import pytest
import yaml
from detectron2.config import CfgNode
from support.commands import run_tool
from support.paths import ROOT, TOOLS

from moco_d2.benchmark.runs.suite_values import file_settings
from moco_d2.cli import argument_parser
from moco_d2.config.keys import add_moco_config
from moco_d2.config.load import (
    DATA_KEYS,
    config_root,
    find_config,
    load_config,
    load_config_of,
)
from moco_d2.config.plain import flatten, has_key, matched_sha256, to_plain
from moco_d2.config.safe_yaml import read_config
from moco_d2.errors import UserError


def test_the_supervised_baseline_differs_in_the_pretext_only():
    moco, supervised = (
        flatten(load_config(name))
        for name in ("moco_v2_R50_200ep.yaml", "supervised_R50_200ep.yaml")
    )
    assert {key for key in moco if moco[key] != supervised[key]} == {"MOCO.PRETEXT"}


@pytest.mark.parametrize("name", ["20261129", "007", "1e3", "True", "a b", "'quoted'"])
@pytest.mark.parametrize("key", ["OUTPUT_DIR", "MODEL.WEIGHTS"])
def test_a_place_may_look_like_a_number(key, name):
    cfg = load_config("moco_v2_R50_200ep.yaml", [key, name])
    assert flatten(cfg)[key] == name.strip("'")


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
        (["OUTPUT_DIR", " "], "command line: OUTPUT_DIR is empty: name a folder"),
        (["MOCO.ENCODER.DIMM", "64"], "unknown config key MOCO.ENCODER.DIMM; did you mean"),
        (["SOLVER.BASE_LR"], "overrides come in pairs"),
        (["MODEL.DEVICE", "7"], "override on the command line: Type mismatch"),
        (["SOLVER.BASE_LR", "fast"], "command line: SOLVER.BASE_LR must be a finite number of at"),
        (["xyzzy", "1"], "unknown config key xyzzy; see docs/config.md"),
    ],
)
def test_wrong_overrides_are_one_sentence(overrides, message):
    with pytest.raises(UserError) as caught:
        load_config("moco_v2_R50_200ep.yaml", overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER.BASE_LR: 0.03\n", "with dots: write its sections, SOLVER: {BASE_LR: VALUE}"),
        ("OUTPUT_DIR: 20261129\n", "OUTPUT_DIR must be text, got 20261129; put it in quotes"),
        ("OUTPUT_DIR: ''\n", "OUTPUT_DIR is empty: name a folder"),
        ("MODEL: {WEIGHTS: 7}\n", "MODEL.WEIGHTS must be text, got 7; put it in quotes"),
        ("MOCO:\n  TEMPERATUR: 0.1\n", "unknown config key MOCO.TEMPERATUR; did you mean 'MOCO.T"),
        ("MOCO:\n  EPOCHS: many\n", "MOCO.EPOCHS must be an integer of at least 0, got 'many'"),
        ("MODEL:\n  DEVICE: 7\n", "Type mismatch"),
        ("MOCO: [unclosed\n", "while parsing"),
        ("", "empty or no mapping"),
        ("- 1\n- 2\n", "empty or no mapping"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml"),
        ("_BASE_: [nowhere.yaml]\n", "nowhere.yaml"),
        ("VERSION: \xff\n", "can't decode byte 0xff"),
    ],
    ids=[
        *("dots", "number", "no folder", "weights"),
        *("key", "value", "type", "syntax", "empty", "list", "base", "bases", "encoding"),
    ],
)
def test_wrong_files_are_one_sentence_that_names_them(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_bytes(text.encode("latin-1"))
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


def test_a_key_of_a_later_version_changes_the_fingerprint_only_if_it_is_set():
    """So a run matches the runs of an older version that behaved as this one."""
    plain = to_plain(load_config("voc_C4_moco.yaml"))
    older = json.loads(json.dumps(plain))
    del older["MOCO"]["BACKBONE_ONLY"], older["MOCO"]["INPUT"]
    assert matched_sha256(older) == matched_sha256(plain)
    assert plain["MOCO"]["INPUT"] == {"RANGE": []}  # as it was
    for key, value in (("MOCO.BACKBONE_ONLY", "True"), ("MOCO.INPUT.RANGE", "(0, 4095)")):
        changed = to_plain(load_config("voc_C4_moco.yaml", (key, value)))
        assert matched_sha256(changed) != matched_sha256(plain), key


def test_a_shell_command_in_a_file_is_refused_and_taken_from_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("VERSION: 2\nDATASETS:\n  TRAIN: ['shards:pipe:touch /tmp/x']\n")
    with pytest.raises(
        UserError, match="TRAIN would run or fetch 'pipe:touch /tmp/x', which a file may not do"
    ):
        load_config(file)
    typed = ["DATASETS.TRAIN", "('shards:pipe:cat a.tar',)"]
    assert load_config(file, typed).DATASETS.TRAIN == ("shards:pipe:cat a.tar",)


# What webdataset runs a program for, or what else leads away from this machine, in many clothes.
ELSEWHERE = [
    "shards:pipe:touch ran",
    "shards:{pipe,pipe}:touch ran",
    "shards:pip{e,}:touch ran",
    "shards:{p,q}ipe:touch ran",
    "shards:pipe{:,}touch ran",
    "shards:a.tar::pipe:touch ran",
    "shards:{a.tar,pipe:touch ran}",
    "shards:\\pipe:touch ran",
    "shards:p\\ipe\\:touch ran",
    "shards:${HIDDEN}",
    "shards:${HIDDEN_COLON}touch ran",
    "shards:http://localhost:9/a.tar",
    "shards:{http,ftp}://localhost:9/a.tar",
    "shards:s3://bucket/a.tar",
    "shards:gs://bucket/a.tar",
    "shards:file:a.tar",
    "http://localhost:9/images",
    "coco:http://localhost:9/a.json:images",
    "voc:s3://bucket/VOC:train",
    "list:https://localhost:9/list.txt",
]


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("place", ["file", "base", "suite"])
def test_a_file_names_data_of_this_machine_only(tmp_path, monkeypatch, name, place):
    monkeypatch.setenv("WDS_HIDDEN", "pipe:touch ran")
    monkeypatch.setenv("WDS_HIDDEN_COLON", "pipe:")
    file, overrides = tmp_path / "a.yaml", []
    content = f"VERSION: 2\nDATASETS:\n  TRAIN: [{json.dumps(name)}]\n"
    if place == "base":
        (tmp_path / "b.yaml").write_text(content)
        content = "_BASE_: b.yaml\n"
    elif place == "suite":
        content, overrides = "VERSION: 2\n", ["DATASETS.TRAIN", repr((name,))]
    file.write_text(content)
    if place != "suite":
        said = "which a file may not do: read it, and set DATASETS.TRAIN on the command line"
        with pytest.raises(UserError, match=said):
            load_config(file)
    said = "copy the data to files .*, or run tools/.*.py without a suite and set DATASETS"
    with pytest.raises(UserError, match=f"which a file may not do: {said}"):
        load_config(file, overrides, typed=False)
    typed = load_config(file, ["DATASETS.TRAIN", repr((name,))]).DATASETS.TRAIN
    assert typed == (name,)


@pytest.mark.parametrize("key", DATA_KEYS)
def test_every_key_of_data_is_looked_at(tmp_path, key):
    section, _, last = key.rpartition(".")
    value = "shards:pipe:touch ran"
    nested = {last: [value] if section == "DATASETS" else value}
    for part in reversed(section.split(".")):
        nested = {part: nested}
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps({"VERSION": 2, **nested}))
    with pytest.raises(UserError, match=f"{key} would run or fetch 'pipe:touch ran'"):
        load_config(file)


@pytest.mark.parametrize(
    "name",
    [
        *("shards:data/{0000..0099}.tar", "shards:a:b/{0,1}.tar", "data/images", "voc_2007_train"),
        *("shards:./pipe:x.tar", "voc:data/VOC2007:train", "coco:a.json:images", "list:images.txt"),
    ],
)
def test_data_of_this_machine_is_taken_from_a_file(tmp_path, name):
    if name == "shards:a:b/{0,1}.tar":  # a name that looks like a scheme is one
        name = "shards:./a:b/{0,1}.tar"
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps({"VERSION": 2, "DATASETS": {"TRAIN": [name]}}))
    names = load_config(file).DATASETS.TRAIN
    assert names == (name,)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("shards:x:{0..99999999999}.tar", "more than 4000000 shards"),
        ("shards:x:{0..999}{0..999}{0..999}", "more than 4000000 shards"),
        ("shards:x:{0..1" + "0" * 5000 + "}", "more than 18 digits"),
        ("shards:x:" + "{a,b" * 30 + "}" * 30, "nest deeper than 20"),
        ("shards:x:{a,b", "unbalanced braces"),
        ("shards:x:${NO_SUCH}", "environment variable WDS_NO_SUCH is not set"),
    ],
    ids=["range", "product", "digits", "depth", "unbalanced", "variable"],
)
def test_patterns_without_end_are_one_sentence(tmp_path, pattern, said):
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps({"VERSION": 2, "DATASETS": {"TRAIN": [pattern]}}))
    with pytest.raises(UserError, match=f"DATASETS.TRAIN .* cannot be expanded: .*{said}"):
        load_config(file)


@pytest.mark.parametrize("name", ["pretrain.py", "train_net.py"])
def test_a_command_that_is_a_suites_takes_no_command_from_its_words(tmp_path, name):
    """The real tools, with the flag that the runner gives them."""
    config = "moco_v2_R50_200ep.yaml" if name == "pretrain.py" else "voc_C4_random.yaml"
    done = run_tool(
        *(TOOLS / name, "--overrides-from-file"),
        *("--config-file", config, "OUTPUT_DIR", tmp_path / "out"),
        *("DATASETS.TRAIN", f"('shards:{{pipe,pipe}}:touch {tmp_path}/ran',)"),
    )
    assert done.returncode == 2 and "would run or fetch 'pipe:touch" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_key_that_two_flags_have_taken_is_given_once():
    """As in ``MODEL.WEIGHTS a.pth --predict x.jpg MODEL.WEIGHTS b.pth``."""
    words = ["--config-file", "voc_C4_moco.yaml", "SEED", "3", "MODEL.WEIGHTS", "a.pth"]
    args = argument_parser("").parse_args(words)
    assert load_config_of(args, ["SEED", "3", "OUTPUT_DIR", "out"]).SEED == 3
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS is given as b.pth and as a.pth; give it"):
        load_config_of(args, ["MODEL.WEIGHTS", "b.pth"])


def test_every_tool_asks_whose_the_words_are():
    """load_config of parsed words, without what they say about themselves, would trust them."""
    files = [f for folder in ("moco_d2", "tools") for f in (ROOT / folder).rglob("*.py")]
    direct = [str(f.relative_to(ROOT)) for f in files if ".opts" in f.read_text()]
    # cli.py looks for flags among them, and only among those that somebody typed.
    assert sorted(direct) == [
        *("moco_d2/benchmark/runs/config_checks.py", "moco_d2/cli.py", "moco_d2/config/load.py"),
    ]


@pytest.mark.parametrize(
    "value",
    [
        *("-" * 9_000 + "1", "[" * 4_000, "[0]" * 3_000, "(" * 300, "a.b" * 3_000, "1+" * 4_000),
        *("{[]: 1}", "b'x'", "(1j,)", "{'a': 1}", "{1, 2}", "0x" + "f" * 100, "...", "x" * 10_001),
        "[b'x', {1}]",
    ],
    ids=lambda value: value[:9],
)
@pytest.mark.parametrize("place", ["file", "override"])
def test_values_that_yacs_would_choke_on_are_one_sentence(tmp_path, place, value):
    file, overrides = tmp_path / "a.yaml", []
    if place == "file":
        file.write_text(json.dumps({"VERSION": 2, "MODEL": {"WEIGHTS": value}}))
    else:
        file.write_text("VERSION: 2\n")
        overrides = ["MODEL.WEIGHTS", value]
    try:
        weights = load_config(file, overrides).MODEL.WEIGHTS
        assert weights == value  # text after all
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 700


@pytest.mark.parametrize(
    "content",
    [
        *({"DATASETS": {"TRAIN": [1]}}, {"DATASETS": {"TRAIN": None}}, {"DATASETS": {"TEST": 3}}),
        *({"MODEL": 3}, {"SEED": {"A": 1}}, {"SOLVER": None}, {"MODEL": {"WEIGHTS": None}}),
        *({"VERSION": "2"}, {"VERSION": 3}, {"VERSION": True}, {"VERSION": 1, "MODEL": 3}),
        *({"MOCO": {"KNN": {"TRAIN": [1]}}}, {1: 2}, {"SEED": {1: 2}}, {"SEED": 1 << 70}),
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_are_one_sentence(tmp_path, content):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"VERSION": 2, **content}))
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("key", ["SEED.X", "MODEL.WEIGHTS.X", "MOCO", "a\nb"])
def test_overrides_of_no_key_are_one_sentence(key):
    with pytest.raises(UserError) as caught:
        load_config("moco_v2_R50_200ep.yaml", [key, "1"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["~nobody_of_this_name/a.yaml", "a" * 5000, "a\0b", "\0/b.yaml"])
def test_names_that_no_file_has_are_one_sentence(name):
    with pytest.raises(UserError, match="no config file"):
        find_config(name)


@pytest.mark.parametrize("file", sorted(config_root().rglob("*.yaml")), ids=lambda file: file.stem)
def test_packaged_configs_are_merged_as_detectron2_merges_them(file):
    assert read_config(file) == CfgNode.load_yaml_with_base(str(file), allow_unsafe=False)


def test_a_packaged_base_by_its_bare_name_is_answered_with_its_path(tmp_path):
    """A base is a file, looked for beside the one that names it."""
    file = tmp_path / "a.yaml"
    file.write_text("_BASE_: moco_small_data_R18_200ep.yaml\n")
    packaged = next(config_root().rglob("moco_small_data_R18_200ep.yaml")).absolute()
    said = rf"moco_small_data_R18_200ep.yaml: No such file.*; the packaged one is {packaged}$"
    with pytest.raises(UserError, match=rf"^config {file}: cannot read {tmp_path}/{said}"):
        load_config(file)
    with pytest.raises(UserError, match=rf"No such file.*; the packaged one is {packaged}$"):
        file_settings(file)
    file.write_text(f"_BASE_: {packaged}\n")
    assert load_config(file).MOCO.ENCODER.ARCH == "resnet18"
    file.write_text("_BASE_: mine.yaml\n")
    with pytest.raises(UserError, match=r"mine\.yaml: No such file or directory$"):
        load_config(file)
