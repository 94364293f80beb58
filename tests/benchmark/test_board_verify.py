"""`verify`: what it compares with a record, and what it refuses."""

import argparse
import hashlib
import json
import shutil

import pytest
import torch
from support.commands import run_tool
from support.paths import TOOLS
from support.run_loggers import restored_loggers
from support.run_records import content
from support.toy_data import SLIM_BACKBONE, SMALL_DETECTOR, make_voc

from moco_d2.benchmark.board.verify import verify
from moco_d2.errors import UserError
from moco_d2.transfer.main import train
from moco_d2.version import __version__


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run."""
    root = make_voc(tmp_path_factory.mktemp("data") / "VOC2007")
    folder = tmp_path_factory.mktemp("runs") / "out"
    data = {"DATASETS.TRAIN": (f"voc:{root}:trainval",), "DATASETS.TEST": (f"voc:{root}:test",)}
    data |= {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "OUTPUT_DIR": folder}
    words = [str(word) for pair in data.items() for word in pair]
    args = argparse.Namespace(
        config_file="voc_C4_random.yaml", resume=False, eval_only=False, force=True
    )
    args.opts = [*SMALL_DETECTOR, *SLIM_BACKBONE, *words]
    with restored_loggers():
        train(args)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run, and a function that changes its record."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)

    def change(edit):
        record = json.loads((folder / "record.json").read_text())
        edit(record)
        (folder / "record.json").write_text(json.dumps(record))

    return argparse.Namespace(folder=folder, change=change)


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_a_run_agrees_with_its_record_and_stays_as_it_is(run, capfd):
    before = files(run.folder)
    assert verify(run.folder) == 0
    first, *out = map(str.strip, capfd.readouterr().out.splitlines())
    assert first == str(run.folder / "record.json")
    assert [line.split(": ")[:2] for line in out[:-1]] == [
        ["config of the record", "agrees"],
        ["config.yaml", "agrees"],
        ["weights", "agrees"],
        ["code", "agrees"],
        ["evaluation", "agrees"],
    ]
    assert out[-1] == "5 agree, 0 differ, 0 not checked"
    assert files(run.folder) == before


def test_numbers_that_the_kept_model_does_not_have_differ(run, capfd):
    def better(record):
        record["metrics"]["bbox"]["AP"] += 0.1

    run.change(better)
    assert verify(run.folder / "record.json") == 1
    lines = [line for line in capfd.readouterr().out.splitlines() if "DIFFERS" in line]
    assert len(lines) == 1 and lines[0].startswith("  evaluation: DIFFERS: bbox/AP ")


def test_another_model_differs(run, capfd):
    model = torch.load(run.folder / "model_final.pth", weights_only=True)
    model["model"]["roi_heads.box_predictor.cls_score.bias"] += torch.tensor([0.0, 0.0, 20.0])
    torch.save(model, run.folder / "model_final.pth")
    assert verify(run.folder) == 1
    assert "evaluation: DIFFERS: bbox/AP" in capfd.readouterr().out


def test_another_config_differs(run, capsys):
    def longer(record):
        record["config"]["resolved"]["SOLVER"]["MAX_ITER"] = 3

    run.change(longer)
    assert verify(run.folder, evaluate=False) == 1
    out = capsys.readouterr().out
    assert "config of the record: DIFFERS: not the config that has its sha256 and matched_" in out
    assert "config.yaml: DIFFERS: in SOLVER.MAX_ITER\n" in out


def test_weights_and_code_are_compared(tmp_path, capsys):
    weights = tmp_path / "moco.pth"
    weights.write_bytes(b"weights")
    record = content()
    record["environment"]["moco_d2"] = "0.0.1"
    record["weights"]["sha256"] = hashlib.sha256(b"weights").hexdigest()
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))
    assert verify(file, weights=weights, evaluate=False) == 1
    out = capsys.readouterr().out
    assert "weights: agrees" in out and "config.yaml: not checked" in out
    assert f"code: DIFFERS: moco_d2 0.0.1 there and {__version__} here" in out
    weights.write_bytes(b"others")
    verify(file, weights=weights, evaluate=False)
    assert "weights: DIFFERS" in capsys.readouterr().out
    verify(file, evaluate=False)
    assert "weights: not checked: moco.pth is not here" in capsys.readouterr().out


def test_a_run_without_its_model_is_not_called_verified(run):
    (run.folder / "model_final.pth").unlink()
    with pytest.raises(UserError, match=r"model_final\.pth does not exist.*--no-evaluation"):
        verify(run.folder)


def test_the_exit_codes_of_the_command(run, tmp_path):
    tool = TOOLS / "benchmark.py"
    assert run_tool(tool, "verify", run.folder, "--no-evaluation").returncode == 0
    shutil.copy(run.folder / "record.json", tmp_path / "kept.json")
    run.change(lambda record: record["config"].update(sha256="0" * 64))
    whole = shutil.copytree(run.folder, tmp_path / "whole")
    shutil.copy(tmp_path / "kept.json", whole / "record.json")
    assert run_tool(tool, "verify", run.folder, whole, "--no-evaluation").returncode == 1
    result = run_tool(tool, "verify", tmp_path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", [5, ["a"], "a" * 5000, "/proc/self/mem"])
def test_weights_that_are_no_path_are_not_here(tmp_path, capsys, path):
    record = content()
    record["config"]["resolved"]["MODEL"]["WEIGHTS"] = path
    (tmp_path / "record.json").write_text(json.dumps(record))
    verify(tmp_path, evaluate=False)
    assert "weights: not checked: moco.pth is not here" in capsys.readouterr().out
