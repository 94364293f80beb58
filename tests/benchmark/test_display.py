"""The display of a runner while runs are at work."""

import io
from dataclasses import dataclass

import pytest
from rich.console import Console
from rich.live import Live
from support.fake_suite import cell

from moco_d2.benchmark.runs.display import _Table, duration, last_metrics
from moco_d2.benchmark.runs.suites import Suite


@dataclass
class Task:
    cell: object
    status: str
    problem: str = ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45.4, "45 s"), (200, "3 min"), (7500, "2 h 05 min"), (97200 * 2, "2 d 06 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_last_line_of_metrics(tmp_path):
    file = tmp_path / "metrics.json"
    assert last_metrics(file) == {}
    file.write_text('{"iteration": 19}\n{"iteration": 39, "eta_seconds": 61.0}\n')
    assert last_metrics(file)["iteration"] == 39
    file.write_text('{"iteration": 19}\n{"iterat')
    assert last_metrics(file) == {}
    file.write_text("1" * 10_000 + '\n{"iteration": 19}\n')
    assert last_metrics(file)["iteration"] == 19


def test_the_live_table(tmp_path):
    cells = [cell(name) for name in ("a/1", "a/2", "b/1", "b/2")]
    (tmp_path / "a/1").mkdir(parents=True)
    (tmp_path / "a/1" / "metrics.json").write_text('{"iteration": 39, "eta_seconds": 61.0}\n')
    tasks = [
        Task(cells[0], "running"),
        Task(cells[1], "done"),
        Task(cells[2], "failed", "this is why: [/no] tag"),
        Task(cells[3], "waiting"),
    ]
    screen = io.StringIO()
    with Live(console=Console(file=screen, width=80), auto_refresh=False) as live:
        table = _Table(Suite("mine", "Mine", tuple(cells)), tmp_path, live)
        table.event(tasks[0], "started")
        table.update(tasks)
    text = screen.getvalue()
    assert "mine: 1 done, 1 running, 1 waiting, 1 failed" in text
    row = next(line for line in text.splitlines() if "a/1" in line)
    assert "40" in row and "61 s" in row and "0 s" in row
    assert "this is why: [/no] tag" in text and "a/2" not in text and "b/2" not in text
