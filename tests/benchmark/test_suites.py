"""Suites: the packaged ones name configs that exist, and mistakes in one's own are one sentence."""

import pytest
import yaml

from moco_d2.benchmark.paper_tables import paper_tables
from moco_d2.benchmark.runs import execution, measuring
from moco_d2.benchmark.runs.execution import Place, run_next
from moco_d2.benchmark.runs.planning import plan
from moco_d2.benchmark.runs.runner import run
from moco_d2.benchmark.runs.suites import Cell, Suite, load_suite, packaged_suites
from moco_d2.benchmark.runs.trials import is_trial
from moco_d2.config.load import load_config, task_configs
from moco_d2.errors import UserError


def write(tmp_path, **content):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def small(**more):
    return {"tasks": ["voc_C4"], "initializations": ["random", "moco"], "seeds": [1, 2], **more}


@pytest.mark.parametrize("name", packaged_suites())
def test_packaged_suites_run_configs_that_exist(name):
    suite = load_suite(name)
    assert suite.title and suite.cells
    known = {config.removesuffix(".yaml") for config in task_configs()}
    for cell in suite.cells:
        if cell.kind == "transfer":
            ((tool, words),) = cell.commands
            assert tool == "train_net.py"
            assert words[:2] == ("--config-file", f"{cell.task}_{cell.initialization}.yaml")
            assert f"{cell.task}_{cell.initialization}" in known
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
        ("vit_li2021", ["coco_vitdet_B_100ep", "coco_vitdet_B_100ep_masks"]),
        ("vitdet_table_4", ["coco_vitdet_B_table_4"]),
        ("lvis_vitdet", ["lvis_v1_vitdet_B_100ep"]),
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
            found = {c.initialization for c in cells if c.task == table.task}
            assert len(found & set(row.names)) == 1, (name, row.label)
        if table.trials:
            assert len({cell.seed for cell in cells}) == table.trials


def test_vit_li2021_tunes_all_rows_by_one_rule_and_trains_random_weights_longer():
    suite = load_suite("vit_li2021")
    trials = [cell for cell in suite.cells if is_trial(cell)]
    runs = [cell for cell in suite.cells if not is_trial(cell)]
    long = {f"coco_vitdet_B_{epochs}ep" for epochs in (200, 400)}
    rows = {"random", "supervised_vit", "mocov3_vit", "beit_vit", "mae_vit"}
    for task in {cell.task for cell in runs}:
        own = {"random"} if task in long else rows
        assert {cell.initialization for cell in runs if cell.task == task} == own
        assert {cell.initialization for cell in trials if cell.task == task} == own
    assert len({cell.settings["MOCO.TUNED"] for cell in runs}) == 1
    assert all(len([name for name in cell.needs if "/tuning/" in name]) == 4 for cell in runs)
    assert suite.design.primary == ("bbox/AP",)


@pytest.mark.parametrize(
    "only, message",
    [
        ({"voc_C5": ["moco"]}, "unknown task in only 'voc_C5'; did you mean 'voc_C4'"),
        ({"voc_C4": ["mocco"]}, "unknown initialization in only 'mocco'; did you mean 'moco'"),
        ({"voc_C4": []}, "only must map tasks to lists of initializations"),
        (["voc_C4"], "only must map tasks to lists of initializations"),
    ],
)
def test_only_names_tasks_and_initializations_of_the_suite(tmp_path, only, message):
    with pytest.raises(UserError, match=message):
        load_suite(write(tmp_path, **small(only=only)))


def test_only_leaves_a_task_to_some_initializations(tmp_path):
    both = small(tasks=["voc_C4", "coco_C4_1x"], only={"voc_C4": ["moco"]})
    cells = load_suite(write(tmp_path, **both)).cells
    found = {(cell.task, cell.initialization) for cell in cells}
    assert found == {("voc_C4", "moco"), ("coco_C4_1x", "moco"), ("coco_C4_1x", "random")}


