"""Runs of stock Detectron2, as its own config and writer leave them, become records."""

import json
import os

import pytest
import yaml

from moco_d2.benchmark.records.importing import import_run
from moco_d2.benchmark.records.run_records import read_content, read_records
from moco_d2.benchmark.rendering import render
from moco_d2.errors import UserError

CONFIG = {
    "DATASETS": {"TRAIN": ["voc_2007_trainval", "voc_2012_trainval"], "TEST": ["voc_2007_test"]},
    "FLOAT32_PRECISION": "",  # a key of today's Detectron2, which v0.6 does not know
    "MODEL": {"DEVICE": "cuda", "RESNETS": {"NORM": "SyncBN"}, "WEIGHTS": "./moco_r50.pkl"},
    "OUTPUT_DIR": "./output",
    "SEED": 3,
    "SOLVER": {"BASE_LR": 0.02, "IMS_PER_BATCH": 16, "MAX_ITER": 24000, "STEPS": [18000, 22000]},
}
LOG = [
    {"iteration": 11999, "total_loss": 0.6, "time": 0.41, "rpn/num_pos_anchors": 9.0},
    {"iteration": 12000, "bbox/AP": 50.0, "bbox/AP50": 78.0, "bbox/AP75": 55.0},
    {"iteration": 23999, "total_loss": 0.5, "time": 0.43},
    {"iteration": 24000, "bbox/AP": 55.9, "bbox/AP50": 81.5, "bbox/AP75": float("nan")},
]
# Nine lists of nine lists of ...: 400 million values.
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for name, before in zip("bcdefghi", "abcdefgh", strict=True)
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, CONFIG, LOG)
    return folder


def write(folder, config, log):
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    (folder / "config.yaml").write_text(text)
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in log))


def changed(**sections):
    """CONFIG with other values in its sections; None takes a key away."""
    config = {**CONFIG}
    for name, values in sections.items():
        both = {**config[name], **values} if isinstance(values, dict) else values
        config[name] = (
            {k: v for k, v in both.items() if v is not None} if isinstance(both, dict) else both
        )
    return {k: v for k, v in config.items() if v is not None}


def import_moco(folder, **kwargs):
    return import_run(folder, **{"task": "voc_C4", "initialization": "moco", **kwargs})


def test_what_the_files_say_is_in_the_record_and_nothing_else(folder):
    os.utime(folder / "metrics.json", (1.6e9, 1.6e9))
    path = import_moco(folder)
    assert path == folder / "record.json"
    (record,) = read_records([folder])
    assert record.origin == {"how": "imported", "source": str(folder.resolve())}
    assert (record.task, record.initialization, record.seed) == ("voc_C4", "moco", 3)
    assert record.metrics == {"bbox/AP": 55.9, "bbox/AP50": 81.5, "bbox/AP75": None}
    assert [line["iteration"] for line in record.history] == [12000, 24000]
    assert record.images == 24000 * 16
    assert record.config == CONFIG
    assert record.cost["seconds_per_iteration"] == pytest.approx(0.42)
    assert record.finished.timestamp() == 1.6e9
    # Not known, and marked as such in the tables.
    assert (record.expected, record.loaded, record.has_provenance) == (0, 0, False)
    assert record.weights_sha256 is None and not record.environment and not record.hardware
    assert read_content(path)["weights"]["file"] == "./moco_r50.pkl"


def test_beside_ours_in_the_table_and_marked(folder, make_content, write):
    write(make_content(initialization="supervised"))
    import_moco(folder)
    text = render(read_records([write.folder, folder]))
    (row,) = [line for line in text.splitlines() if line.startswith("| moco")]
    assert "55.9" in row and "‖" in row and "‡" in row
    assert "imported" in text


def test_the_same_config_is_matched_and_another_is_not(folder, tmp_path):
    paths = [import_moco(folder, destination=tmp_path / "a.json")]
    write(folder, changed(SEED=4, MODEL={"WEIGHTS": "other.pkl"}, OUTPUT_DIR="elsewhere"), LOG)
    paths.append(import_moco(folder, destination=tmp_path / "b.json"))
    write(folder, changed(SOLVER={"BASE_LR": 0.01}), LOG)
    paths.append(import_moco(folder, destination=tmp_path / "c.json"))
    a, b, c = (record.matched_sha256 for record in read_records(paths))
    assert a == b != c


def test_several_test_sets_keep_their_names(folder):
    tests = ["voc_2007_test", "voc_2012_val"]
    last = {f"{name}/bbox/AP": value for name, value in zip(tests, (1.0, 2.0), strict=True)}
    write(folder, changed(DATASETS={"TEST": tests}), [{"iteration": 24000, **last}])
    import_moco(folder)
    (record,) = read_records([folder])
    assert record.metrics == last


