"""What counts as done is told by the files in a cell's folder alone."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import pytest

from moco_d2.benchmark.runs.cell_lock import is_running, lock_of
from moco_d2.benchmark.runs.cell_state import (
    CELL_FILE,
    OUTPUT_LOG,
    examine,
    note_started,
)
from moco_d2.benchmark.runs.suite_values import file_settings
from moco_d2.benchmark.runs.transfer_suites import transfer_cell
from moco_d2.config.load import task_configs
from moco_d2.errors import UserError


@pytest.fixture
def cell():
    return transfer_cell(
        name="voc_C4/moco/seed1",
        task="voc_C4",
        initialization="moco",
        seed=1,
        config="voc_C4_moco.yaml",
        overrides={"MODEL.WEIGHTS": "{folder}/moco.pth"},
        settings=file_settings(*task_configs()["voc_C4_moco.yaml"]),
        source=Path("suite.yaml"),
    )


@pytest.fixture
def record(make_content, tmp_path):
    content = make_content()
    content["config"]["resolved"]["MODEL"]["WEIGHTS"] = f"{tmp_path}/moco.pth"
    return content


def put(folder, cell, content):
    path = folder / cell.name / cell.record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def status(cell, folder, processes=8):
    return examine(cell, folder, processes=processes).status


def test_a_run_from_beginning_to_end(cell, record, tmp_path):
    assert status(cell, tmp_path) == "missing"
    note_started(cell, tmp_path, processes=8, completed=0)
    assert status(cell, tmp_path) == "partial"
    put(tmp_path, cell, record)
    assert status(cell, tmp_path) == "done"


def test_a_damaged_record_is_not_done(cell, record, tmp_path):
    note_started(cell, tmp_path, processes=8, completed=1)
    put(tmp_path, cell, json.dumps(record)[:-10])
    state = examine(cell, tmp_path, processes=8)
    assert (state.status, state.completed) == ("partial", 0)  # its last command runs again
    assert "record.json" in state.problem


def test_a_run_by_hand_is_taken_if_it_is_the_same(cell, record, tmp_path):
    """Whatever the number of processes that its schedule was scaled to: the images are the same."""
    put(tmp_path, cell, record)
    assert status(cell, tmp_path) == "done"
    record["schedule"] |= {"world_size": 1, "ims_per_batch": 2, "max_iter": 192000}
    record["config"]["resolved"]["SOLVER"] |= {"IMS_PER_BATCH": 2, "BASE_LR": 0.0025}
    put(tmp_path, cell, record)
    assert status(cell, tmp_path) == "done"


@pytest.mark.parametrize("words", ["mine", "('mine',)", "['mine']"])
def test_one_dataset_needs_no_tuple(cell, record, tmp_path, words):
    record["config"]["resolved"]["DATASETS"]["TRAIN"] = ["mine"]
    put(tmp_path, cell, record)
    settings = {**cell.settings, "DATASETS.TRAIN": words}
    assert status(dataclasses.replace(cell, settings=settings), tmp_path) == "done"
    settings["DATASETS.TRAIN"] = "another"
    assert status(dataclasses.replace(cell, settings=settings), tmp_path) == "conflict"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 2, "seed 2, not voc_C4 from moco, seed 1"),
        ("initialisation", "supervised", "voc_C4 from supervised"),
        ("weights", "other.pth", "MODEL.WEIGHTS is other.pth in the run"),
        (
            "length",
            12000,
            "the number of training images is 192000 in the run, 384000 in the suite",
        ),
    ],
)
def test_a_record_of_another_run_is_a_conflict(cell, record, tmp_path, key, value, said):
    if key == "weights":
        record["config"]["resolved"]["MODEL"]["WEIGHTS"] = value
    elif key == "length":
        record["schedule"]["max_iter"] = value
    else:
        record["run"][key] = value
    put(tmp_path, cell, record)
    state = examine(cell, tmp_path, processes=8)
    assert state.status == "conflict" and said in state.problem
    assert "choose another --folder, or remove" in state.problem


def test_another_number_of_processes_is_a_conflict(cell, record, tmp_path):
    """BatchNorm and the schedule depend on it."""
    note_started(cell, tmp_path, processes=8, completed=0)
    put(tmp_path, cell, record)
    state = examine(cell, tmp_path, processes=1)
    assert state.status == "conflict" and "8 process(es), the suite 1" in state.problem


def test_an_unreadable_note_is_a_conflict(cell, tmp_path):
    note_started(cell, tmp_path, processes=8, completed=0)
    (tmp_path / cell.name / CELL_FILE).write_text("{")
    assert status(cell, tmp_path) == "conflict"


def test_the_lock_says_who_runs(cell, tmp_path):
    assert not is_running(cell, tmp_path)
    lock = lock_of(cell, tmp_path)
    with lock:
        assert is_running(cell, tmp_path)
    assert not is_running(cell, tmp_path)


# What a cell.json of a stranger may be: its changed keys or its whole text, and what is said.
HOSTILE = {
    "list": ("[1]", "must be a JSON object"),
    "empty": ("{}", "commands must be a list"),
    "nested": ("[" * 100_000, "nests too deep"),
    "no text": ("\udcff", "cannot be read"),
    "large": (" " * (9 << 20), "bytes"),
    "commands": ({"commands": 5}, "commands must be a list"),
    "processes": ({"processes": "8"}, "processes must be a whole number"),
    "completed text": ({"completed": "x"}, "completed must be a whole number"),
    "completed true": ({"completed": True}, "completed must be a whole number"),
    "completed none": ({"completed": None}, "completed must be a whole number"),
    "completed negative": ({"completed": -5}, "completed must be a whole number"),
    "completed too many": ({"completed": 2}, "at most the number of commands"),
    "settings list": ({"settings": [1]}, "settings must be a mapping"),
    "settings number": ({"settings": {"SEED": 1}}, "values of settings must be text"),
    "literal deep": ({"settings": {"SEED": "(" * 5000}}, "has a run of other settings"),
    "literal minus": ({"settings": {"SEED": "-" * 100_000 + "1"}}, "has a run of other settings"),
    "terminal": (
        {"settings": {"\x1b]0;x\x07": "\x1b[31m\nerror: y"}},
        "has a run of other settings",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_note_of_a_stranger_is_one_sentence(cell, tmp_path, what):
    note_started(cell, tmp_path, processes=8, completed=0)
    file = tmp_path / cell.name / CELL_FILE
    changed, said = HOSTILE[what]
    if isinstance(changed, dict):
        changed = json.dumps({**json.loads(file.read_text()), **changed})
    file.write_text(changed, encoding="utf-8", errors="surrogateescape")
    state = examine(cell, tmp_path, processes=8)
    assert state.status == "conflict" and said in state.problem
    assert state.problem.endswith(f"choose another --folder, or remove {file.parent}")
    assert state.problem.isprintable() and len(state.problem) < 2000


def test_a_pipe_in_the_place_of_a_note_or_a_record_is_not_read(cell, tmp_path):
    home = tmp_path / cell.name
    home.mkdir(parents=True)
    os.mkfifo(home / CELL_FILE)
    assert "not a regular file" in examine(cell, tmp_path, processes=8).problem
    (home / CELL_FILE).unlink()
    (home / CELL_FILE).symlink_to(CELL_FILE)
    assert status(cell, tmp_path) == "conflict"
    (home / CELL_FILE).unlink()
    note_started(cell, tmp_path, processes=8, completed=0)
    os.mkfifo(home / cell.record)
    assert status(cell, tmp_path) == "partial"


@pytest.mark.parametrize("name", [OUTPUT_LOG, ".lock"])
@pytest.mark.parametrize("link", ["symbolic", "hard", "pipe"])
def test_a_link_in_the_place_of_a_log_or_a_lock_is_a_conflict(cell, tmp_path, name, link):
    victim, file = tmp_path / "victim", tmp_path / cell.name / name
    victim.write_text("precious")
    file.parent.mkdir(parents=True)
    if link == "symbolic":
        file.symlink_to(victim)
    elif link == "hard":
        os.link(victim, file)
    else:
        os.mkfifo(file)
    state = examine(cell, tmp_path, processes=8)
    assert state.status == "conflict"
    assert state.problem.startswith(f"{file} must be a plain file, ")
    if name == ".lock":
        for ask in (is_running, lock_of):
            with pytest.raises(UserError, match=r"\.lock must be a plain file, .*; remove it$"):
                ask(cell, tmp_path)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("place", ["voc_C4/moco/seed1", "voc_C4/moco", "voc_C4"])
def test_a_file_in_the_place_of_a_folder_is_a_conflict(cell, tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("")
    assert f"{tmp_path / place} must be a folder" in examine(cell, tmp_path, processes=8).problem
    assert not is_running(cell, tmp_path)
    with pytest.raises(UserError, match="cannot write .*; choose another --folder"):
        lock_of(cell, tmp_path)


def test_a_damaged_record_is_said_once(cell, tmp_path, caplog):
    """By the state, not by the reader of records, whose logger keeps its own switch."""
    note_started(cell, tmp_path, processes=8, completed=0)
    put(tmp_path, cell, '{"kind": "transfer", "schema_version": 2}')
    reader = logging.getLogger("moco_d2.benchmark.records.files")
    state = examine(cell, tmp_path, processes=8)
    assert state.status == "partial" and "is not a valid record of a run (" in state.problem
    assert not caplog.records and not reader.disabled
    put(tmp_path, cell, '{"kind": "pretext"}')
    assert examine(cell, tmp_path, processes=8).status == "partial"
