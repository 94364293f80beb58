"""Suites: the packaged ones name configs that exist, and mistakes in one's own are one sentence."""

import pytest
import yaml

from moco_d2.benchmark.paper import paper_tables
from moco_d2.benchmark.runs.suites import load_suite, packaged_suites
from moco_d2.config import load_config, task_configs
from moco_d2.errors import UserError


def write(tmp_path, **content):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def small(**more):
    return {"tasks": ["voc_C4"], "initialisations": ["random", "moco"], "seeds": [1, 2], **more}


@pytest.mark.parametrize("name", packaged_suites())
def test_packaged_suites_run_configs_that_exist(name):
    suite = load_suite(name)
    assert suite.title and suite.cells
    known = {config.removesuffix(".yaml") for config in task_configs()}
    for cell in suite.cells:
        if cell.kind == "transfer":
            ((tool, words),) = cell.commands
            assert tool == "train_net.py"
            assert words[:2] == ("--config-file", f"{cell.task}_{cell.initialisation}.yaml")
            assert f"{cell.task}_{cell.initialisation}" in known
            assert cell.iterations > 0


@pytest.mark.parametrize(
    ("suite", "tables"),
    [
        ("table_2a", ["voc_dilated_C5"]),
        ("table_2b", ["voc_C4"]),
        ("table_3", ["voc_dilated_C5_mechanisms", "voc_C4_mechanisms"]),
        ("table_4", ["voc07_C4"]),
        ("table_5a", ["coco_FPN_1x"]),
        ("table_5b", ["coco_FPN_2x"]),
        ("table_5c", ["coco_C4_1x"]),
        ("table_5d", ["coco_C4_2x"]),
        ("table_6_keypoint", ["coco_keypoint_FPN_2x"]),
        ("table_6_densepose", ["coco_densepose_FPN_s1x"]),
        ("table_6_lvis", ["lvis_v0.5_FPN_2x"]),
        ("table_6_cityscapes_instance", ["cityscapes_instance_FPN"]),
        ("table_6_cityscapes_semantic", ["cityscapes_semantic"]),
        ("table_6_voc_semantic", ["voc_semantic"]),
        ("table_A1", ["coco_FPN_6x", "coco_FPN_2x"]),
        ("lvis_ablation", ["lvis_v0.5_FPN_1x", "lvis_v0.5_FPN_2x_ablation"]),
    ],
)
def test_a_suite_has_the_rows_of_its_tables(suite, tables):
    """Every row that is printed has a run whose record is set beside it, and as many seeds as the
    paper has trials, where it says so.
    """
    published = {table.name: table for table in paper_tables()}
    cells = load_suite(suite).cells
    for name in tables:
        table = published[name]
        for row in table.rows:
            found = {c.initialisation for c in cells if c.task == table.task}
            assert len(found & set(row.initialisations)) == 1, (name, row.label)
        if table.trials:
            assert len({cell.seed for cell in cells}) == table.trials


def test_the_runs_of_ones_own_suite(tmp_path):
    suite = load_suite(
        write(
            tmp_path,
            **small(
                tasks={"voc_C4": {"SOLVER.MAX_ITER": 10}, "coco_FPN_1x": {}},
                initialisations={"random": None, "moco": {"MODEL.WEIGHTS": "mine.pth"}},
                overrides={"SOLVER.MAX_ITER": 5, "SOLVER.STEPS": [3, 4]},
            ),
        )
    )
    assert [cell.name for cell in suite.cells][:3] == [
        "voc_C4/random/seed1",
        "voc_C4/moco/seed1",
        "voc_C4/random/seed2",
    ]
    assert len(suite.cells) == 8
    ((_, words),) = suite.cells[1].commands
    cfg = load_config(words[1], words[3:])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (10, (3, 4))
    assert (cfg.MODEL.WEIGHTS, cfg.SEED, cfg.OUTPUT_DIR) == ("mine.pth", 1, "{cell}")
    assert suite.cells[1].settings["SOLVER.IMS_PER_BATCH"] == 16  # of the config file
    assert [cell.iterations for cell in suite.cells] == [10] * 4 + [5] * 4


def test_weights_of_ones_own_are_an_initialisation(tmp_path):
    """A file like those of configs/init, as tools/convert.py --emit-config writes it."""
    (tmp_path / "dense_cl.yaml").write_text("MODEL:\n  WEIGHTS: weights/dense_cl.pth\n")
    suite = load_suite(write(tmp_path, **small(initialisations=["moco", "dense_cl.yaml"])))
    assert [cell.initialisation for cell in suite.cells][:2] == ["moco", "dense_cl"]
    ((path, text),) = suite.files.items()
    assert path == "configs/voc_C4_dense_cl.yaml"
    file = tmp_path / "voc_C4_dense_cl.yaml"
    file.write_text(text)
    cfg = load_config(file)
    assert cfg.MODEL.WEIGHTS == "weights/dense_cl.pth" and cfg.MOCO.TASK == "voc_C4"
    ((_, words),) = suite.cells[1].commands
    assert words[1] == "{folder}/configs/voc_C4_dense_cl.yaml"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"kind": "transfr"}, "unknown kind 'transfr'; did you mean 'transfer'"),
        ({"tasks": ["voc_C5"]}, "unknown task 'voc_C5'; did you mean 'voc_C4'"),
        ({"initialisations": ["superwised"]}, "unknown initialisation 'superwised'; did you mean"),
        ({"initialisations": ["other.yaml"]}, "no file .*other.yaml"),
        ({"tasks": 3}, "tasks must be a list of names, or a mapping"),
        ({"tasks": []}, "tasks must be a list of names, or a mapping"),
        ({"seeds": [1, 1]}, "seeds must be a list of different numbers"),
        ({"seeds": [-1]}, "seeds must be a list of different numbers"),
        ({"overrides": ["SOLVER.MAX_ITER", 1]}, "overrides are a mapping"),
        ({"overrides": {"SOLVER": {"MAX_ITER": 1}}}, "with their whole name, SOLVER.MAX_ITER"),
        ({"kind": "demo", "tasks": None}, "unknown key 'tasks'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, content, message):
    file = write(tmp_path, **{**small(), **content})
    with pytest.raises(UserError, match=message) as raised:
        load_suite(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00"])
def test_what_is_no_suite(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="suite"):
        load_suite(file)


def test_the_closest_suite_is_named():
    with pytest.raises(UserError, match="did you mean 'table_2b'"):
        load_suite("tabel_2b")