def test_random_initialization_and_the_default_seed(folder):
    write(folder, changed(MODEL={"WEIGHTS": ""}, SEED=None), LOG)
    path = import_moco(folder, initialization="random")
    assert read_content(path)["weights"] is None
    assert read_records([path])[0].seed == -1  # Detectron2's "from the clock"


def test_a_config_and_a_log_that_detectron2_itself_wrote(tmp_path):
    from detectron2.config import get_cfg
    from detectron2.utils.events import EventStorage, JSONWriter

    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.MAX_ITER", 4, "MODEL.WEIGHTS", "detectron2://R-50.pkl"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    writer = JSONWriter(str(tmp_path / "metrics.json"))
    with EventStorage(0) as storage:
        for storage.iter in range(4):
            storage.put_scalars(total_loss=4.0 - storage.iter, time=0.1 * storage.iter)
            if storage.iter == 1:
                storage.put_scalars(**{"bbox/AP": 1.0}, smoothing_hint=False)
        writer.write()
        storage.iter = 4
        storage.put_scalars(**{"bbox/AP": 2.0}, smoothing_hint=False)
        writer.write()
    writer.close()
    import_run(tmp_path, task="voc_C4", initialization="supervised_msra")
    (record,) = read_records([tmp_path])
    assert record.metrics == {"bbox/AP": 2.0}
    assert [line["iteration"] for line in record.history] == [1, 4]
    assert record.config == json.loads(json.dumps(cfg))  # tuples are lists there


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ([], "no valid line"),
        (LOG[:2], "ends at iteration 12000 of 24000"),
        (LOG[:3], "last evaluation .* is of iteration 12000 of 24000"),
        (LOG[2:3], "no evaluation"),
        ([*LOG, {"iteration": 90000, "bbox/AP": 1.0}], "are of different runs"),
        ([{"iteration": 24000, "bbox/AP": 1e30}], "cannot be imported"),
    ],
)
def test_a_run_that_cannot_be_a_result_is_refused(folder, log, said):
    write(folder, CONFIG, log)
    with pytest.raises(UserError, match=said):
        import_moco(folder)
    assert not (folder / "record.json").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed(DATASETS=None), 'field "DATASETS" is missing'),
        (changed(SOLVER={"MAX_ITER": None}), 'SOLVER: the field "MAX_ITER" is missing'),
        (changed(SOLVER={"BASE_LR": "0.02"}), "SOLVER.BASE_LR"),
        (changed(DATASETS={"TRAIN": ""}), "DATASETS.TRAIN"),
        (changed(MODEL={"WEIGHTS": "x\ud800"}), "cannot be imported|damaged"),
        ("a: [", "damaged"),
        (
            "!!python/object/apply:os.system ['touch executed']",
            "damaged.*could build any obj",
        ),
        ("- 1", "not a config of Detectron2"),
        ("&a [*a]", "unfolds to more than 100000 values"),
        ("a: &a [*a]", "unfolds to more than 100000 values"),
        (BOMB, "unfolds to more than 100000 values"),
        ("a: " + "[" * 5000, "damaged"),
        ("a: " + "9" * 5000, "damaged"),
        ("#" * (2 << 20), "must be at most 1 MiB"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_a_config_that_is_none_is_refused(folder, config, said):
    if isinstance(config, dict):
        config = yaml.safe_dump(config, allow_unicode=False)
    write(folder, config, LOG)
    with pytest.raises(UserError, match=said):
        import_moco(folder)
    assert [file.name for file in sorted(folder.iterdir())] == ["config.yaml", "metrics.json"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "voc_c4"}, "did you mean 'voc_C4'"),
        ({"initialization": "MoCo"}, "did you mean 'moco'"),
        ({"initialization": "moco-v2_200ep"}, "did you mean 'moco_v2_200ep'"),
        ({"initialization": "random"}, "not random initialization"),
        ({"initialization": "a\nb"}, "run.initialisation"),
        ({"initialization": "m" * 1000}, "run.initialisation"),
    ],
)
def test_names_are_checked(folder, given, said):
    with pytest.raises(UserError, match=said):
        import_moco(folder, **given)


def test_empty_weights_are_no_pretrained_ones(folder):
    write(folder, changed(MODEL={"WEIGHTS": ""}), LOG)
    with pytest.raises(UserError, match="which is random initialization"):
        import_moco(folder)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}"):
        import_moco(folder)


def test_a_record_is_never_overwritten(folder):
    before = import_moco(folder).read_text()
    with pytest.raises(UserError, match="exists.*--out"):
        import_moco(folder, initialization="densecl")
    assert (folder / "record.json").read_text() == before


def test_runs_seeded_from_the_clock_all_count_though_copied_together(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        write(tmp_path / name, changed(SEED=-1), LOG)
        os.utime(tmp_path / name / "metrics.json", (1.6e9, 1.6e9))
        import_moco(tmp_path / name)
    assert "n=3" in render(read_records([tmp_path]))
