"""What a step would cost a GPU is what is committed: calls, waits of the host, copies, bytes."""

import json

import pytest
import torch
from support.paths import ROOT
from support.rehearsal import collectives, process

RESULT = json.loads((ROOT / "results" / "benchmarks" / "rehearsal.json").read_text())
BUDGETS = {
    scene: {row[0]: dict(zip(table["columns"][1:], row[1:], strict=True)) for row in table["rows"]}
    for scene, table in zip(process.SCENES, RESULT["tables"], strict=True)
    if scene not in process.SLOW
}
RENEW = (
    "If this is meant, run: python benchmarks/rehearsal.py --json "
    "results/benchmarks/rehearsal.json && python benchmarks/render.py"
)


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """Name of the recipe -> its counts, of all scenes."""
    if reason := process.missing():
        pytest.skip(reason)
    return process.run(tmp_path_factory.mktemp("stubs"), *BUDGETS)


def differences(budget: dict, counted: dict) -> list[str]:
    """Return a sentence for each count that differs."""
    return [
        f"{name} {'grew' if counted[name] > limit else 'fell'} from {limit} to {counted[name]}"
        for name, limit in budget.items()
        if counted[name] != (pytest.approx(limit, rel=1e-3, abs=0.01) if "B" in name else limit)
    ]


@pytest.mark.skipif(
    torch.__version__ != RESULT["machine"]["torch"], reason="another torch has other operators"
)
@pytest.mark.parametrize(
    "recipe", [name for budgets in BUDGETS.values() for name in budgets], ids=str
)
def test_a_step_costs_what_is_committed(counts, recipe):
    (budget,) = [budgets[recipe] for budgets in BUDGETS.values() if recipe in budgets]
    found = differences(budget, counts[recipe])
    places = ", ".join(f"{name} ({n})" for name, n in counts[recipe]["places"].items())
    assert not found, f"{recipe}: {', '.join(found)}. {RENEW}. Waits or exchanges: {places}"


def test_every_recipe_has_a_budget(counts):
    assert counts.keys() == {name for budgets in BUDGETS.values() for name in budgets}


@pytest.mark.parametrize("dictionary", collectives.DICTIONARIES)
def test_exchanges_and_memory_grow_linearly_with_the_processes(counts, dictionary):
    worlds = collectives.PROCESSES
    few, some, many = (counts[f"{dictionary}, {w:,} processes"] for w in worlds)
    assert few["collectives"] == some["collectives"] == many["collectives"]
    for name in ("MB received", "MB computed"):
        slopes = [
            (larger[name] - smaller[name]) / (processes - fewer)
            for smaller, larger, fewer, processes in (
                (few, some, *worlds[:2]),
                (some, many, *worlds[1:]),
            )
        ]
        assert slopes[1] == pytest.approx(slopes[0], rel=0.01), name


def test_a_difference_says_what_grew():
    budget = {"calls": 10, "waits": 1, "GB": 2.0}
    assert differences(budget, {"calls": 10, "waits": 1, "GB": 2.01}) == []
    assert differences(budget, {"calls": 9, "waits": 3, "GB": 2.1}) == [
        "calls fell from 10 to 9",
        "waits grew from 1 to 3",
        "GB grew from 2.0 to 2.1",
    ]
