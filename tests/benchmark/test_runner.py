"""The runner, with tools that take no time (fake_tools/); with real ones: campaigns/grid.py."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from submitit.local.local import LocalJobEnvironment
from support.commands import Python, wait_for
from support.fake_suite import TOOLS, cell, run_cells
from support.paths import SUPPORT

from moco_d2.benchmark.runs import run_log
from moco_d2.benchmark.runs.cell_lock import is_running
from moco_d2.benchmark.runs.cell_state import CELL_FILE
from moco_d2.benchmark.runs.places import make_places
from moco_d2.errors import UserError


def events(folder, *kinds):
    return [
        line for line in run_log.read_log(folder) if line["event"] in (kinds or [line["event"]])
    ]


def steps_of(folder, name):
    return [int(line) for line in (folder / name / "trained").read_text().splitlines()]


def saved_steps(folder, name):
    saved = folder / name / "saved"
    return int(saved.read_text()) if saved.exists() else 0


def start_runner(folder, *words):
    """A runner of words NAME:BEHAVIOR, in a process group of its own."""
    return Python(
        [SUPPORT / "fake_suite.py", folder, *words],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_runs_all_and_then_nothing(tmp_path, capsys):
    cells = [cell("a/x", "count=1"), cell("a/y", "count=1"), cell("b", "count=1")]
    assert run_cells(tmp_path, *cells) == 0
    assert "3 of 3 runs done" in capsys.readouterr().out
    assert len(events(tmp_path, "started")) == len(events(tmp_path, "ended")) == 3
    assert run_cells(tmp_path, *cells) == 0
    assert len(events(tmp_path)) == 6
    # Each in a process of its own.
    assert len({line["pid"] for line in events(tmp_path, "started")} - {os.getpid()}) == 3


def test_commands_run_in_order_and_none_again(tmp_path):
    """The second fails until it is mended; the first, which succeeded, is not repeated."""
    first = cell("a", "step=5", "exit=3")
    assert run_cells(tmp_path, first) == 1
    home = tmp_path / "a"
    (home / "steps").unlink()
    started = json.loads((home / CELL_FILE).read_text())
    assert started["completed"] == 1
    assert run_cells(tmp_path, first) == 1
    assert not (home / "steps").exists()
    assert [line["command"] for line in events(tmp_path, "started")] == [0, 1, 1]


def test_a_failed_run_stops_no_other_and_is_named_with_the_end_of_its_log(tmp_path, capsys):
    cells = [
        cell("bad", "exit=2"),
        cell("needs_bad", "count=1", needs=["bad"]),
        cell("good", "count=1"),
        cell("needs_good", "count=1", needs=["good"]),
    ]
    assert run_cells(tmp_path, *cells) == 2  # a user's error, and no other
    out = capsys.readouterr().out
    assert "2 of 4 runs done" in out
    assert "failed: bad: this is why (whole log: " in out
    assert "failed: needs_bad: not run: it needs bad" in out
    assert not (tmp_path / "needs_bad" / "record.json").exists()


@pytest.mark.parametrize(
    ("behavior", "said"),
    [
        ("raise", "RuntimeError: this is why"),
        ("no_record", "no valid record"),
        ("die=1", "killed by SIGKILL"),
    ],
)
def test_failures_that_are_not_the_users_are_exit_code_1(tmp_path, capsys, behavior, said):
    assert run_cells(tmp_path, cell("bad", behavior), cell("user", "exit=2")) == 1
    assert said in capsys.readouterr().out


def test_a_killed_run_is_continued(tmp_path):
    dying = cell("a", "die=3")
    assert run_cells(tmp_path, dying) == 1
    assert [line["event"] for line in events(tmp_path)] == ["started", "killed"]
    assert run_cells(tmp_path, dying) == 0
    assert steps_of(tmp_path, "a") == [0, 1, 2]


def test_runner_and_runs_are_killed_and_started_again(tmp_path):
    words = ["a:count=100000", "b:count=100000", "c:count=3"]
    runner = start_runner(tmp_path, *words)
    wait_for(lambda: len(events(tmp_path, "started")) == 2)
    wait_for((tmp_path / "a" / "saved").exists)
    for line in events(tmp_path, "started"):
        os.killpg(line["pid"], signal.SIGKILL)
    os.killpg(runner.pid, signal.SIGKILL)
    runner.wait()
    saved = {name: saved_steps(tmp_path, name) for name in "ab"}
    for name in "ab":
        (tmp_path / name / "enough").touch()  # after one step more
    again = start_runner(tmp_path, *words)
    assert again.wait(600) == 0
    for name, steps in (("a", saved["a"] + 1), ("b", saved["b"] + 1), ("c", 3)):
        # At most the step at hand was lost between training and saving.
        assert sorted(set(steps_of(tmp_path, name))) == list(range(steps))
        ended = [line for line in events(tmp_path, "ended") if line["cell"] == name]
        assert [line["exit_code"] for line in ended] == [0]


def test_orphans_of_a_killed_runner_are_waited_for(tmp_path):
    """kill -9 of the runner and its process group leaves its runs at work, which have groups of
    their own: a new runner must not start them a second time.
    """
    words = ["a:count=100000", "b:count=2"]
    runner = start_runner(tmp_path, *words)
    wait_for((tmp_path / "a" / "saved").exists)
    os.killpg(runner.pid, signal.SIGKILL)
    runner.wait()
    assert is_running(cell("a", "count=100000"), tmp_path)
    again = start_runner(tmp_path, *words)
    said = iter(again.stdout.readline, "")
    assert any("a is being run by another process; waiting for it" in line for line in said)
    (tmp_path / "a" / "enough").touch()
    assert again.wait(600) == 0
    steps = steps_of(tmp_path, "a")
    assert steps == list(range(len(steps)))
    assert [line["cell"] for line in events(tmp_path, "started")].count("a") == 1


def test_two_runners_share_the_runs(tmp_path):
    words = [f"{name}:count=4" for name in "abcdef"]
    runners = [start_runner(tmp_path, *words) for _ in range(2)]
    assert [runner.wait(600) for runner in runners] == [0, 0]
    assert sorted(line["cell"] for line in events(tmp_path, "started")) == list("abcdef")
    assert all("6 of 6 runs done" in runner.stdout.read() for runner in runners)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_runs_save_and_stop(tmp_path, number):
    runner = start_runner(tmp_path, "a:count=100000", "b:count=100000")
    wait_for(lambda: (tmp_path / "a" / "saved").exists() and (tmp_path / "b" / "saved").exists())
    os.killpg(runner.pid, number)
    assert runner.wait(600) == 128 + number
    assert {line["exit_code"] for line in events(tmp_path, "ended")} == {143}
    for name in "ab":
        assert not is_running(cell(name, ""), tmp_path)
        assert (
            int((tmp_path / name / "saved").read_text()) == len(steps_of(tmp_path, name)) < 100_000
        )


def test_two_suites_do_not_share_a_folder(tmp_path):
    runner = start_runner(tmp_path, "a:count=100000")
    wait_for((tmp_path / "a" / "saved").exists)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=rf"another suite is at work in {tmp_path} \(suite fake, "):
        run_cells(tmp_path, cell("b", "count=1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    os.killpg(runner.pid, signal.SIGTERM)
    assert runner.wait(600) == 143
    assert run_cells(tmp_path, cell("b", "count=1")) == 0


def test_a_run_that_a_signal_ends_before_it_trains_is_logged(tmp_path):
    """It ends at once, with an exit code, and says nothing in the log."""
    run_cells(tmp_path, cell("a", "leave=143"))
    (line,) = events(tmp_path, "killed")
    assert line["exit_code"] == 143 and line["cell"] == "a"


def test_another_config_in_the_place_of_a_run_is_refused(tmp_path):
    run_cells(tmp_path, cell("a", "count=1", settings={"SOLVER.MAX_ITER": 10}))
    other = cell("a", "count=1", settings={"SOLVER.MAX_ITER": 20})
    new = cell("b", "count=1")
    with pytest.raises(
        UserError, match=r"MAX_ITER is 10 in the run, 20 in the suite; choose another"
    ):
        run_cells(tmp_path, new, other)
    assert not (tmp_path / "b").exists()
    same = cell("a", "count=1", settings={"SOLVER.MAX_ITER": "10"})
    assert run_cells(tmp_path, same) == 0


def test_a_run_that_was_started_by_hand_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("")
    with pytest.raises(UserError, match="no suite has started"):
        run_cells(tmp_path, cell("a", "count=1"))


def test_places_of_gpus(monkeypatch):
    monkeypatch.setattr("moco_d2.benchmark.runs.places.visible_gpus", lambda: ["0", "1", "2", "5"])

    def devices(*args):
        return [place.devices for place in make_places(*args, runs=9, tools=TOOLS)]

    assert devices(1, None) == [("0",), ("1",), ("2",), ("5",)]
    assert devices(4, None) == [("0", "1", "2", "5")]
    assert devices(3, None) == [("0", "1", "2")]
    assert devices(1, 2) == [("0",), ("1",)]
    assert devices(4, 2) == [("0", "1", "2", "5")] * 2  # they share
    with pytest.raises(UserError, match=r"--gpus-per-run must be at most 4, got 8: 4 GPU"):
        make_places(8, None, runs=9, tools=TOOLS)


def test_places_on_a_cpu(monkeypatch):
    """The threads of a run follow from the suite and the machine, not from what is left to do."""
    monkeypatch.setattr("moco_d2.benchmark.runs.places.usable_cores", lambda: 8)
    assert [p.threads for p in make_places(0, None, runs=18, tools=TOOLS)] == [1] * 8
    assert [p.threads for p in make_places(0, None, runs=2, tools=TOOLS)] == [4] * 2
    assert [p.threads for p in make_places(0, 3, runs=18, tools=TOOLS)] == [2] * 3
    assert make_places(0, None, runs=1, tools=TOOLS)[0].devices == ()


def test_submitted_runs(tmp_path, capsys):
    """Through submitit's local executor: both commands of a run in one job, none twice."""
    cells = [
        cell("a", "step=1", "count=1"),
        cell("b", "count=1", needs=["a"]),
    ]

    def submit():
        return run_cells(tmp_path, *cells, submit=["cluster=local"])

    assert submit() == 0
    out = capsys.readouterr().out
    assert "a: submitted, job " in out and "1 more depend on these" in out
    wait_for((tmp_path / "a" / "record.json").exists)
    wait_for(lambda: len(events(tmp_path, "ended")) == 2)
    assert submit() == 0
    assert "b: submitted, job " in capsys.readouterr().out
    wait_for((tmp_path / "b" / "record.json").exists)
    assert [line["cell"] for line in events(tmp_path, "submitted")].count("a") == 1


