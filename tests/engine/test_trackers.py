"""Trackers of experiments: with each library that is installed, and with one that fails."""

import importlib.util
import json
import logging
import os
import random
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from support.commands import run_python
from support.recording_tracker import Recording

from moco_d2.config.keys import add_moco_config
from moco_d2.config.load import load_config
from moco_d2.engine.trackers import IDENTITIES, TRACKERS, Trackers
from moco_d2.errors import Stopped, UserError

# Two runs of one folder, in a process of their own, because the libraries leave threads.
RUNS = """
import sys
import time
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from moco_d2.config.keys import add_moco_config
from moco_d2.engine.trackers import Trackers
name, folder = sys.argv[1:]
cfg = get_cfg()
add_moco_config(cfg)
cfg.MOCO.TRACKERS, cfg.OUTPUT_DIR, cfg.MOCO.TASK = (name,), folder, "voc_C4"
for first, resumed in ((0, False), (40, True)):
    trackers = Trackers(cfg, lambda: resumed)
    with EventStorage(first) as storage:
        for iteration in (first + 19, first + 39):
            storage.iter = iteration
            storage.put_scalars(total_loss=100 - iteration, smoothing_hint=False)
            trackers.write()
            trackers.write()
        storage.iter += 1
        storage.put_scalar("bbox/AP-person 1", 50.0, smoothing_hint=False)
        trackers.write()
        trackers.close()
    second = int(time.time())
    while int(time.time()) == second:  # W&B names the folder of a part by the second of its start
        time.sleep(0.05)
"""
LOSSES = {19: 81.0, 39: 61.0, 59: 41.0, 79: 21.0}


@pytest.fixture
def recording(monkeypatch):
    return Recording.stand_in(monkeypatch, "mlflow")


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_moco_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    cfg.MOCO.TRACKERS = ("mlflow",)
    return cfg


def train(cfg, *, resumed=False, error=None):
    trackers = Trackers(cfg, lambda: resumed)
    with EventStorage() as storage:
        for iteration in (19, 39):
            storage.iter = iteration
            storage.put_scalars(loss=float(iteration), bad=float("nan"), smoothing_hint=False)
            trackers.write()
        try:
            raise error or ZeroDivisionError
        except ZeroDivisionError:
            pass
        except BaseException:
            trackers.close()
            return
    trackers.close()


def test_a_tracker_gets_the_values_of_each_write_and_the_end(recording, cfg, capsys):
    train(cfg)
    assert recording.calls == [
        ("start", "run", cfg.SEED, None),
        ("log", {"loss": 19.0}, 19),
        ("log", {"loss": 39.0}, 39),
        ("finish", "finished"),
    ]
    assert capsys.readouterr().out == ""


def test_a_resumed_run_continues_its_run_and_a_new_one_does_not(recording, cfg):
    file = Path(cfg.OUTPUT_DIR, IDENTITIES)
    file.write_text(json.dumps({"mlflow": "run-7", "other": 1}))
    train(cfg, resumed=True)
    train(cfg)
    file.write_text('{"mlflow": "../../x"}')
    train(cfg, resumed=True)
    starts = [call[-1] for call in recording.calls if call[0] == "start"]
    assert starts == ["run-7", None, None]
    assert json.loads(file.read_text()) == {"mlflow": "new"}


@pytest.mark.parametrize(
    ("error", "state"), [(Stopped(15), "stopped"), (UserError("no"), "failed")]
)
def test_a_run_that_ends_early_says_so(recording, cfg, error, state):
    train(cfg, error=error)
    assert recording.calls[-1] == ("finish", state)


@pytest.mark.parametrize(("fails_in", "calls"), [("start", 1), ("log", 2), ("finish", 4)])
def test_a_tracker_that_fails_is_one_warning_and_the_training_goes_on(
    recording, cfg, monkeypatch, caplog, fails_in, calls
):
    monkeypatch.setattr(recording, "fails_in", fails_in)
    caplog.set_level(logging.WARNING)
    train(cfg)
    (warning,) = caplog.messages
    assert warning == "MOCO.TRACKERS: mlflow fails (no network); training goes on without it"
    assert len(recording.calls) == calls


