"""A sample of the campaign in campaigns/faults.py, and that it can fail."""

import contextlib
import json
import random
import sys
from pathlib import Path

import pytest
from support.paths import CAMPAIGNS, ROOT
from support.scripts import imported

from moco_d2 import files


@pytest.fixture(scope="module")
def faults():
    with imported(CAMPAIGNS / "faults.py") as module:
        yield module


@pytest.fixture(scope="module")
def kinds(faults):
    return {kind.name: kind for kind in faults.all_kinds()}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("kill pretraining", 1),
        ("processes disagree", 0),
        ("VOC annotation", 17),  # an entity of a file
    ],
)
def test_a_promise_is_kept(faults, kinds, name, number):
    assert faults.deal(kinds[name], number, seed=7)["failure"] is None


def test_images_of_every_odd_kind_are_read_or_refused(faults, kinds):
    from fault_kinds.images import MAKERS

    results = [faults.deal(kinds["image"], i, seed=7) for i in range(len(MAKERS))]
    assert [result["failure"] for result in results if result["failure"]] == []
    assert sum(result["figures"].get("refused", 0) for result in results) > 5


@pytest.fixture
def writer(faults, tmp_path, monkeypatch):
    """A workload of milliseconds whose tool writes a file with moco_d2.files.write_text."""
    from fault_kinds import jobs
    from fault_kinds.workloads import Workload

    (tmp_path / "write.py").write_text(
        "import sys\n"
        "from moco_d2.files import write_text\n"
        "write_text(sys.argv[1] + '/x.txt', 'whole' * 5000)\n"
    )
    monkeypatch.setattr(jobs, "TOOLS", tmp_path)

    class Writing(Workload):
        name, tool = "writing", "write.py"

        def words(self, out):
            return [str(out)]

        def result(self, out):
            return {path.name: path.read_text() for path in out.iterdir()}

        def broken(self, out):
            if (out / "x.txt").exists() and (out / "x.txt").read_text() != "whole" * 5000:
                yield "x.txt"

    return Writing()


def dealt(writer, tmp_path, count: int) -> list[str]:
    """Failures of so many kills."""
    from fault_kinds.case import BrokenPromiseError
    from fault_kinds.kills import kill

    failures = []
    for seed in range(count):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            kill((writer,), random.Random(seed), folder, 0)
        except BrokenPromiseError as error:
            failures.append(str(error))
    return failures


def test_a_writer_that_is_atomic_survives_every_kill(writer, tmp_path):
    assert dealt(writer, tmp_path, count=4) == []


def test_the_campaign_notices_a_writer_that_is_not(writer, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def in_place(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)
        files._flush_folder(Path(path).parent)

    def write_text(path, text):
        with in_place(path) as file, file.open("w") as f:
            f.write(text[: len(text) // 2])
            f.flush()
            files.os.fsync(f.fileno())
            f.write(text[len(text) // 2 :])

    monkeypatch.setattr(files, "write_text", write_text)
    found = dealt(writer, tmp_path, count=5)
    assert found and all("half-written under a final name" in failure for failure in found)


def test_the_campaign_notices_leftovers_and_other_results(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "remove_leftovers", lambda *_, **__: None)
    found = dealt(writer, tmp_path, count=5)
    assert found and all("difference(s) to the undisturbed run" in failure for failure in found)


def test_a_failure_is_counted_and_ends_with_exit_code_1(faults, monkeypatch, tmp_path, capsys):
    from fault_kinds.case import Kind, Outcome

    def deal(rng, folder, number):
        if number == 1:
            raise RuntimeError("the second one")
        return Outcome("went well", 2, {"kills": 2})

    monkeypatch.setattr(faults, "all_kinds", lambda: (Kind("planted", "None.", 3, deal),))
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["faults.py", "--json", str(out)])
    with pytest.raises(SystemExit) as ended:
        faults.main()
    assert ended.value.code == 1
    assert "planted 1" in capsys.readouterr().out
    (campaign,) = json.loads(out.read_text())["campaigns"]
    planted = campaign["kinds"]["planted"]
    assert (planted["faults"], planted["failures"], planted["figures"]) == (5, 1, {"kills": 4})
    assert campaign["failed"][0]["failure"] == "RuntimeError: the second one"


def samples(rss, files, iterations_a_second):
    return [
        [t, 500 + rss * t / 3600, 100.0, 13 + files * t / 3600, iterations_a_second(t) * t, t]
        for t in range(0, 3600, 10)
    ]


@pytest.mark.parametrize(
    ("rss", "files", "speed", "problem"),
    [
        (0, 0, lambda t: 5, None),
        (60, 0, lambda t: 5, "memory of the process grew"),
        (0, 9, lambda t: 5, "open files grew"),
        (0, 0, lambda t: 5 - 2.5 * t / 3600, "speed fell"),
    ],
)
def test_a_soak_is_judged(faults, rss, files, speed, problem):
    from fault_kinds.soak import judge

    figures = judge(samples(rss, files, speed))
    assert figures["slope_mib_per_hour"] == pytest.approx(rss, abs=0.01)
    if problem is None:
        assert figures["problems"] == []
    else:
        assert len(figures["problems"]) == 1 and problem in figures["problems"][0]


def test_the_committed_page_is_made_from_the_committed_figures(faults, kinds):
    from fault_kinds.page import render

    page = (ROOT / "docs" / "reliability.md").read_text()
    assert page == render(ROOT, kinds.values())
