"""benchmarks/: that the page is of the figures, that the arithmetic is right, and that the one for
a GPU runs. The others take a fresh process each: `python benchmarks/NAME.py --small`, but for
convert, which is small.
"""

import importlib
import json

import pytest
from support.paths import BENCHMARKS


@pytest.fixture(autouse=True)
def in_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_figure_of_the_page_is_a_measured_one(tmp_path, monkeypatch):
    render = importlib.import_module("render")
    page = render.PAGE.read_text()
    monkeypatch.setattr(render, "PAGE", tmp_path / "performance.md")
    render.main()
    assert (tmp_path / "performance.md").read_text() == page
    results = [json.loads(path.read_text()) for path in render.RESULTS.glob("*.json")]
    assert {result["machine"]["device"] for result in results} == {"cpu"}  # as the page says


def test_ratios_are_medians_within_turns():
    harness = importlib.import_module("harness")
    # The machine is three times slower in the second turn: the ratio of medians would be 1.6.
    assert harness.ratio([2, 6, 4], [1, 3, 2.5]) == 2
    assert harness.ratio([1, 3, 9], [1, 1, 1]) == 3
    for value, met in ((1.4, True), (1.41, False)):
        assert harness.met(harness.check("a", value, at_most=1.4)) is met
        assert harness.met(harness.check("a", value, at_least=1.405)) is not met
    assert harness.met(harness.check("a", 1.0)) is None


def test_turns_alternate_and_warming_up_is_not_counted():
    harness = importlib.import_module("harness")
    order = []
    ticks = iter(range(100))
    seconds = harness.take_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        2,
        warmup=1,
        clock=lambda: next(ticks),
    )
    assert "".join(order) == "ababab"
    assert seconds == {"a": [1, 1], "b": [1, 1]}


def test_the_step_that_waits_for_a_gpu_runs_on_a_cpu(tmp_path, monkeypatch):
    step = importlib.import_module("pretraining_step")
    monkeypatch.setattr(step, "keep_freed_memory", lambda: None)  # for this process's whole life
    monkeypatch.setattr(step, "lightly_blocks", lambda *args: None)  # as where it is not installed
    # Before each turn; here it would go through all that other tests have imported.
    monkeypatch.setattr("harness.gc.collect", lambda: 0)
    file = tmp_path / "result.json"
    words = ["--small", "--repeats", "1", "--augment", "device", "--profile", "1"]
    monkeypatch.setattr("sys.argv", ["pretraining_step.py", *words, "--json", str(file)])
    step.main()
    result = json.loads(file.read_text())
    assert result["command"] == f"python benchmarks/pretraining_step.py {' '.join(words)}"
    values = {check["what"]: check["value"] for check in result["checks"]}
    equal = "transcription, at the same precision and layout / ours"
    assert {equal, "ours, images per second"} < values.keys()
    assert all(value > 0 for value in values.values())
    (profile,) = result["tables"]
    assert any("conv" in operator for operator, _, _ in profile["rows"])
    assert "lightly is not installed" in result["notes"][0]


def test_what_is_divided_by_its_millions_says_so(tmp_path, monkeypatch):
    scale = importlib.import_module("scale")
    monkeypatch.setattr(scale, "in_a_process", lambda kind, count: (count * 2e-6, count * 3e-6, 0))
    monkeypatch.setattr(scale, "queue_step", lambda size, repeats: float(size))
    monkeypatch.setattr(scale, "counting_rate", lambda images, repeats: 1.0)
    file = tmp_path / "scale.json"
    monkeypatch.setattr("sys.argv", ["scale.py", "--json", str(file)])
    scale.main()
    found = {check["what"]: check["value"] for check in json.loads(file.read_text())["checks"]}
    assert found["list, per million of 10,000,000 images: memory"] == 3
    assert found["list, per million of 10,000,000 images: time to the first batch"] == 2
    render = importlib.import_module("render")
    committed = json.loads((render.RESULTS / "scale.json").read_text())["checks"]
    assert [*found] == [check["what"] for check in committed]


def test_every_source_of_the_scale_gives_its_first_batch(tmp_path):
    scale = importlib.import_module("scale")
    for kind, measure in scale.SOURCES.items():
        (tmp_path / kind).mkdir()
        figures = measure(20, tmp_path / kind)
        assert len(figures) == 3 and all(figure >= 0 for figure in figures)
