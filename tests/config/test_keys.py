"""The table of keys: what it makes, what it refuses, and that the code knows the same names."""

import json
import math
import typing

import pytest
from detectron2.config import CfgNode, get_cfg

from moco_d2.config.keys import DETECTRON2_GROUP, KEYS, MOCO_GROUPS, add_moco_config, read_value
from moco_d2.config.kinds import Choice, Names, Number, Numbers
from moco_d2.config.load import load_config
from moco_d2.config.plain import flatten
from moco_d2.engine.precision import DTYPES
from moco_d2.errors import UserError
from moco_d2.pretrain.augmentation.views import AUGMENTATIONS
from moco_d2.pretrain.model.dictionary import DICTIONARIES
from moco_d2.pretrain.model.encoder import ARCHITECTURES
from moco_d2.pretrain.model.vit import VITS
from moco_d2.pretrain.official_layout import PARTS
from moco_d2.pretrain.schedule import SCHEDULES
from moco_d2.transfer.evaluation.voc_evaluation import MODES


def dump(key, value):
    """The text of a yaml file that sets one key."""
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    # JSON is YAML but for these two words.
    text = json.dumps({"VERSION": 2, **nested})
    return text.replace("NaN", ".nan").replace("Infinity", ".inf")


def value_of(cfg, key):
    return flatten(cfg)[key]


def test_the_table_makes_the_config():
    cfg = CfgNode()
    add_moco_config(cfg)
    wanted = {key.name: key.default for group in MOCO_GROUPS for key in group.keys}
    assert flatten(cfg) == wanted and len(wanted) == sum(len(g.keys) for g in MOCO_GROUPS)
    assert type(cfg.MOCO.DATA) is CfgNode


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_every_key_is_described_and_accepts_its_own_default(key):
    default = value_of(get_cfg(), key.name)
    cfg = CfgNode({"X": default})
    cfg.merge_from_list(["X", read_value(key.name, default)])
    cfg.merge_from_list(["X", read_value(key.name, str(default))])
    assert (cfg.X, type(cfg.X)) == (default, type(default))
    assert key.meaning[0].isupper() or key.meaning[0] == "`"
    assert key.meaning.endswith(".") and key.source and str(key.allowed)


def test_names_that_are_in_records_stay():
    """A new name would make old runs unmatched: records are compared by all keys of a config."""
    old = {"MOCO.CHECKPOINT.REINITIALISE", "MOCO.KNN.NEIGHBOURS", "MOCO.MONITOR.NEIGHBOURS"}
    assert old <= set(KEYS)


def test_keys_of_detectron2_are_in_both_tables_once():
    assert len(KEYS) == sum(len(group.keys) for group in (*MOCO_GROUPS, DETECTRON2_GROUP))
    assert {key.name for key in DETECTRON2_GROUP.keys} <= set(flatten(get_cfg()))


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("MOCO.AMP_DTYPE", DTYPES),
        ("MOCO.AUGMENTATION.NAME", AUGMENTATIONS),
        ("MOCO.CHECKPOINT.REINITIALISE", PARTS),
        ("MOCO.DICTIONARY.NAME", DICTIONARIES),
        ("MOCO.ENCODER.ARCH", (*ARCHITECTURES, *VITS)),
        ("MOCO.LR_SCHEDULE", SCHEDULES),
        ("MOCO.VOC_EVALUATION", MODES),
    ],
)
def test_the_code_has_what_the_table_names(key, known):
    kind = typing.cast("Choice | Names", KEYS[key].allowed)
    assert kind.names == tuple(known)


NUMBERS = [key for key in KEYS.values() if isinstance(key.allowed, Number)]


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.name)
@pytest.mark.parametrize("door", ["file", "command line"])
def test_no_number_is_nan_infinite_text_or_a_truth_value(tmp_path, key, door):
    file = tmp_path / "a.yaml"
    for value in (math.nan, math.inf, -math.inf, "many", True, [1], "(1, 2)"):
        file.write_text("VERSION: 2\n" if door == "command line" else dump(key.name, value))
        words = [key.name, str(value)] if door == "command line" else []
        where = f"config {file}" if door == "file" else "override on the command line"
        with pytest.raises(UserError) as caught:
            load_config(file, words)
        assert str(caught.value).startswith(f"{where}: {key.name} must be {key.allowed}, got ")
        assert "\n" not in str(caught.value)


