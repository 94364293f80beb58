"""What the paper's claims need, and the figure of the page: both hold what their sources say."""

import importlib
import json

import numpy as np
import pytest
from support.paths import ROOT


@pytest.fixture
def paper_claims(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "studies")
    return importlib.import_module("paper_claims")


def test_the_papers_claims_on_the_page_are_the_measured_ones(paper_claims):
    page = (ROOT / "docs" / "statistics.md").read_text()
    result = json.loads((ROOT / paper_claims.RESULT).read_text())
    assert paper_claims.with_claims(page, result) == page
    assert result["draws"] == paper_claims.DRAWS
    grids = list(paper_claims.grids())
    assert {(c["suite"], c["task"]) for c in result["claims"]} == {(g.suite, g.task) for g in grids}


def test_a_large_claim_of_the_paper_comes_out(paper_claims):
    grid = next(g for g in paper_claims.grids() if g.suite == "table_2b")
    lines = paper_claims.measure(grid, 3, np.random.default_rng(0))
    assert [(c["row"], c["published"], c["claimed"]) for c in lines] == [
        *(("moco", 2.4, 1.0), ("moco_ig1b", 3.7, 1.0)),
    ]


def test_the_figure_of_the_page_is_of_the_records_that_its_example_reads(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "studies")
    figure = importlib.import_module("reading_figure")
    page = ROOT / "docs" / "statistics.md"
    assert f'read_records(["{figure.RECORDS}"])' in page.read_text()
    figure.draw(ROOT, tmp_path / "forest.svg")
    drawn = (tmp_path / "forest.svg").read_text()
    renew = "python studies/reading_figure.py docs/statistics/forest.svg"
    assert drawn == (page.parent / "statistics" / "forest.svg").read_text(), f"renew: {renew}"
