"""Suites of kind pretext, and the results they leave: nothing differs but what a sweep varies."""

import json
import runpy
import sys

import pytest
from support.pretext_content import IMAGENET, result, write_results

from moco_d2.benchmark.records.pretext_records import PretextRecord, read_pretext_records
from moco_d2.benchmark.runs.execution import TOOLS
from moco_d2.benchmark.runs.suites import load_suite
from moco_d2.benchmark.sweeps.definitions import sweeps
from moco_d2.benchmark.sweeps.studies import studies
from moco_d2.config.load import load_config
from moco_d2.config.plain import flatten, to_plain
from moco_d2.errors import UserError
from moco_d2.pretrain.schedule import scale_recipe

ALL_OF_IMAGENET = 1_281_167
KEYS = {
    "mechanism": "MOCO.DICTIONARY.NAME",
    "K": "MOCO.DICTIONARY.SIZE",
    "batch": "SOLVER.IMS_PER_BATCH",
    "lr": "SOLVER.BASE_LR",
    "m": "MOCO.MOMENTUM",
    "T": "MOCO.TEMPERATURE",
    "mlp": "MOCO.ENCODER.MLP",
    "aug": "MOCO.AUGMENTATION.NAME",
    "schedule": "MOCO.LR_SCHEDULE",
    "epochs": "MOCO.EPOCHS",
    "share": "MOCO.DATA.SHARE",
}


def product(names: str, *rows: tuple) -> list[dict]:
    return [dict(zip(names.split(), row, strict=True)) for row in rows]


# What the points of a suite differ in, on 8 processes. Typed from the papers; end-to-end follows
# the linear rule. The dictionary size of end-to-end is not used.
DIFFERENCES = {
    "figure_3": product(
        "mechanism K batch lr",
        *[("EndToEnd", 0, k, 0.03 * k / 256) for k in (256, 512, 1024)],
        *[("MemoryBank", k, 256, 0.03) for k in (256, 512, 1024, 4096, 16384, 65536)],
        *[("Queue", k, 256, 0.03) for k in (256, 512, 1024, 4096, 16384, 65536)],
    ),
    "momentum": product("m", (0.0,), (0.9,), (0.99,), (0.999,), (0.9999,)),
    "temperature": product(
        "mlp T", *[(mlp, t) for mlp in (False, True) for t in (0.07, 0.1, 0.2, 0.3, 0.4, 0.5)]
    ),
    "v2_table_1_pretext": product(
        "mlp aug schedule T",
        (False, "v1", "step", 0.07),
        (True, "v1", "step", 0.2),
        (False, "v2", "step", 0.07),
        (True, "v2", "step", 0.2),
        (True, "v2", "cosine", 0.2),
    ),
    "pretraining_length": product("epochs", (100,), (200,), (400,), (800,)),
    "dataset_size": product("share", (0.1,), (0.2,), (0.5,), (1.0,)),
}
# Recipe of everything else in the suite.
COMMON = {
    "figure_3": {"m": 0.999, "T": 0.07, "mlp": False, "aug": "v1", "epochs": 200},
    "momentum": {"mechanism": "Queue", "K": 4096, "T": 0.07, "mlp": False, "batch": 256},
    "temperature": {"K": 65536, "m": 0.999, "aug": "v1", "schedule": "step", "epochs": 200},
    "v2_table_1_pretext": {"K": 65536, "m": 0.999, "epochs": 200, "batch": 256},
    "pretraining_length": {"K": 65536, "T": 0.2, "mlp": True, "aug": "v2", "schedule": "cosine"},
    "dataset_size": {"K": 4096, "T": 0.2, "mlp": True, "aug": "v2", "schedule": "cosine"},
}
# Of the monitor alone, and of where a checkpoint is saved, which follows the batch.
FREE = {"MOCO.MONITOR.EXPECTED_LOSS", "SOLVER.CHECKPOINT_PERIOD"}


def words_of(command: tuple) -> tuple[str, list[str]]:
    """Config file and overrides of a tools/pretrain.py command."""
    tool, arguments = command
    assert (tool, arguments[0], arguments[2]) == ("pretrain.py", "--config-file", "--resume")
    return arguments[1], list(arguments[3:])