CASES = [  # what must be, got what, for a value written as on the command line
    ("MOCO.DATA.SHARE", "2", "in (0, 1], got 2"),
    ("MOCO.DATA.SHARE", "0", "in (0, 1], got 0"),
    ("MOCO.MOMENTUM", "1", "in [0, 1), got 1"),
    ("MOCO.MOMENTUM", "-0.1", "in [0, 1), got -0.1"),
    ("MOCO.TEMPERATURE", "0", "a finite number above 0, got 0"),
    ("MOCO.TEMPERATURE", "-0.07", "a finite number above 0, got -0.07"),
    ("MOCO.KNN.TEMPERATURE", "0.0", "a finite number above 0, got 0.0"),
    ("MOCO.WARMUP_EPOCHS", "-1", "a finite number of at least 0, got -1"),
    ("MOCO.AUGMENTATION.SIZE", "0", "an integer of at least 1, got 0"),
    ("MOCO.ENCODER.DIM", "0", "an integer of at least 1, got 0"),
    ("MOCO.ENCODER.GROUPS", "0", "an integer of at least 1, got 0"),
    ("MOCO.DICTIONARY.SIZE", "-1", "an integer of at least 0, got -1"),
    ("MOCO.BN_SPLITS", "-1", "an integer of at least 0, got -1"),
    ("MOCO.REFERENCE_BATCH", "-1", "an integer of at least 0, got -1"),
    ("MOCO.ACCUMULATION", "0", "an integer of at least 1, got 0"),
    ("MOCO.CHECKPOINT.KEEP_LAST", "-1", "an integer of at least 0, got -1"),
    ("MOCO.EPOCHS", "1.5", "an integer of at least 0, got 1.5"),
    ("MOCO.PRETEXT", "moko", "moco, mocov3 or supervised, got 'moko'; did you mean 'moco"),
    ("MOCO.PRETEXT", "rotation", "moco, mocov3 or supervised, got 'rotation'"),
    (
        "MOCO.DICTIONARY.NAME",
        "queue",
        "Queue, MemoryBank or EndToEnd, got 'queue'; did you mean 'Queue'?",
    ),
    (
        "MOCO.ENCODER.ARCH",
        "resnet51",
        "resnet18, resnet34, resnet50, resnet101, resnet152, vit_tiny, vit_small or vit_base, got "
        "'resnet51'; did you mean 'resn",
    ),
    ("MOCO.LR_SCHEDULE", "linear", "step, step_every, cosine or cosine_after_warmup, got 'lin"),
    ("MOCO.AMP_DTYPE", "float8", "bfloat16 or float16, got 'float8'; did you mean 'float16' or"),
    ("MOCO.AUGMENTATION.WHERE", "gpu", "workers or device, got 'gpu'"),
    ("MOCO.VOC_EVALUATION", "rough", "compatible or exact, got 'rough'"),
    ("MOCO.SYMMETRIC", "1", "True or False, got 1"),
    ("MOCO.SYMMETRIC", "maybe", "True or False, got 'maybe'"),
    ("MOCO.LR_STEPS", "(2, 1)", "a tuple of finite numbers of at least 1 in increasing order, got"),
    ("MOCO.LR_STEPS", "(1, 1)", "a tuple of finite numbers of at least 1 in increasing order, got"),
    ("MOCO.LR_STEPS", "(0, 1)", "a tuple of finite numbers of at least 1 in increasing order, got"),
    ("MOCO.LR_STEPS", "120", "a tuple of finite numbers of at least 1 in increasing order, got"),
    ("MOCO.AUGMENTATION.CROP_SCALE", "(0.2,)", "two numbers in (0, 1], the smaller first, got"),
    ("MOCO.AUGMENTATION.CROP_SCALE", "(1.0, 0.2)", "two numbers in (0, 1], the smaller first, got"),
    ("MOCO.AUGMENTATION.CROP_SCALE", "(0.2, 2)", "two numbers in (0, 1], the smaller first, got"),
    ("MOCO.AUGMENTATION.CROP_SCALE", "()", "two numbers in (0, 1], the smaller first, got ()"),
    ("MOCO.RANDOM_SCALE", "(2.0,)", "two finite numbers above 0, the smaller first, or (), got"),
    ("MOCO.RANDOM_SCALE", "(0, 1.0)", "two finite numbers above 0, the smaller first, or (), got"),
    ("MOCO.MONITOR.EXPECTED_LOSS", "(6.9, 6.5)", "two finite numbers of at least 0, the smaller"),
    ("MOCO.MONITOR.EXPECTED_LOSS", "(1, 2, 3)", "two finite numbers of at least 0, the smaller"),
    (
        "MOCO.CHECKPOINT.REINITIALISE",
        "heads",
        "a tuple of names, each of them queue or head, got 'heads'; did you mean 'head'?",
    ),
    ("DATALOADER.NUM_WORKERS", "-1", "an integer of at least 0, got -1"),
    ("SOLVER.IMS_PER_BATCH", "0", "an integer of at least 1, got 0"),
    ("SOLVER.MAX_ITER", "-1", "an integer of at least 0, got -1"),
    ("SOLVER.BASE_LR", "-0.1", "a finite number of at least 0, got -0.1"),
    ("SOLVER.STEPS", "(3, 2)", "a tuple of integers of at least 0 in increasing order, got"),
    ("DATASETS.TRAIN", "", "a name or a tuple of names, got ''"),
    ("DATASETS.TEST", "('a', 3)", "a name or a tuple of names, got ('a', 3)"),
]


