import datetime
import json
from pathlib import Path

import numpy as np
import pytest

from moco_d2.benchmark.records.run_records import read_content, read_records
from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.records import run_schema
from moco_d2.transfer.evaluation import tide
from moco_d2.transfer.hardware_scaling import scale_to_hardware
from moco_d2.transfer.preflight.config_checks import Finding
from moco_d2.transfer.record import RunRecorder
from moco_d2.transfer.weights import Coverage


def written(folder, metrics, log=(), **kwargs):
    """The record of a run with these metrics, whose metrics.json had these lines."""
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in log))
    cfg = load_config("voc_C4_moco.yaml", ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu"])
    cfg, schedule = scale_to_hardware(cfg, world_size=1)
    path = RunRecorder("voc_C4_moco.yaml", cfg, schedule, [], **kwargs).write(metrics)
    return json.loads(path.read_text()), path


LOG = [
    {"iteration": 19, "total_loss": 2.0, "lr": 0.1, "time": 0.5},
    {"iteration": 39, "total_loss": 1.0, "bbox/AP": 12.5, "bbox/AP-car": float("nan"), "time": 0.3},
    {"iteration": 60, "bbox/AP": 20.0, "bbox/AP-car": 1.0, "rpn/num_pos_anchors": 9.0, "time": 0.4},
]
WEIGHTS = {"file": "moco.pth", "sha256": "0" * 64, "provenance": {"source": "moco.pth.tar"}}


def test_what_is_written_is_what_the_tables_read(tmp_path):
    lost = {"Cls": 1.0, "Loc": 20.0, "Both": 0.5, "Dupe": 0.0, "Bkg": 4.0, "Miss": float("nan")}
    content, path = written(
        tmp_path,
        {"bbox": {"AP": 20.0, "AP-car": float("nan")}},
        LOG,
        weights=WEIGHTS,
        coverage=Coverage(265, ("stem.conv1.weight",)),
        evaluation_seconds=12.5,
        errors={"voc_2007_test": {"AP50": 50.0, **lost}},
    )
    assert content["schema_version"] == run_schema.SCHEMA_VERSION
    assert run_schema.ERROR_TYPES == tide.KINDS
    assert read_content(path) == content  # nothing to upgrade, nothing refused
    (record,) = read_records([path])
    assert record.origin == {"how": "trained", "source": None}
    assert record.metrics == {"bbox/AP": 20.0, "bbox/AP-car": None}
    assert record.history == (
        {"iteration": 39, "bbox/AP": 12.5, "bbox/AP-car": None},
        {"iteration": 60, "bbox/AP": 20.0, "bbox/AP-car": 1.0},
    )
    assert (record.expected, record.loaded) == (265, 264)
    assert record.cost["seconds_per_iteration"] == 0.4  # the median of the lines
    assert record.cost["evaluation_seconds"] == 12.5
    assert record.errors["voc_2007_test"]["Loc"] == 20.0
    assert record.errors["voc_2007_test"]["Miss"] is None


def test_a_run_of_which_little_is_known_is_valid(tmp_path):
    _, path = written(tmp_path, {"segm": {"AP": float("nan")}}, weights=None)
    (record,) = read_records([path])
    assert record.metrics == {"segm/AP": None}
    assert record.cost["seconds_per_iteration"] is record.cost["evaluation_seconds"] is None
    assert record.errors is None and record.history == () and not record.has_provenance


def test_a_metric_that_is_no_percentage_is_null_and_the_record_still_reads(tmp_path, caplog):
    """-1 and -100 are COCO's and LVIS's for objects that the dataset does not have."""
    metrics = {"AP": 100 + 1e-9, "APr": -100.0, "APs": -1.0, "count": 250.0}
    log = [{"iteration": 9, **{f"bbox/{name}": value for name, value in metrics.items()}}]
    _, path = written(tmp_path, {"bbox": metrics}, log, weights=None)
    (record,) = read_records([path])
    expected = {"bbox/AP": 100.0, "bbox/APr": None, "bbox/APs": None, "bbox/count": None}
    assert record.metrics == expected and record.history == ({"iteration": 9, **expected},)
    assert "because these are not percentages: count" in caplog.text


def test_several_test_sets_are_named_as_in_metrics_json(tmp_path):
    log = [{"iteration": 60, "one/bbox/AP": 1.0, "two/bbox/AP": 2.0, "bbox/AP": 3.0}]
    _, path = written(
        tmp_path, {"one": {"bbox": {"AP": 1.0}}, "two": {"bbox": {"AP": 2.0}}}, log, weights=None
    )
    (record,) = read_records([path])
    assert record.metrics == {"one/bbox/AP": 1.0, "two/bbox/AP": 2.0}
    assert record.history == ({"iteration": 60, "one/bbox/AP": 1.0, "two/bbox/AP": 2.0},)


def test_peak_memory_on_a_cpu_is_that_of_the_process(tmp_path):
    before = written(tmp_path, {"bbox": {"AP": 1.0}}, weights=None)[0]["cost"]
    if before["peak_memory_of"] is None:
        pytest.skip("no /proc here")
    status = Path("/proc/self/status").read_text().split()
    resident = int(status[status.index("VmRSS:") + 1]) / 2**20  # KiB
    added = np.ones(2**26).nbytes / 2**30  # larger than whatever a test before has freed
    after = written(tmp_path, {"bbox": {"AP": 1.0}}, weights=None)[0]["cost"]
    assert before["peak_memory_of"] == after["peak_memory_of"] == "process"
    # The kernel counts a process's pages in batches, a few MiB each for every thread.
    assert resident + added - 0.15 < after["peak_memory_gib"]
    assert after["peak_memory_gib"] <= max(before["peak_memory_gib"], resident + added) + 0.15


def recorder(findings=(), started=None, cfg=None, **kwargs):
    started = started or datetime.datetime.now(datetime.timezone.utc)
    cfg = cfg or load_config("voc_C4_moco.yaml", ["MODEL.DEVICE", "cpu"])
    cfg, schedule = scale_to_hardware(cfg, 1)
    return RunRecorder("voc_C4_moco.yaml", cfg, schedule, list(findings), started=started, **kwargs)


def test_a_resumed_run_keeps_what_only_the_first_process_knew(tmp_path):
    forced, later = Finding("SEED", "-1", "unset"), Finding("MODEL.FPN.NORM", "empty", "set it")
    began = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=2)
    weights = {"file": "moco.pth", "sha256": "0" * 64, "provenance": None}
    first = recorder([forced], began, weights=weights, coverage=Coverage(318, ("a", "b")))
    state = json.loads(json.dumps(first.state_dict()))  # as plain as a checkpoint wants it
    cfg = load_config("voc_C4_moco.yaml", ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"])
    moved = weights | {"file": "moved.pth"}
    resumed = recorder([forced, later], cfg=cfg, weights=moved)
    resumed.load_state_dict(state)
    written = json.loads(resumed.write({"bbox": {"AP": 1.0}}).read_text())
    assert written["coverage"] == {"expected": 318, "loaded": 316}
    assert [f["key"] for f in written["preflight"]["findings"]] == ["SEED", "MODEL.FPN.NORM"]
    assert written["weights"] == weights
    assert written["run"]["started"] == began.isoformat(timespec="seconds")
    # Two hours before the break, and nothing since: pauses do not count.
    assert written["run"]["seconds"] == pytest.approx(7200, abs=5)


@pytest.mark.parametrize(
    ("name", "overrides", "weights", "message"),
    [
        ("voc_C4_moco.yaml", ["SEED", "2"], WEIGHTS, "SEED is 2, but .* began with 1, and"),
        ("voc_C4_moco.yaml", ["MOCO.TASK", "mine"], WEIGHTS, "TASK is mine, .* with 'voc_C4', and"),
        (
            "voc_C4_moco_v2_200ep.yaml",
            [],
            WEIGHTS | {"sha256": "1" * 64},
            r"WEIGHTS is moco.pth \(sha256 111111111111\), .* with moco.pth \(sha256 000000000000",
        ),
        ("voc_C4_random.yaml", [], None, "MODEL.WEIGHTS is random://, but .* began with moco.pth"),
    ],
)
def test_a_run_is_not_continued_as_another(name, overrides, weights, message):
    """Its record would name a start that it did not have."""
    first = recorder(weights=WEIGHTS).state_dict()
    cfg = load_config(name, ["MODEL.DEVICE", "cpu", *overrides])
    with pytest.raises(UserError, match=message):
        recorder(cfg=cfg, weights=weights).load_state_dict(first)


def resumed_with(folder, *overrides):
    """The record of a run that was resumed after 7 iterations with these overrides."""
    state = recorder(weights=WEIGHTS).state_dict()
    words = ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", *overrides]
    resumed = recorder(cfg=load_config("voc_C4_moco.yaml", words), weights=WEIGHTS)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    resumed.note_changes(7)
    return resumed


def test_settings_that_change_at_a_resume_are_in_the_log_and_in_the_record(tmp_path, caplog):
    longer = ("SOLVER.MAX_ITER", "48000", "INPUT.RANDOM_FLIP", "none")
    resumed = resumed_with(tmp_path, *longer)
    assert (
        "resuming after 7 iterations with SOLVER.MAX_ITER 384000, which was 192000" in caplog.text
    )
    resumed = json.loads(json.dumps(resumed.state_dict()))  # and after the next resume
    again = recorder(cfg=load_config("voc_C4_moco.yaml", longer), weights=WEIGHTS)
    again.load_state_dict(resumed)
    again.cfg = resumed_with(tmp_path).cfg
    path = again.write({"bbox": {"AP": 1.0}})
    assert json.loads(path.read_text())["changes"] == [
        {"iteration": 7, "key": "INPUT.RANDOM_FLIP", "before": "horizontal", "after": "none"},
        {"iteration": 7, "key": "SOLVER.MAX_ITER", "before": "192000", "after": "384000"},
    ]
    assert [change["iteration"] for change in read_records([path])[0].changes] == [7, 7]


def test_settings_that_change_no_result_may_change_at_a_resume(tmp_path):
    free = {
        "DATALOADER.NUM_WORKERS": 3,
        "SOLVER.CHECKPOINT_PERIOD": 100,
        "TEST.EVAL_PERIOD": 100,
        "MOCO.DRAW_SCORE": 0.9,
    }
    assert not resumed_with(tmp_path, *(str(w) for pair in free.items() for w in pair)).changes


def test_a_checkpoint_without_its_config_is_resumed_with_a_warning(caplog):
    state = recorder(weights=WEIGHTS).state_dict()
    for name in ("config", "config_file", "changes"):
        state.pop(name)
    resumed = recorder(weights=WEIGHTS)
    resumed.load_state_dict(state)
    resumed.note_changes(7)
    assert "does not hold its config" in caplog.text and not resumed.changes
