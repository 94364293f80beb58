"""Studies: a page holds what its result file says, and a small study runs."""

import importlib
import json

import numpy as np
import pytest
from support.paths import ROOT


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "studies")
    return importlib.import_module("claims")


def test_the_rates_on_the_page_are_the_measured_ones(claims):
    page = (ROOT / "docs" / "statistics.md").read_text()
    result = json.loads((ROOT / claims.RESULT).read_text())
    assert claims.with_rates(page, result) == page
    assert result["draws"] == claims.DRAWS
    assert len(result["cases"]) == len(list(claims.cases()))


def test_a_case_of_each_kind_is_measured(claims):
    found = {}
    for case in claims.cases():
        if (case.rows, case.seeds - bool(case.missing)) == (3, 5):
            found[case.name] = claims.measure(case, 4, np.random.default_rng(0))
    assert found["one row is better by 1.0"]["power"] > 0.5
    assert {line["comparisons"] for line in found.values()} == {3}


@pytest.fixture
def intervals(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "studies")
    return importlib.import_module("intervals")


def test_the_coverage_on_the_page_is_the_measured_one(intervals):
    page = (ROOT / "docs" / "statistics.md").read_text()
    result = json.loads((ROOT / intervals.RESULT).read_text())
    assert intervals.with_coverage(page, result) == page
    counts = {case: np.zeros(2) for case in intervals.CASES}
    for line in result["cases"]:
        fields = {name: line[name] for name in intervals.Case.__dataclass_fields__}
        draws = line["draws"]
        assert draws >= intervals.DRAWS
        counts[intervals.Case(**fields)] += draws * line["held"]["seeds and images"], draws
    shares = {case: held / draws for case, (held, draws) in counts.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values())


def test_a_small_study_of_intervals_runs(intervals, monkeypatch):
    monkeypatch.setattr(intervals, "_POPULATION", 2000)
    case = intervals.Case("voc_2007", "AP50", 100, 3, 0.01)
    found = intervals.measure(case, 12, 200, np.random.default_rng(0))
    assert found["held"]["seeds and images"] >= 0.7
    assert found["width"]["seeds"] < found["width"]["seeds and images"]
    assert 0.5 < found["share_of_images"] < 1
    assert 1 < found["difference"] < 8
