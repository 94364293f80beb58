"""The list in campaigns/mutations.yaml fits the code, and a sample of it is tried; the whole of it
by `python campaigns/mutations.py`, in some minutes.
"""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from support.paths import CAMPAIGNS
from support.scripts import imported

PROGRAM = CAMPAIGNS / "mutations.py"


@pytest.fixture(scope="module")
def program():
    with imported(PROGRAM) as module:
        yield module


def test_every_entry_fits_the_code_and_names_a_check(program):
    mutations = program.read_list()
    assert len(mutations) > 100
    assert program.problems(mutations) == []
    assert all(mutation.wrong for mutation in mutations)
    kinds = [
        sum(bool(getattr(m, kind)) for m in mutations) for kind in ("edits", "settings", "records")
    ]
    assert min(kinds) >= 5


def test_a_list_that_no_longer_fits_is_named(program):
    good = next(m for m in program.read_list() if m.edits)
    edit = dataclasses.replace(good.edits[0], old="text that is nowhere")
    for changes, said in (
        ({"edits": (edit,)}, "its old text is 0 times in"),
        (
            {"tests": ("tests/test_files.py::test_nothing",)},
            "there is no test tests/test_files.py::",
        ),
        ({"tests": ()}, "give edits with tests"),
        ({"settings": ("SEED", "1")}, "give edits with tests"),
        ({"edits": (), "tests": (), "settings": ("SEED", "1")}, "give the expected sentence"),
    ):
        found = program.problems([dataclasses.replace(good, **changes)])
        assert any(said in problem for problem in found), said
    assert program.problems([good, good]) == [f"{good.id} is there twice"]


def test_a_sample_is_caught_and_a_mutation_of_nothing_slips(tmp_path):
    """In one process, since importing torch takes longer than most checks."""
    code = """if True:
        import dataclasses, sys, mutations
        read = mutations.read_list
        def with_harmless():
            listed = read()
            one = next(m for m in listed if m.id == "population_deviation")
            edit = dataclasses.replace(one.edits[0], new=one.edits[0].old + "  # the same")
            return [*listed, dataclasses.replace(one, id="harmless", edits=(edit,))]
        mutations.read_list = with_harmless
        sys.exit(mutations.main())
    """
    outcomes = tmp_path / "outcomes.json"
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick", "--no-baseline", "--json", outcomes],
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = {outcome["id"]: outcome for outcome in json.loads(outcomes.read_text())}
    assert [name for name, outcome in found.items() if not outcome["caught"]] == ["harmless"]
    assert found["harmless"]["caught_by"] == "all its tests pass"
    assert len(found) > 10