def scaled(cell, images: int) -> dict:
    """The flat config of a cell as it runs on 8 processes."""
    cfg = load_config(*words_of(cell.commands[0]))
    share = round(images * cfg.MOCO.DATA.SHARE)
    cfg, _ = scale_recipe(cfg, world_size=8, num_images=share)
    return flatten(to_plain(cfg)) | {"images": share}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_points_of_a_suite_differ_in_what_it_varies_and_in_nothing_else(name):
    cells = load_suite(name).cells
    configs = [scaled(cell, ALL_OF_IMAGENET) for cell in cells]
    wanted = DIFFERENCES[name]
    found = [{short: c[KEYS[short]] for short in wanted[0]} for c in configs]
    assert found == [pytest.approx(row) for row in wanted]
    assert {short: configs[0][KEYS[short]] for short in COMMON[name]} == COMMON[name]
    varied = {KEYS[short] for short in wanted[0]} | FREE
    varied |= {"images"} if name == "dataset_size" else set()
    for config in configs[1:]:
        assert {k for k in configs[0] if config[k] != configs[0][k]} <= varied
    if name == "dataset_size":  # equal steps
        assert {(c["MOCO.EPOCHS"], c["SOLVER.MAX_ITER"]) for c in configs} == {(0, 200 * 5004)}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_suite_gives_one_study_with_the_papers_points(name):
    (sweep,) = [s for s in sweeps() if s.name == name]
    records = []
    for i, cell in enumerate(load_suite(name).cells):
        config = scaled(cell, ALL_OF_IMAGENET)
        content = result(50 + i, data=IMAGENET, protocol="linear")
        evaluation = {"protocol": "linear", "data": IMAGENET, "architecture": "ResNet-50"}
        images = config.pop("images")
        records.append(
            PretextRecord(
                cell.name, config, images, 8, 50 + i, "linear", evaluation, 1, 1, "", content
            )
        )
    (study,) = [s for s in studies(records) if s.sweep.name == name]
    values = {s: {x: sum(t.values()) for x, t in p.items()} for s, p in study.values.items()}
    assert sorted(v for points in values.values() for v in points.values()) == [
        50 + i for i in range(len(records))
    ]
    if name == "dataset_size":  # the paper has other sets
        assert list(values["MoCo"]) == [128117, 256233, 640584, ALL_OF_IMAGENET]
        return
    missing = {s: set(points) for s, points in sweep.missing.items()}
    for series, points in sweep.points().items():
        added = {100, 400} if name == "pretraining_length" else missing.get(series, set())
        assert set(values[series]) == set(points) | added


def test_commands_of_a_cell():
    cell = load_suite("figure_3").cells[1]
    assert (cell.name, cell.record, cell.kind) == (
        "end_to_end/K512/seed1",
        "evaluation/result.json",
        "pretext",
    )
    assert cell.iterations == 200 * 2502  # the plan's, of half as many steps
    tool, arguments = cell.commands[1]
    assert tool == "linear_eval.py"  # without other words: the paper's protocol
    assert arguments == (
        "{cell}/pretrain/checkpoint_final.pth.tar",
        *("--data", "datasets/imagenet", "--output", "{cell}/evaluation"),
        *("--seed", "1", "--resume"),
    )


def test_the_tool_takes_the_words_of_every_evaluation(monkeypatch):
    tool = runpy.run_path(str(TOOLS / "linear_eval.py"))
    for name in (*DIFFERENCES, "pretext_smoke"):
        for cell in load_suite(name).cells:
            command, words = cell.commands[-1]
            if command == "linear_eval.py":
                # The runner's own words come first, where a run has several GPUs.
                monkeypatch.setattr(sys, "argv", [command, "--num-gpus", "8", *words])
                args = tool["parse_args"]()
                assert args.num_gpus == (1 if name == "pretext_smoke" else 8)
                assert (args.seed, args.resume, args.output) == (
                    cell.seed,
                    True,
                    "{cell}/evaluation",
                )
                assert args.protocol == ("knn" if name == "pretext_smoke" else "linear")


