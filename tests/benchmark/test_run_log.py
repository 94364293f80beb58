"""The log of a suite's runs, the last line of a tool's, and other files of a folder that may be a
stranger's.
"""

import json
import os

import pytest
from support.fake_suite import cell

from moco_d2.benchmark.runs import execution, run_log
from moco_d2.benchmark.runs.cluster import _is_over
from moco_d2.benchmark.runs.display import last_metrics
from moco_d2.benchmark.runs.measuring import read_timing, timing_file
from moco_d2.benchmark.runs.planning import _finished_seconds
from moco_d2.errors import UserError


def put_link(file, victim, kind):
    victim.write_text("precious\n")
    {
        "symbolic": lambda: file.symlink_to(victim),
        "hard": lambda: os.link(victim, file),
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
    }[kind]()


@pytest.mark.parametrize("kind", ["symbolic", "hard", "pipe", "folder"])
def test_a_link_in_the_place_of_the_log_is_refused(tmp_path, kind):
    put_link(tmp_path / run_log.RUN_LOG, tmp_path / "victim", kind)
    for door in (
        lambda: run_log.log_event(tmp_path, "started", "a/1"),
        lambda: list(run_log.read_log(tmp_path)),
        lambda: run_log.check_log(tmp_path),
    ):
        with pytest.raises(UserError, match=r"runs\.jsonl must be a plain file, .*; remove it$"):
            door()
    assert (tmp_path / "victim").read_text() == "precious\n"


def test_a_link_in_the_place_of_output_log_is_refused(tmp_path):
    put_link(tmp_path / "output.log", tmp_path / "victim", "symbolic")
    with pytest.raises(UserError, match=r"output\.log must be a plain file"):
        execution._print_to(tmp_path / "output.log")
    assert (tmp_path / "victim").read_text() == "precious\n"


def test_a_process_that_is_refused_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise UserError("x is a link; remove it")

    monkeypatch.setattr(execution, "run_next", refuse)
    monkeypatch.setattr(os, "setsid", lambda: None)
    for name in ("signal", "pthread_sigmask"):
        monkeypatch.setattr(execution.signal, name, lambda *_: None)
    with pytest.raises(SystemExit) as end:
        execution.main(cell("a/1"), tmp_path, execution.Place())
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: x is a link; remove it\n"


def test_lines_of_a_stranger_are_passed_over(tmp_path):
    good = {"event": "ended", "cell": "a/1"}
    lines = ["[1]", "5", '{"event": 5}', '{"event": "ended", "cell": 5}', "[" * 100_000, "{"]
    content = "\n".join([*lines, json.dumps(good)]).encode() + b"\n\xff\n"
    (tmp_path / run_log.RUN_LOG).write_bytes(content)
    assert list(run_log.read_log(tmp_path)) == [good]
    assert list(_finished_seconds([cell("a/1", "ok")], tmp_path)) == []


def test_a_log_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "_MOST_BYTES", 10)
    (tmp_path / run_log.RUN_LOG).write_text("x" * 11)
    with pytest.raises(UserError, match=r"cannot read .*runs\.jsonl .*; remove it$"):
        list(run_log.read_log(tmp_path))


@pytest.mark.parametrize(
    "changed",
    [{"job": None}, {"job": "--x"}, {"job": 5}, {"cluster": []}, {"jobs": {}}, {"job": "1; x"}],
)
@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_a_job_of_a_stranger_is_over(tmp_path, cluster, changed):
    assert _is_over({"cluster": cluster, "job": "1", "jobs": str(tmp_path), **changed})


def test_the_last_line_of_a_log_is_text(tmp_path):
    file = tmp_path / "output.log"
    assert run_log.last_line(file) == "no output"
    file.write_text("x" * 100_000 + "\nerror: \x1b[31mred\n\n")
    assert run_log.last_line(file) == "error: ?[31mred"
    file.write_text("x" * 100_000)
    assert run_log.last_line(file) == "x" * 1000
    file.unlink()
    os.mkfifo(file)
    assert run_log.last_line(file) == "no output"


def test_metrics_of_a_stranger_show_nothing(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 3, "eta_seconds": NaN, "lr": 0.1, "a": [], "b": 1e999}\n')
    assert last_metrics(file) == {"iteration": 3, "lr": 0.1}
    file.write_text('{"iteration": "x", "lr": 0.1}\n')
    assert last_metrics(file) == {}
    file.write_text("[" * 4000)
    assert last_metrics(file) == {}
    file.unlink()
    os.mkfifo(file)
    assert last_metrics(file) == {}


@pytest.mark.parametrize(
    "changed",
    [
        *({"steps": "x"}, {"iterations": None}, {"seconds_per_iteration": float("nan")}),
        *({"on_gpu": "yes"}, {"hardware": "\x1b[31m"}, {"images_per_batch": -1}, None),
    ],
)
def test_a_timing_of_a_stranger_is_none(tmp_path, changed):
    good = {
        "seconds_per_iteration": 0.5,
        "steps": 5,
        "iterations": 100,
        "images_per_batch": 16,
        "on_gpu": False,
        "hardware": "CPU",
    }
    file = timing_file(tmp_path, "voc_C4", 0)
    file.parent.mkdir()
    file.write_text(json.dumps(good))
    assert read_timing(tmp_path, "voc_C4", 0) == good
    file.write_text("[" * 100_000 if changed is None else json.dumps({**good, **changed}))
    assert read_timing(tmp_path, "voc_C4", 0) is None