def test_a_preempted_job_is_saved_queued_again_and_continued(tmp_path):
    """The signal that SLURM sends, to submitit's local executor."""
    long = cell("a", "count=100000")
    assert run_cells(tmp_path, long, submit=["cluster=local"]) == 0
    wait_for((tmp_path / "a" / "saved").exists)
    (line,) = events(tmp_path, "submitted")
    tasks = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", line["job"]], capture_output=True, text=True, check=True
    )
    for pid in tasks.stdout.split():
        os.kill(int(pid), LocalJobEnvironment._usr_sig())
    wait_for(lambda: len(events(tmp_path, "ended")) == 1)
    saved = saved_steps(tmp_path, "a")
    (tmp_path / "a" / "enough").touch()
    wait_for(lambda: len(events(tmp_path, "ended")) == 2)
    steps = steps_of(tmp_path, "a")
    assert steps == list(range(len(steps))) and len(steps) > saved  # none lost, none twice
    assert [line["exit_code"] for line in events(tmp_path, "ended")] == [143, 0]
    # submitit's processes end a while after the job.
    wait_for(lambda: not is_alive(line["job"]))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("name", [".suite.lock", "runs.jsonl", "a/output.log", "a/.lock"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_in_a_strangers_folder_stops_the_suite_and_leads_nowhere(tmp_path, name, kind):
    victim, link = tmp_path / "victim", tmp_path / "out" / name
    victim.write_text("precious\n")
    link.parent.mkdir(parents=True)
    link.symlink_to(victim) if kind == "symbolic" else os.link(victim, link)
    with pytest.raises(UserError, match=rf"{name} must be a plain file, .*; remove it$"):
        run_cells(tmp_path / "out", cell("a", "count=1"))
    assert victim.read_text() == "precious\n"
    assert not (tmp_path / "out" / "a" / CELL_FILE).exists()
    link.unlink()
    assert run_cells(tmp_path / "out", cell("a", "count=1")) == 0
