"""tools/pretrain.py: what it writes, and how it refuses."""

import argparse
import json

import pytest
import torch
from support.commands import run_tool
from support.paths import TOOLS
from support.recording_tracker import Recording
from support.run_loggers import restored_loggers
from support.toy_data import make_class_folders

from moco_d2.cli import run_command
from moco_d2.pretrain.main import pretrain

TOOL = TOOLS / "pretrain.py"


@pytest.fixture(autouse=True)
def loggers():
    with restored_loggers():
        yield


@pytest.fixture(autouse=True)
def settings_of_malloc(monkeypatch):
    """The calls that would change them for all that this process does later."""
    calls = []
    monkeypatch.setattr("moco_d2.pretrain.main.keep_freed_memory", lambda: calls.append("kept"))
    return calls


@pytest.fixture
def command(words):
    """Function: overrides -> runs the tool's main function in this process."""

    def pretrain_run(overrides, *, config="moco_v2_R50_200ep.yaml", resume=False):
        args = argparse.Namespace(config_file=config, resume=resume, opts=words(overrides))
        run_command(lambda: pretrain(args))

    return pretrain_run


@pytest.fixture
def refused(command, capsys, tmp_path):
    """Function: arguments of `command` -> its one line on stderr, checked for what all share."""

    def refuse(*args, **kwargs) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            command(*args, **kwargs)
        out, err = capsys.readouterr()
        assert ended.value.code == 2
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return refuse


def test_a_run_leaves_config_log_metrics_and_checkpoint_and_resumes(
    command, tmp_path, small_network, settings_of_malloc
):
    """To the end and then one epoch further."""
    out = tmp_path / "out"
    for epochs, resume in ((1, False), (2, True)):
        with pytest.raises(SystemExit) as ended:
            command({"MOCO.EPOCHS": epochs, "SOLVER.CHECKPOINT_PERIOD": 0}, resume=resume)
        assert ended.value.code == 0
        content = torch.load(out / "checkpoint_final.pth.tar", weights_only=True)
        assert (content["epoch"], content["moco_d2"]["iteration"]) == (epochs, 3 * epochs)
    assert settings_of_malloc == ["kept", "kept"]
    assert {"config.yaml", "log.txt", "metrics.json", "last_checkpoint"} <= {
        path.name for path in out.iterdir()
    }
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 5]
    assert (
        "24 images; 8 images per step on 1 process(es), 3 steps per epoch"
        in (out / "log.txt").read_text()
    )


def test_a_tracker_gets_what_metrics_json_gets(command, tmp_path, small_network, monkeypatch):
    recording = Recording.stand_in(monkeypatch, "wandb")
    for epochs, resume in ((1, False), (2, True)):
        with pytest.raises(SystemExit):
            command({"MOCO.EPOCHS": epochs, "MOCO.TRACKERS": "wandb"}, resume=resume)
    kinds = [(call[0], call[-1]) for call in recording.calls]
    run = [("start", None), ("log", 2), ("finish", "finished")]
    assert kinds == [*run, ("start", "new"), ("log", 5), run[-1]]
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    written, tracked = json.loads(lines[-1]), recording.values()
    for values in (written, tracked):
        values.pop("iteration", None)
        values.pop("eta_seconds", None)
    assert tracked == written


def test_a_refusal_of_the_real_command_is_one_line_and_leaves_nothing(tmp_path):
    words = ["DATASETS.TRAIN", "('no/such/folder',)", "OUTPUT_DIR", "out"]
    result = run_tool(TOOL, "--config-file", "moco_v1_R50_200ep.yaml", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: dataset folder no/such/folder does not exist")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_folder_without_images_is_refused(refused, tmp_path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    message = refused({"DATASETS.TRAIN": (str(tmp_path / "empty"),)})
    assert f"no images in {tmp_path / 'empty'}" in message


def test_an_unknown_key_names_the_closest(refused):
    message = refused({"MOCO.TEMPERATUR": 0.1})
    assert "unknown config key MOCO.TEMPERATUR; did you mean 'MOCO.TEMPERATURE'" in message


def test_a_batch_larger_than_the_dataset_is_refused(refused, images):
    message = refused({"SOLVER.IMS_PER_BATCH": 25})
    assert "the dataset has 24 images, fewer than one batch of 25" in message


def test_an_unknown_config_names_the_closest(refused):
    message = refused({}, config="moco_v3_R50_200ep.yaml")
    assert "no config file 'moco_v3_R50_200ep.yaml'" in message
    assert "did you mean 'moco_v" in message


def test_a_fine_tuning_config_is_refused(refused):
    message = refused({}, config="voc_C4_moco.yaml")
    assert "voc_C4_moco.yaml fine-tunes a detector (voc_C4)" in message
    assert "tools/train_net.py" in message


def test_settings_found_wrong_only_by_the_loop_are_refused_too(refused):
    assert "MOCO.LR_STEP_EVERY is 0, but" in refused({"MOCO.LR_SCHEDULE": "step_every"})


def test_a_damaged_image_ends_the_run_in_one_line(command, capsys, tmp_path, small_network):
    folder = make_class_folders(tmp_path / "damaged", per_class=4)
    (folder / "dark" / "2.png").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        command({"DATASETS.TRAIN": (str(folder),), "DATALOADER.NUM_WORKERS": 1})
    assert ended.value.code == 2
    error = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "Traceback" in line or "rror" in line
    ]
    assert error == [error[0]] and f"{folder}/dark/2.png" in error[0]
    assert "Traceback" not in (tmp_path / "out" / "log.txt").read_text()


def test_resuming_with_a_changed_setting_is_refused(command, capsys, tmp_path, small_network):
    with pytest.raises(SystemExit):
        command({"MOCO.EPOCHS": 1})
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command({"MOCO.DICTIONARY.SIZE": 8}, resume=True)
    assert ended.value.code == 2
    assert "error: the checkpoint's queue has the shape (16, 20)" in capsys.readouterr().err