@pytest.mark.parametrize(("key", "word", "message"), CASES, ids=lambda text: text[:40])
def test_a_wrong_value_is_named_with_its_place_and_what_it_must_be(tmp_path, key, word, message):
    with pytest.raises(UserError) as caught:
        load_config("moco_v2_R50_200ep.yaml", [key, word])
    start = f"override on the command line: {key} must be {message}"
    assert str(caught.value).startswith(start) and "\n" not in str(caught.value)
    file = tmp_path / "a.yaml"
    file.write_text(dump(key, word))  # text, which a config takes for the literal
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"config {file}: {key} must be {message}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("SOLVER.WEIGHT_DECAY_NORM", math.nan), ("MODEL.PIXEL_STD", [1.0, math.nan, 1.0])],
)
def test_no_key_of_detectron2_is_nan(tmp_path, key, value):
    file = tmp_path / "a.yaml"
    file.write_text(dump(key, value))
    with pytest.raises(UserError, match=rf"^config {file}: {key} must not be NaN, got "):
        load_config(file)


def test_the_norm_that_clips_gradients_may_be_infinite(tmp_path):
    """Detectron2 documents it."""
    file = tmp_path / "a.yaml"
    file.write_text(dump("SOLVER.CLIP_GRADIENTS.NORM_TYPE", math.inf))
    assert math.isinf(load_config(file).SOLVER.CLIP_GRADIENTS.NORM_TYPE)


@pytest.mark.parametrize(
    ("key", "word", "value"),
    [
        ("SOLVER.MAX_ITER", "0", 0),  # MOCO.EPOCHS counts
        ("SEED", "-1", -1),
        ("MOCO.DATA.SHARE", "1", 1.0),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("MOCO.DATA.MAX_UNREADABLE", "1", 1.0),
        ("MOCO.MOMENTUM", "0", 0.0),
        ("MOCO.LR_STEPS", "()", ()),
        ("MOCO.LR_STEPS", "[1.5, 3]", (1.5, 3)),
        ("MOCO.RANDOM_SCALE", "(1, 1)", (1, 1)),
        ("MOCO.AUGMENTATION.BLUR_SIGMA", "(0, 0)", (0, 0)),
        ("MOCO.CHECKPOINT.REINITIALISE", "queue", ("queue",)),
        ("MOCO.CHECKPOINT.REINITIALISE", "('queue', 'head')", ("queue", "head")),
        ("MOCO.SYMMETRIC", "true", True),
        ("MOCO.TASK", "2007", "2007"),
        ("MOCO.TASK", "'voc_C4'", "voc_C4"),
        ("MOCO.KNN.TRAIN", "(1)/images", "(1)/images"),
    ],
)
def test_values_that_are_accepted(tmp_path, key, word, value):
    typed = value_of(load_config("moco_v2_R50_200ep.yaml", [key, word]), key)
    file = tmp_path / "a.yaml"
    file.write_text(dump(key, word))
    read = value_of(load_config(file), key)
    assert (typed, type(typed)) == (read, type(read)) == (value, type(value))