def test_the_smoke_suite_draws_its_images_first():
    suite = load_suite("pretext_smoke")
    images, *others = suite.cells
    assert images.commands == (
        ("demo.py", ("--out", "{cell}", "--images", "960", "450", "0", "0")),
    )
    assert all(cell.needs == (images.name,) for cell in others)
    trained = [c for c in others if c.initialization != "random"]
    assert [others.index(c) for c in others if c not in trained] == [0, 13]  # first of each seed
    assert [c.commands[-1][1][-2:] for c in others] == [("--num-gpus", "1")] * len(others)
    configs = {c.initialization: scaled(c, 960) for c in trained}
    assert {c["SOLVER.BASE_LR"] / c["SOLVER.IMS_PER_BATCH"] for c in configs.values()} == {
        0.03 / 256
    }
    assert {c["DATASETS.TRAIN"][0] for c in configs.values()} == {
        "{folder}/generated_images/pretrain"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data: imagenet\ngenerate: [9, 9]", "exactly one of data and generate"),
        ("", "exactly one of data and generate"),
        ("generate: [9]", "generate must be two numbers"),
        ("data: imagenet\nevaluation: --fast", "evaluation must be a list"),
        ("data: imagenet\nconfig: moco_v1_R50_20ep", "did you mean 'moco_v1_R50_200ep'"),
        ("data: imagenet\npoint: {}", "did you mean 'points'"),
    ],
)
def test_refusals(tmp_path, change, message):
    config = "" if "config" in change else "config: moco_v1_R50_200ep\n"
    file = tmp_path / "own.yaml"
    file.write_text(f"kind: pretext\n{config}points: {{a: {{}}}}\n{change}\n")
    with pytest.raises(UserError, match=message):
        load_suite(file)


def test_a_suite_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("MOCO: {ENCODER: {ARCH: resnet18}}\n")
    file = tmp_path / "own.yaml"
    file.write_text(
        "kind: pretext\nconfig: mine.yaml\ndata: ~/flowers\nrandom: true\n"
        "evaluation: [--fast, --crops, 2]\npoints: {a: {MOCO.MOMENTUM: 0.5}}\n"
    )
    untrained, one = load_suite(file).cells
    name, words = words_of(one.commands[0])
    assert name == str(tmp_path / "mine.yaml")
    assert words[:2] == ["MOCO.MOMENTUM", "0.5"]
    assert one.iterations is None
    assert untrained.commands[0][1][:3] == ("random", "--arch", "resnet18")


# ---- results -------------------------------------------------------------------------------------


def test_results_are_read(tmp_path):
    folder = write_results(tmp_path, [result(57.5, seed=3, MOCO__MOMENTUM=0.9), {"kind": "other"}])
    (record,) = read_pretext_records([folder])
    assert (record.top1, record.seed, record.config["MOCO.MOMENTUM"]) == (57.5, 3, 0.9)
    assert not record.is_random


def test_a_version_1_result_still_reads_and_belongs_to_no_sweep(tmp_path):
    old = result(57.5)
    del old["pretraining"], old["hardware"]
    old |= {"schema_version": 1, "kind": "linear_eval", "device": "cpu"}
    old["data"] = {k: v for k, v in old["data"].items() if k != "name"}
    records = read_pretext_records([write_results(tmp_path, [old, old])])
    assert [r.top1 for r in records] == [57.5, 57.5]
    assert studies(records) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda r: r.pop("accuracy"), "accuracy"),
        (lambda r: r["accuracy"].update(top1=101), "101"),
        (lambda r: r.update(schema_version=3), "version 2"),
        (lambda r: r["pretraining"]["config"].update(SEED="x"), "SEED"),
    ],
)
def test_a_damaged_result_is_named_and_left_out(tmp_path, caplog, damage, said):
    bad = json.loads(json.dumps(result(1.0)))
    damage(bad)
    (record,) = read_pretext_records([write_results(tmp_path, [bad, result(2.0)])])
    assert record.top1 == 2
    assert "000/result.json" in caplog.text and said in caplog.text


@pytest.mark.parametrize("size", ["4096", -1, 0, 1e300, True, None, [1], {"a": 1}])
def test_a_place_that_is_no_number_is_left_out_of_the_sweep(tmp_path, caplog, size):
    bad = result(1.0)
    bad["pretraining"]["config"]["MOCO"]["DICTIONARY"]["SIZE"] = size
    good = [result(50.0, MOCO__DICTIONARY__SIZE=k) for k in (256, 512)]
    (study,) = studies(read_pretext_records([write_results(tmp_path, [bad, *good])]))
    assert list(study.values["MoCo"]) == [256, 512]
    assert "config of its pretraining is damaged" in caplog.text


def test_a_config_that_is_none_is_left_out_of_the_sweeps(tmp_path, caplog):
    bad = result(1.0)
    del bad["pretraining"]["config"]["MOCO"]["ACCUMULATION"]
    good = [result(50.0 + m, MOCO__MOMENTUM=m) for m in (0.9, 0.99)]
    records = read_pretext_records([write_results(tmp_path, [bad, *good])])
    assert [s.sweep.name for s in studies(records)] == ["momentum"]
    assert "config of its pretraining is damaged" in caplog.text
