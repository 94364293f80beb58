"""Files of 36 families, each as its project writes it: converted and proven, or refused with the
reason. The expectations are in tests/support/checkpoint/families.py, beside the files.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from support.checkpoint import outcomes
from support.checkpoint.families import FILES, File
from support.checkpoint.outcomes import ROWS, TOLERANCE, features_differ, outcome
from support.checkpoint.pieces import without_trackers
from support.checkpoint.reference import KEY, QUERY, R50, as_detectron2, forget_networks

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.recognition import extract
from moco_d2.errors import UserError

TABLE_VARIABLE = "CHECKPOINT_TABLE"  # where to keep the table of this run


CONVERTED = [file for file in FILES if file.refused is None]
REFUSED = [file for file in FILES if file.refused is not None]
WITH_KEY = [file for file in FILES if file.key]


@pytest.fixture(scope="module", autouse=True)
def networks():
    yield
    forget_networks()


def each(files: list[File]):
    return pytest.mark.parametrize("file", files, ids=[file.id for file in files])


def test_every_row_has_a_file_and_five_are_of_real_size():
    assert {file.row for file in FILES} == set(ROWS)
    assert len({file.row for file in FILES if file.network == R50}) >= 5


@each(CONVERTED)
def test_converted(file):
    result = outcome(file)
    assert result.refusal is None
    assert result.left_behind == ("weights.pth",)

    expected = as_detectron2(file.query)
    written = load_checkpoint(result.weights)["model"]
    assert written.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(written[name], expected[name])] == []
    assert features_differ(file) < TOLERANCE

    report = result.report
    assert report["tensors_found"] == report["tensors_expected"] == len(expected)
    assert report["depth"] == file.network.depth
    assert report["stride_in_1x1"] is file.network.stride_in_1x1
    assert report["parity"]["max"] < TOLERANCE


@each([file for file in CONVERTED if file.input is not None])
def test_input_is_reported(file):
    found, expected = outcome(file).report["preprocessing"], file.input
    assert found["format"] == expected.format
    assert found["pixel_mean"] == pytest.approx(expected.pixel_mean, abs=1e-3)
    assert found["pixel_std"] == pytest.approx(expected.pixel_std, abs=1e-3)


@each([file for file in CONVERTED if file.caveat is not None])
def test_caveat_is_reported(file):
    assert re.search(file.caveat, " ".join(outcome(file).report["caveats"]))


@each(REFUSED)
def test_refused(file):
    result = outcome(file)
    assert result.report is None
    assert re.search(file.refused, result.refusal)
    assert "\n" not in result.refusal and "; " in result.refusal  # the reason; what to do
    assert result.left_behind == ()


@each(WITH_KEY)
def test_branches(file, tmp_path):
    """The other network is taken when asked for, and only then."""
    checkpoint = load_checkpoint(file.write(tmp_path))
    for branch, seed in (("query", QUERY), ("key", KEY)):
        tensors = extract(checkpoint, branch=branch)[0].tensors
        state = without_trackers(file.network.state(seed))
        assert state.keys() <= tensors.keys()
        assert [n for n, t in state.items() if not torch.equal(tensors[n], t)] == []


@pytest.mark.parametrize("name", ["torchvision", "simsiam", "densecl"])
def test_there_is_no_key_network(name, tmp_path):
    (file,) = (file for file in FILES if file.content.__name__ == name)
    with pytest.raises(UserError, match=r"(?i)key|branch"):
        extract(load_checkpoint(file.write(tmp_path)), branch="key")


def _rows(table: str) -> list[list[str]]:
    """Number, file, family and outcome; the figures and the words depend on versions."""
    lines = [line for line in table.splitlines() if re.match(r"\| \d", line)]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    return [[*row[1:4], re.match(r"\w+", row[4])[0]] for row in rows]


def test_table(tmp_path):
    """The table of this run is the one in the documentation."""
    table = outcomes.table()
    Path(os.environ.get(TABLE_VARIABLE, tmp_path / "table.md")).write_text(table)
    rows = _rows(table)
    assert {int(row[0]) for row in rows} == set(ROWS)
    assert _rows(outcomes.COMMITTED_TABLE.read_text()) == rows