NAMES = [
    ("my/folder", ("my/folder",)),
    ("my folder", ("my folder",)),
    ("('my/folder',)", ("my/folder",)),
    ("['a', 'b']", ("a", "b")),
    ("'a','b'", ("a", "b")),
    ("'my/folder'", ("my/folder",)),
    ("()", ()),
    ("a,b", ("a,b",)),
    # Folders whose names are literals, or begin as some do.
    ("2007", ("2007",)),
    ("2007_01", ("2007_01",)),
    ("1e3", ("1e3",)),
    ("0x10", ("0x10",)),
    ("None", ("None",)),
    ("True", ("True",)),
    ("{'a': 1}", ("{'a': 1}",)),
    ("b'x'", ("b'x'",)),
    ("(1)", ("(1)",)),
    ("(my folder)/x", ("(my folder)/x",)),
    ("[x", ("[x",)),
    ("-x", ("-x",)),
    ("shards:data/{0..3}.tar", ("shards:data/{0..3}.tar",)),
]


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
@pytest.mark.parametrize(("word", "names"), NAMES, ids=[word for word, _ in NAMES])
def test_one_name_needs_no_tuple(tmp_path, key, word, names):
    file = tmp_path / "a.yaml"
    file.write_text(dump(key, word))
    literals = ("{'a': 1}", "b'x'")
    if word in literals:  # what no config key holds is refused wherever it stands
        with pytest.raises(UserError, match="is no text, number, truth value or list"):
            load_config(file)
        with pytest.raises(UserError, match="is no text, number, truth value or list"):
            load_config("moco_v2_R50_200ep.yaml", [key, word])
        return
    assert value_of(load_config(file), key) == names
    assert value_of(load_config("moco_v2_R50_200ep.yaml", [key, word]), key) == names


@pytest.mark.parametrize("text", ["2007", "2007_01", "true", "2007-01-02", "{a: b}", "[1]"])
def test_a_name_that_yaml_takes_for_something_else_needs_quotes(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(f"VERSION: 2\nDATASETS:\n  TRAIN: {text}\n")
    with pytest.raises(UserError, match=rf"^config {file}: .*DATASETS.TRAIN|^config .*TRAIN in"):
        load_config(file)
    file.write_text(f"VERSION: 2\nDATASETS:\n  TRAIN: 'x{text}'\n")
    assert value_of(load_config(file), "DATASETS.TRAIN") == (f"x{text}",)


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
def test_one_name_is_as_little_trusted_as_a_tuple(tmp_path, key):
    file = tmp_path / "a.yaml"
    for word in ("shards:pipe:touch ran", "shards:{pipe,pipe}:touch ran", "http://localhost:9/x"):
        file.write_text(dump(key, word))
        with pytest.raises(UserError, match=f"{key} would run or fetch"):
            load_config(file)
        file.write_text("VERSION: 2\n")
        with pytest.raises(UserError, match=f"{key} would run or fetch"):
            load_config(file, [key, word], typed=False)
        assert value_of(load_config(file, [key, word]), key) == (word,)


def test_a_value_of_a_shared_part_of_a_file_is_read_once_or_twice_alike(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("VERSION: 2\nDATASETS: &x\n  TRAIN: a\n  TEST: b\n")
    assert load_config(file).DATASETS.TRAIN == ("a",)
    assert read_value("MOCO.TASK", read_value("MOCO.TASK", "2007")) == "'2007'"
    assert read_value("DATASETS.TRAIN", read_value("DATASETS.TRAIN", "2007")) == ("2007",)


def test_intervals_are_written_as_in_mathematics():
    assert str(Number("[0, 3]", integer=True)) == "an integer in [0, 3]"
    assert str(Numbers(Number("[0, 3]", integer=True))) == (
        "a tuple of integers in [0, 3] in increasing order"
    )
    with pytest.raises(ValueError, match="is not an interval"):
        str(Number("0 to 1"))
