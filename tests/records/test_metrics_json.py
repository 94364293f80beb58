import json
import logging
import re

import pytest

from moco_d2.records.metrics_json import history, read_log, seconds_per_iteration

LOG = [
    {"iteration": 19, "total_loss": 2.0, "fast_rcnn/cls_accuracy": 0.5, "lr": 0.1},
    {"iteration": 39, "total_loss": 1.0, "bbox/AP": 12.5, "bbox/AP-car": float("nan"), "time": 2.0},
    {"iteration": 59, "segm/AP50": 7.0, "keypoints/AP": 3.0, "rpn/num_pos_anchors": 9.0},
    {"iteration": 60, "sem_seg/mIoU": 45.5, "sem_seg/pACC": 80.0, "time": 1.0},
]


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        text = (line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.json").write_text("".join(text))
        return tmp_path / "metrics.json"

    return write


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        (("bbox",), [{"iteration": 39, "bbox/AP": 12.5, "bbox/AP-car": None}]),
        (("segm", "keypoints"), [{"iteration": 59, "segm/AP50": 7.0, "keypoints/AP": 3.0}]),
        (("sem_seg",), [{"iteration": 60, "sem_seg/mIoU": 45.5, "sem_seg/pACC": 80.0}]),
        ((), []),
    ],
)
def test_the_history_has_what_evaluations_gave(write, groups, found):
    assert history(read_log(write(*LOG)), groups) == found


def test_without_a_file_there_is_no_log(tmp_path):
    assert read_log(tmp_path / "metrics.json") == []
    assert seconds_per_iteration([]) is None


def test_time_is_the_median_of_what_was_timed(write):
    assert seconds_per_iteration(read_log(write(*LOG))) == 1.5
    timed = [{"iteration": i, "time": t} for i, t in enumerate([1.0, 9.0, 2.0, float("nan")])]
    assert seconds_per_iteration(read_log(write(*timed))) == 2.0


def test_of_what_a_resumed_run_did_twice_the_last_counts(write):
    before = [{"iteration": i, "total_loss": 1.0, "bbox/AP": float(i)} for i in (19, 39, 59)]
    after = [
        {"iteration": 39, "total_loss": 1.0, "bbox/AP": 40.0},
        {"iteration": 60, "bbox/AP": 61.0},
    ]
    found = history(read_log(write(*before, *after)), ["bbox"])
    assert [line["iteration"] for line in found] == [19, 39, 60]
    assert [line["bbox/AP"] for line in found] == [19.0, 40.0, 61.0]


def test_of_a_run_begun_again_nothing_of_the_first_is_left(write):
    first = [{"iteration": 19, "total_loss": 1.0}, {"iteration": 20, "bbox/AP": 50.0}]
    log = read_log(write(*first, {"iteration": 9, "total_loss": 1.0}))
    assert [line["iteration"] for line in log] == [9]


def test_evaluations_that_stock_detectron2_writes_after_later_losses(write):
    """As its JSONWriter left them in a run of 4 iterations, evaluated every 2."""
    lines = [
        {"iteration": 3, "total_loss": 2.36, "time": 0.14},
        {"iteration": 1, "bbox/AP": 0.699},
        {"iteration": 4, "bbox/AP": 0.606},
    ]
    log = read_log(write(*lines))
    assert [line["iteration"] for line in log] == [1, 3, 4]
    assert seconds_per_iteration(log) == 0.14


@pytest.mark.parametrize(
    "torn", ['{"iteration": 39, "bb', "[1]\n", '{"iteration": "39"}\n', "\xff\n"]
)
def test_a_damaged_line_is_named_and_passed_over(write, caplog, torn):
    with caplog.at_level(logging.WARNING):
        log = read_log(write(LOG[0], torn + "\n", LOG[2]))
    assert [line["iteration"] for line in log] == [19, 59]
    assert re.search(r"skipped line 2 of .*metrics.json", caplog.messages[0])


def test_numbers_beyond_a_float_are_none(write):
    (line,) = history(read_log(write({"iteration": 1, "bbox/AP": 10**400})), ["bbox"])
    assert line["bbox/AP"] is None


def test_a_line_without_end_is_read_in_parts(write, caplog):
    path = write("[" * (3 << 20), "\n", LOG[0])
    with caplog.at_level(logging.WARNING):
        assert read_log(path) == [LOG[0]]
    assert "skipped line 1 of" in caplog.text