def test_a_tracked_run_draws_the_random_numbers_of_an_untracked_one(recording, cfg):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    train(cfg)
    assert state() == before


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_missing_package_is_one_sentence_before_the_training(cfg, monkeypatch, name):
    cfg.MOCO.TRACKERS = (name,)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"not installed: pip install 'moco_d2\[{name}\]', or lea"):
        Trackers(cfg, bool)


def test_nothing_is_loaded_unless_a_tracker_is_named(cfg):
    code = "import sys; from moco_d2.engine.trackers import TRACKERS"
    done = run_python("-c", f"{code}; print([name for name in TRACKERS if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_only_the_command_line_names_trackers(tmp_path, caplog):
    """A file of somebody else sends nothing; config.yaml of a tracked run can still be loaded."""
    (tmp_path / "c.yaml").write_text("VERSION: 2\nMOCO: {TRACKERS: [wandb]}\n")
    typed = ["MOCO.TRACKERS", "wandb"]
    assert load_config(tmp_path / "c.yaml").MOCO.TRACKERS == ()
    (warning,) = caplog.messages
    assert "c.yaml: MOCO.TRACKERS names wandb, to which only the command line may send" in warning
    assert load_config(tmp_path / "c.yaml", typed, typed=False).MOCO.TRACKERS == ()
    assert load_config(tmp_path / "c.yaml", typed).MOCO.TRACKERS == ("wandb",)


# ----- the libraries


def run_twice(name, folder, **environment):
    folder.mkdir()
    environment = {**os.environ, "HOME": str(folder.parent), **environment}
    done = run_python("-c", RUNS, name, folder, cwd=folder.parent, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fails" not in done.stderr
    assert done.stdout == ""
    return json.loads((folder / IDENTITIES).read_text())[name]


def test_wandb_offline(tmp_path):
    """One run of two parts, with the config; `wandb sync` sends both."""
    pytest.importorskip("wandb", reason="needs the extra wandb")
    identity = run_twice("wandb", tmp_path / "mine", WANDB_MODE="offline")
    files = sorted((tmp_path / "mine" / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        for text in (b"total_loss", b"bbox/AP-person 1", b"voc_C4", b"mine", b"moco_d2"):
            assert text in content


def test_wandb_without_a_key_is_refused_before_it_would_ask_for_one(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    (tmp_path / "run").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment["HOME"] = str(tmp_path)
    words = ("-c", RUNS, "wandb", tmp_path / "run")
    done = run_python(*words, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
    assert (
        "UserError: MOCO.TRACKERS names wandb, which has no key on this machine: call"
        in done.stderr
    )
    assert not list((tmp_path / "run").iterdir())


def test_mlflow_in_a_local_database(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    database = f"sqlite:///{tmp_path}/mlflow.db"
    identity = run_twice("mlflow", tmp_path / "mine", MLFLOW_TRACKING_URI=database)
    client = mlflow.MlflowClient(tracking_uri=database)
    losses = client.get_metric_history(identity, "total_loss")
    assert {metric.step: metric.value for metric in losses} == LOSSES
    run = client.get_run(identity)
    assert run.data.metrics["bbox/AP-person 1"] == 50.0
    assert run.data.params["MOCO.TASK"] == "voc_C4"
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")


def test_trackio_in_a_local_database(tmp_path):
    pytest.importorskip("trackio", reason="needs the extra trackio")
    identity = run_twice("trackio", tmp_path / "mine", TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "moco_d2.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in rows} == {identity}
    values = {step: json.loads(metrics) for _, step, metrics in rows}
    assert {i: v["total_loss"] for i, v in values.items() if "total_loss" in v} == LOSSES