def test_the_runs_of_ones_own_suite(tmp_path):
    suite = load_suite(
        write(
            tmp_path,
            **small(
                tasks={"voc_C4": {"SOLVER.MAX_ITER": 10}, "coco_FPN_1x": {}},
                initializations={"random": None, "moco": {"MODEL.WEIGHTS": "mine.pth"}},
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


def test_weights_of_ones_own_are_an_initialization(tmp_path):
    """A file like those of configs/init, as tools/convert.py --emit-config writes it."""
    (tmp_path / "dense_cl.yaml").write_text("MODEL:\n  WEIGHTS: weights/dense_cl.pth\n")
    suite = load_suite(write(tmp_path, **small(initializations=["moco", "dense_cl.yaml"])))
    assert [cell.initialization for cell in suite.cells][:2] == ["moco", "dense_cl"]
    ((path, text),) = suite.files.items()
    assert path == "configs/voc_C4_dense_cl.yaml"
    file = tmp_path / "voc_C4_dense_cl.yaml"
    file.write_text(text)
    cfg = load_config(file)
    assert cfg.MODEL.WEIGHTS == "weights/dense_cl.pth" and cfg.MOCO.TASK == "voc_C4"
    ((_, words),) = suite.cells[1].commands
    assert words[1] == "{folder}/configs/voc_C4_dense_cl.yaml"


def test_a_suite_with_the_old_spelling_has_the_same_runs(tmp_path):
    content = small()
    new = load_suite(write(tmp_path, **content))
    content["initialisations"] = content.pop("initializations")
    assert load_suite(write(tmp_path, **content)) == new
    content["initialisations"] = 3
    with pytest.raises(UserError, match="initialisations must be a list of names"):
        load_suite(write(tmp_path, **content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"INPUT": {}}, "unknown key 'INPUT'; there are tasks, (?!.*margin, initializations)"),
        ({"kind": "transfr"}, "unknown kind 'transfr'; did you mean 'transfer'"),
        ({"tasks": ["voc_C5"]}, "unknown task 'voc_C5'; did you mean 'voc_C4'"),
        ({"initializations": ["superwised"]}, "unknown initialization 'superwised'; did you mean"),
        ({"initializations": ["other.yaml"]}, "other.yaml' is not a file; name it relative to"),
        ({"tasks": 3}, "tasks must be a list of names, or a mapping"),
        ({"tasks": []}, "tasks must be a list of names, or a mapping"),
        ({"seeds": [1, 1]}, "seeds must be a list of different numbers"),
        ({"seeds": [-1]}, "seeds must be a list of different numbers"),
        ({"overrides": ["SOLVER.MAX_ITER", 1]}, "overrides must be a mapping"),
        ({"overrides": {"SEED": 7}}, "SEED must not be an override: each run has one of the seeds"),
        ({"overrides": {"OUTPUT_DIR": "x"}}, "OUTPUT_DIR must not be an override: each run has"),
        ({"overrides": {"MOCO.TASK": "x"}}, "MOCO.TASK must not be an override: the task names"),
        ({"overrides": {"MODEL.WEIGHTS": "x"}}, "MODEL.WEIGHTS must not be .* all initializations"),
        ({"tasks": {"voc_C4": {"MODEL.WEIGHTS": "x"}}}, "MODEL.WEIGHTS must not be an override"),
        ({"initializations": {"moco": {"SEED": 7}}}, "SEED must not be an override"),
        ({"overrides": {"SOLVER": {"MAX_ITER": 1}}}, "in full, SOLVER.MAX_ITER"),
        ({"kind": "demo", "tasks": None}, "unknown key 'tasks'"),
        ({"initialisations": ["moco"]}, "initialisations is the old name of initializations"),
        ({"kind": "pretext", "initialisations": ["moco"]}, "unknown key"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, content, message):
    file = write(tmp_path, **{**small(), **content})
    with pytest.raises(UserError, match=message) as raised:
        load_suite(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["SEED", "OUTPUT_DIR", "MOCO.TASK"])
@pytest.mark.parametrize("where", ["suite", "point"])
def test_a_pretext_suite_sets_these_keys_itself(tmp_path, key, where):
    (tmp_path / "x").mkdir()
    overrides = {key: 7}
    points = {"a": overrides if where == "point" else None}
    more = {"overrides": overrides} if where == "suite" else {}
    with pytest.raises(UserError, match=f"{key} must not be an override"):
        load_suite(write(tmp_path, **pretext(points=points, **more)))


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00"])
def test_what_is_no_suite(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="suite"):
        load_suite(file)


def test_the_closest_suite_is_named():
    with pytest.raises(UserError, match="did you mean 'table_2b'"):
        load_suite("tabel_2b")


# ---- suites of strangers -------------------------------------------------------------------------


def pretext(**more):
    return {"kind": "pretext", "config": "moco_v2_R50_200ep", "data": "x", **more}


OUTSIDE = [
    *("../out", "/out", "a/../../out", "a//b", "a/", "/", "", ".", "..", "a/..", ".hidden", "a/.b"),
    *(
        "-x",
        "--submit=partition=x",
        "a/--x",
        "~/x",
        "a b",
        "a\nb",
        "a\0b",
        "a\x1b[2J",
        "a;b",
        "$(a)",
    ),
    *("a" * 101, "a/" * 120 + "a", "configs", "jobs/a", "timings", "{folder}", "a\\..\\b"),
    *("M\u043eCo", "moco\u3164"),  # a Cyrillic letter, and a blank one
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_point_stays_in_the_suites_folder(tmp_path, name):
    file = write(tmp_path, **pretext(points={name: {"MOCO.EPOCHS": 1}}))
    for use in (load_suite, plan, lambda suite: run(suite, folder=tmp_path / "deep" / "out")):
        with pytest.raises(UserError, match="rename") as raised:
            use(file)
        assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine.yaml"]


@pytest.mark.parametrize("what", ["tasks", "initializations"])
@pytest.mark.parametrize(
    "name", ["--config-file.yaml", "-x.yaml", "...yaml", "a b.yaml", "a\n.yaml"]
)
def test_a_file_of_ones_own_gives_a_run_a_plain_name(tmp_path, what, name):
    (tmp_path / name).write_text("VERSION: 2\n")
    with pytest.raises(UserError, match="rename it|unknown"):
        load_suite(write(tmp_path, **small(**{what: [name]})))


def test_a_run_is_in_no_other_runs_folder(tmp_path):
    points = {"a": {"MOCO.EPOCHS": 1}, "a/seed1/pretrain": {"MOCO.EPOCHS": 1}}
    for order in (points, dict(reversed(points.items()))):
        with pytest.raises(UserError, match="is inside another run's folder"):
            load_suite(write(tmp_path, **pretext(points=order)))


HIDDEN = "shards:{pipe,pipe}:touch ran"


@pytest.mark.parametrize(
    "content",
    [
        pretext(points={"a": {"DATASETS.TRAIN": f"('{HIDDEN}',)"}}),
        pretext(points={"a": {"DATASETS.TRAIN": [HIDDEN]}}),
        pretext(points={"a": {}}, overrides={"MOCO.KNN.TRAIN": HIDDEN}),
        pretext(points={"a": {"config": "own.yaml"}}),
        pretext(points={"a": {}}, data="http://localhost:9/x"),
        small(overrides={"DATASETS.TEST": f"('{HIDDEN}',)"}),
        small(tasks={"voc_C4": {"DATASETS.TRAIN": [HIDDEN]}}),
        small(initializations={"moco": {"DATASETS.TRAIN": ["coco:s3://a.json:x"]}}),
        small(initializations=["own.yaml"]),
    ],
)
def test_a_suite_names_data_of_this_machine_only(tmp_path, content):
    (tmp_path / "own.yaml").write_text(f"DATASETS:\n  TRAIN: ['{HIDDEN}']\n")
    file = write(tmp_path, **content)
    for use in (load_suite, plan, lambda suite: run(suite, folder=tmp_path / "out")):
        with pytest.raises(UserError, match="which a file may not do: copy the data to files"):
            use(file)
    assert {path.name for path in tmp_path.rglob("*")} == {"mine.yaml", "own.yaml"}


def running(tmp_path, tool):
    """A suite with a command in its words that no check of suites has seen."""
    config = {"pretrain.py": "moco_v2_R50_200ep.yaml", "train_net.py": "voc_C4_random.yaml"}[tool]
    words = ("--config-file", config, "--resume", "DATASETS.TRAIN")
    words += (f"('shards:{{pipe,pipe}}:touch {tmp_path}/ran',)", "OUTPUT_DIR", "{cell}")
    cell = Cell("a", "voc_C4", "random", 1, commands=((tool, words),))
    return Suite("s", "t", (cell,))


@pytest.mark.parametrize("tool", ["pretrain.py", "train_net.py"])
def test_no_way_to_run_a_suite_takes_its_words_for_the_users(tmp_path, tool, monkeypatch, capfd):
    suite, folder = running(tmp_path, tool), tmp_path / "out"
    with pytest.raises(UserError, match="would run or fetch"):
        run(suite, folder=folder, gpus_per_run=0)
    with pytest.raises(UserError, match="would run or fetch"):
        run(suite, folder=folder, gpus_per_run=0, submit=["cluster=local"])
    assert not folder.exists() or not [p for p in folder.rglob("*") if p.is_file()]
    if tool == "train_net.py":
        problems = measuring.measure_tasks(suite, folder, 0)
        assert "would run or fetch" in problems["voc_C4"]
    # Whatever the runner checks: what a process of its own, or of a cluster, runs.
    monkeypatch.setattr(execution, "_print_to", lambda path: None)
    assert run_next(suite.cells[0], folder, Place()) == 2
    assert "would run or fetch" in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pretext(points={"a": {"--submit": "x"}}), "overrides must be a mapping"),
        (pretext(points={"a": {"MODEL.DEVICE": "--submit=partition=x"}}), "must not begin with --"),
        (pretext(points={"a": {"MODEL.DEVICE": "'--submit'"}}), "must not begin with --"),
        (pretext(points={"a": {}}, evaluation=["--output", "/x"]), "unknown word of evaluation"),
        (pretext(points={"a": {}}, evaluation=["--outp=/x"]), "unknown word of evaluation"),
        (pretext(points={"a": {}}, evaluation=["--num-machines", "2"]), "unknown word"),
        (pretext(points={"a": {}}, evaluation=["x.pth"]), "unknown word of evaluation"),
        (pretext(points={"a": {}}, evaluation=["--size", "--output"]), "--size needs a value"),
        (pretext(points={"a": {}}, evaluation=["--size"]), "--size needs a value"),
        (pretext(points={"a": {}}, data="--output=/x"), "data must be a folder"),
        (pretext(points={"a": {}}, data=["x"]), "data must be a folder"),
        (
            pretext(points={"a": {"MOCO.ENCODER.ARCH": "--output"}}, random=True),
            "must not begin with --|must be a network",
        ),
        (pretext(points={"a": {"config": "--x"}}), "must not begin with --"),
        (pretext(points={"a": {}}, config="--x"), "unknown config"),
        (pretext(points={"a": {}}, images="many"), "images must be a whole number"),
        (pretext(points={"a": {"MOCO.EPOCHS": "x"}}), "MOCO.EPOCHS must be a whole number"),
        (pretext(points={"a": {"MOCO.DATA.SHARE": "x"}}, images=9), r"in \(0, 1\]"),
        (pretext(points={"a": {"MODEL.DEVICE": "-" * 9000 + "1"}}), "cannot be evaluated"),
        (pretext(points={"a": {"MODEL.DEVICE": "{[]: 1}"}}), "cannot be evaluated"),
        (small(kind=["demo"]), "unknown kind"),
        (small(overrides={"SOLVER.MAX_ITER": "many"}), "SOLVER.MAX_ITER must be a whole number"),
        (small(seeds=list(range(9000))), "at most 2000 runs"),
        (small(seeds=[1 << 31]), "seeds must be a list"),
        (small(initializations=["~nobody_of_this_name/a.yaml"]), "is not a file"),
        (small(initializations=["a" * 5000 + ".yaml"]), "is not a file"),
        ({"kind": "demo", "momentum": float("nan")}, "must be a number above 0"),
    ],
)
def test_what_a_suite_may_not_say_is_one_sentence(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as raised:
        load_suite(write(tmp_path, **content))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_a_title_is_text_on_a_terminal(tmp_path):
    suite = load_suite(write(tmp_path, **small(title="x\x1b]0;owned\x07")))
    assert suite.title == "x?]0;owned?"


def test_a_run_that_cannot_be_planned_stops_the_suite_before_its_first_run(tmp_path):
    file = write(tmp_path, **small(overrides={"MOCO.ACCUMULATION": 3}))
    with pytest.raises(UserError, match=r"do not divide among 1 process\(es\) and MOCO.ACCUM"):
        run(file, folder=tmp_path / "out", gpus_per_run=0)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".json"]
