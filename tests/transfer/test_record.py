import datetime
import json

import pytest

from moco_d2.config import load_config
from moco_d2.transfer.preflight import Finding
from moco_d2.transfer.record import RunRecorder, read_history
from moco_d2.transfer.weights import Coverage

METRICS = [
    {"iteration": 19, "total_loss": 2.0, "fast_rcnn/cls_accuracy": 0.5, "lr": 0.1},
    {"iteration": 39, "total_loss": 1.0, "bbox/AP": 12.5, "bbox/AP-car": float("nan")},
    {"iteration": 59, "segm/AP50": 7.0, "keypoints/AP": 3.0, "rpn/num_pos_anchors": 9.0},
    {"iteration": 60, "sem_seg/mIoU": 45.5, "sem_seg/pACC": 80.0},
]


@pytest.fixture
def metrics_file(tmp_path):
    (tmp_path / "metrics.json").write_text("".join(json.dumps(m) + "\n" for m in METRICS))
    return tmp_path / "metrics.json"


@pytest.mark.parametrize(
    ("groups", "history"),
    [
        (("bbox",), [{"iteration": 39, "bbox/AP": 12.5, "bbox/AP-car": None}]),
        (("segm", "keypoints"), [{"iteration": 59, "segm/AP50": 7.0, "keypoints/AP": 3.0}]),
        (("sem_seg",), [{"iteration": 60, "sem_seg/mIoU": 45.5, "sem_seg/pACC": 80.0}]),
        ((), []),
    ],
)
def test_the_history_has_what_evaluations_gave(metrics_file, groups, history):
    assert read_history(metrics_file, groups) == history


def test_without_metrics_there_is_no_history(tmp_path):
    assert read_history(tmp_path / "metrics.json", ("bbox",)) == []


def recorder(findings=(), started=None, **kwargs):
    started = started or datetime.datetime.now(datetime.timezone.utc)
    schedule = {"world_size": 1, "notes": []}
    return RunRecorder("voc_C4_moco.yaml", schedule, list(findings), started=started, **kwargs)


def test_a_resumed_run_keeps_what_only_the_first_process_knew(tmp_path):
    forced, later = Finding("SEED", "-1", "unset"), Finding("MODEL.FPN.NORM", "empty", "set it")
    began = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=2)
    weights = {"file": "moco.pth", "sha256": "0" * 64, "provenance": None}
    first = recorder([forced], began, weights=weights, coverage=Coverage(318, ("a", "b")))
    state = json.loads(json.dumps(first.state_dict()))  # as plain as a checkpoint wants it
    resumed = recorder([forced, later], weights=None)
    resumed.load_state_dict(state)
    cfg = load_config("voc_C4_moco.yaml", ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"])
    written = json.loads(resumed.write(cfg, {"bbox": {"AP": 1.0}}).read_text())
    assert written["coverage"] == {"expected": 318, "loaded": 316}
    assert [f["key"] for f in written["preflight"]["findings"]] == ["SEED", "MODEL.FPN.NORM"]
    assert written["weights"] == weights
    assert written["run"]["started"] == began.isoformat(timespec="seconds")
    # Two hours before the break, and nothing since: pauses do not count.
    assert written["run"]["seconds"] == pytest.approx(7200, abs=5)
