"""A run that is removed from a committed grid creates no claim, with one exception that is named.

Grids whose runs are committed are taken as they are. Of the demo only the table is committed: its
runs are drawn with the means and spreads of the table, until they support the orders of the page.
"""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
from support.paths import ROOT
from support.run_records import content, write_table_2b

from moco_d2.benchmark.records.results import read_records, to_record
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.records.run_schema import upgrade

_DRAWS = 3  # of each table of the demo
_MOST_DRAWS = 300
# The study of learning is no table of a benchmark: some of its rows are broken on purpose. The run
# that spreads most of all (64.8 beside 49.3 and 46.1) is much of what its pooled residual knows.
_KNOWN = {("learning", "K = 2048", 2)}
_CELL = re.compile(r"(-?[\d.]+) ± ([\d.]+) \(n=(\d+)\)")


@functools.cache
def template():
    data = {"train": ["coco_a"], "test": ["coco_b"]}  # a table of VOC has no masks
    return to_record(ROOT / "record.json", upgrade(content(task="grid", data=data)))


def record(row, seed, values):
    metrics = dict(zip(("bbox/AP", "segm/AP"), map(float, values), strict=False))
    return dataclasses.replace(template(), initialization=row, seed=seed, metrics=metrics)


def claims(records):
    """Every order and equivalence that the tables of some runs claim."""
    found = set()
    for table in measured_tables(records):
        for pair in table.pairs:
            for metric, c in zip(table.metrics, pair.comparisons, strict=True):
                if c and c.supported:
                    rows = (pair.label, pair.against)
                    found.add((metric, "above", *(rows if c.difference > 0 else rows[::-1])))
                if c and c.equivalent:
                    found.add((metric, "as good as", *sorted((pair.label, pair.against))))
    return found


def orders(records):
    return {claim for claim in claims(records) if claim[1] == "above"}


def values_of(run):
    return run["curve"][-1][1], run["pretext_accuracy"]


def learning():
    results = json.loads((ROOT / "results/studies/learning.json").read_text())["results"]
    # The page compares each row with MoCo, which the reference of a table stands for.
    return [
        record("supervised" if row == "MoCo" else row, seed, values_of(run))
        for row, runs in results.items()
        for seed, run in enumerate(runs)
    ]


def sweeps():
    results = json.loads((ROOT / "results/studies/sweeps.json").read_text())["results"]
    names = [re.fullmatch(r"(.*)/seed(\d+)/evaluation", name) for name in results]
    return [
        record(name[1], int(name[2]), result["accuracy"].values())
        for name, result in zip(names, results.values(), strict=True)
    ]


def demo(number):
    """The first tables of the page with the same orders: runs, and the order of each pair."""
    page = (ROOT / "docs/demo/report.md").read_text().split("\n### ")[number]
    titles, *lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    columns = [i for i, title in enumerate(titles) if title.strip("| ") in ("AP", "APbb", "APmk")]
    cells = {line[0].strip("| "): [line[i] for i in columns] for line in lines}
    rows = {
        row: [tuple(map(float, _CELL.match(text).groups())) for text in texts]
        for row, texts in cells.items()
        if _CELL.match(texts[0])
    }
    printed = {
        (metric, "above", *(pair if "+" in text.split("**")[1] else pair[::-1]))
        for row, texts in cells.items()
        if len(pair := tuple(row.split(" − "))) == 2
        for metric, text in zip(("bbox/AP", "segm/AP"), texts, strict=False)
        if text.startswith("**")
    }
    assert len(rows) == 3 and printed
    rng, found = np.random.default_rng(number), []
    for _ in range(_MOST_DRAWS):
        records = []
        for row, numbers in rows.items():
            z = rng.standard_normal((int(numbers[0][2]), len(numbers)))
            z = (z - z.mean(axis=0)) / z.std(axis=0, ddof=1)
            means, spreads, _ = np.transpose(numbers)
            records += [record(row, seed, means + spreads * one) for seed, one in enumerate(z)]
        if orders(records) == printed:
            found.append(records)
        if len(found) == _DRAWS:
            return found
    raise AssertionError(f"no draw has the orders of the page: {printed}")


@pytest.fixture
def grids(tmp_path):
    write_table_2b(tmp_path)
    committed = {"table 2b": read_records([tmp_path]), "learning": learning(), "sweeps": sweeps()}
    drawn = {f"demo {n}, draw {i}": runs for n in (0, 1) for i, runs in enumerate(demo(n))}
    return committed | drawn


def test_no_run_of_a_committed_grid_hides_a_claim(grids):
    created, of = [], {}
    for name, records in grids.items():
        of[name] = claims(records)
        for removed in records:
            rest = [r for r in records if r is not removed]
            if new := claims(rest) - of[name]:
                created.append((name, removed.initialization, removed.seed, new))
    assert [one for one in created if one[:3] not in _KNOWN] == []
    assert sum(map(bool, of.values())) > len(of) / 2  # there was something to create it from
