"""Runs by name: the packaged files, and compositions of a task and an initialization."""

import argparse

import pytest

from moco_d2.checkpoint.published import PUBLISHED
from moco_d2.config.load import (
    config_root,
    find_config,
    find_config_of,
    load_config,
    load_config_of,
    task_configs,
)
from moco_d2.config.plain import flatten
from moco_d2.errors import UserError

HEADLINE_RUNS = sorted(path.name for path in config_root().glob("*.yaml"))
# The others are in tests/config/test_densepose.py.
WITHOUT_DENSEPOSE = [run for run in HEADLINE_RUNS if "densepose" not in run]


def test_every_file_of_its_own_is_a_composition():
    assert set(HEADLINE_RUNS) <= set(task_configs())


@pytest.mark.parametrize("run", WITHOUT_DENSEPOSE)
def test_a_file_of_its_own_is_what_its_name_composes_to(run, tmp_path):
    parts = task_configs()[run]
    composed = tmp_path / "composed.yaml"
    composed.write_text(f"_BASE_: ['{parts[0]}', '{parts[1]}']\n")
    assert find_config(run) == config_root() / run
    assert load_config(run) == load_config(composed)


@pytest.mark.parametrize(
    "name",
    [
        "coco_C4_2x_moco_v2_800ep.yaml",
        "coco_C4_2x_moco_v2_800ep",
        "configs/coco_C4_2x_moco_v2_800ep.yaml",
    ],
)
def test_a_run_without_a_file_is_composed(name):
    file = find_config(name)
    assert file.name == "coco_C4_2x_moco_v2_800ep.yaml"
    assert find_config(str(file)) == file
    cfg = load_config(name, ["SEED", "7"])
    assert (cfg.MOCO.TASK, cfg.MODEL.WEIGHTS, cfg.SEED) == ("coco_C4_2x", "moco://v2_800ep", 7)


def test_capitals_do_not_matter():
    """The weights are moco_IG1B in the paper's words; the run has one name, also in its record."""
    assert find_config("VOC_c4_moco_IG1B").name == "voc_C4_moco_ig1b.yaml"
    assert find_config("coco_fpn_1x_moco.yaml") == config_root() / "coco_FPN_1x_moco.yaml"
    names = {name.lower() for name in task_configs()}
    assert len(names) == len(task_configs())


def test_a_dot_in_a_name_is_no_extension():
    cfg = load_config("lvis_v0.5_FPN_1x_supervised_frozen_bn")
    assert (cfg.MOCO.TASK, cfg.MODEL.RESNETS.NORM) == ("lvis_v0.5_FPN_1x", "FrozenBN")


def test_a_file_of_the_user_comes_before_a_composition(tmp_path, monkeypatch):
    (tmp_path / "voc07_C4_moco.yaml").write_text("SEED: 11\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("voc07_C4_moco.yaml").SEED == 11


def test_an_unknown_run_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'coco_C4_2x_moco_v2_800ep.yaml' or"):
        load_config("coco_C4_2x_moco_v2_80ep.yaml")


def flags(config, task, *words):
    return argparse.Namespace(config_file=str(config), task=task, opts=list(words))


@pytest.mark.parametrize("init", sorted(path.stem for path in (config_root() / "init").iterdir()))
def test_a_task_and_an_initialization_by_flags_are_the_run_of_their_name(init):
    args = flags(init, "coco_C4_1x", "SEED", "3")
    assert find_config_of(args).name == f"coco_C4_1x_{init}.yaml"
    expected = load_config(f"coco_C4_1x_{init}.yaml", ["SEED", "3"])
    assert flatten(load_config_of(args)) == flatten(expected)


def test_what_the_converter_writes_is_combined_with_a_task(tmp_path, monkeypatch):
    """Also with a task of one's own, and with both files in the current folder."""
    file, task = tmp_path / "mine.yaml", tmp_path / "birds.yaml"
    file.write_text("MODEL: {WEIGHTS: weights/mine.pth, RESNETS: {DEPTH: 18}}\n")
    task.write_text(f"_BASE_: {config_root()}/task/voc_C4.yaml\nMOCO: {{TASK: birds}}\n")
    cfg = load_config_of(flags(file, "voc_C4"))
    assert cfg.MOCO.TASK == "voc_C4" and cfg.MODEL.WEIGHTS == "weights/mine.pth"
    assert cfg.MODEL.RESNETS.DEPTH == 18 and cfg.SOLVER.MAX_ITER == 24000
    monkeypatch.chdir(tmp_path)
    args = flags("mine.yaml", "birds.yaml")
    assert load_config_of(args).MOCO.TASK == "birds"
    assert find_config_of(args).name == "birds_mine.yaml"


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ("MODEL: {WEIGHTS: w.pth}", "voc_C5", "--task: there is no task 'voc_C5'; did you mean"),
        ("SOLVER: {MAX_ITER: 9}", "voc_C4", "it sets SOLVER.MAX_ITER, which the task of --task"),
        ("MODEL: {ROI_HEADS: {NUM_CLASSES: 9}}", "voc_C4", "it sets MODEL.ROI_HEADS.NUM_CLASSES"),
        ("MODEL: [", "voc_C4", "mine.yaml: .*did not find expected node content"),
    ],
)
def test_a_task_that_cannot_be_combined_is_one_sentence(tmp_path, content, task, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_config_of(flags(tmp_path / "mine.yaml", task))


def test_a_composition_is_not_sought_in_another_folder(tmp_path):
    with pytest.raises(UserError, match="no config file"):
        find_config(str(tmp_path / "coco_C4_2x_moco.yaml"))


def test_published_weights_are_in_the_catalog():
    inits = (config_root() / "init").glob("*.yaml")
    weights = {load_config(f"voc_C4_{init.stem}.yaml").MODEL.WEIGHTS for init in inits}
    by_name = {w for w in weights if w.startswith(("moco://", "torchvision://"))}
    assert len(by_name) == 4
    assert by_name <= {entry.name for entry in PUBLISHED}


def test_weights_to_be_pretrained_name_a_recipe_that_exists():
    """A comment that sends the user to configs/pretrain/ must not lead nowhere."""
    named = 0
    for file in (config_root() / "init").glob("*.yaml"):
        for word in file.read_text().replace(",", " ").split():
            if word.startswith("configs/pretrain/"):
                assert (config_root().parent / word).is_file()
                named += 1
    assert named == 3


def test_no_config_uses_a_key_that_only_main_has():
    # Keys of today's main that v0.6 rejects. v0.6 is installed, so loading proves it; here
    # the check holds with main installed, too.
    text = "".join(path.read_text() for path in config_root().rglob("*.yaml"))
    for key in ("REPEAT_SQRT", "USE_FED_LOSS", "BASE_LR_END", "NUM_DECAYS", "FLOAT32_PRECISION"):
        assert key not in text
