"""What a finished run of a suite keeps on disk."""

import json

import pytest
import torch
from support.fake_suite import cell, run_cells

from moco_d2.benchmark.runs import retention
from moco_d2.benchmark.runs.cell_lock import lock_of
from moco_d2.benchmark.runs.suites import KEEP, load_suite
from moco_d2.errors import UserError


@pytest.fixture
def finished(tmp_path):
    """A cell that is done, with checkpoints of both trainings."""
    done = cell("a", "count=1")
    assert run_cells(tmp_path, done) == 0
    home = tmp_path / "a"
    note = json.loads((home / "cell.json").read_text())
    note.pop("kept", None)
    (home / "cell.json").write_text(json.dumps(note))
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(50)}}, "param_groups": [{"lr": 0.1}]}
    fine_tuning = {
        "model": {"w": torch.ones(50)},
        "trainer": {"iteration": 9, "_trainer": {"iteration": 9, "optimizer": optimizer}},
    }
    (home / "pretrain").mkdir()
    pretraining = {"state_dict": {"module.w": torch.ones(50)}, "optimizer": optimizer}
    for name, content in {
        "model_final.pth": fine_tuning,
        "model_0000009.pth": fine_tuning,
        "pretrain/checkpoint_final.pth.tar": pretraining,
        "pretrain/checkpoint_0000010.pth.tar": pretraining,
    }.items():
        torch.save(content, home / name)
    for name in ("metrics.json", "weights.pth", "last_checkpoint", "per_image.npz"):
        (home / name).write_text("x")
    return done, tmp_path, home


def names(home):
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


def test_weights_stay_without_the_state_of_the_optimizer(finished):
    done, folder, home = finished
    before, whole = names(home), (home / "pretrain/checkpoint_final.pth.tar").read_bytes()
    retention.tidy(done, folder, "weights")
    assert before - names(home) == {"model_0000009.pth", "pretrain/checkpoint_0000010.pth.tar"}
    kept = torch.load(home / "model_final.pth", weights_only=True)
    assert torch.equal(kept["model"]["w"], torch.ones(50))
    inner = kept["trainer"]["_trainer"]
    assert inner["optimizer"] == {"state": {}, "param_groups": [{"lr": 0.1}]}
    assert (home / "pretrain/checkpoint_final.pth.tar").read_bytes() == whole


def test_results_lose_all_checkpoints_and_nothing_else(finished):
    done, folder, home = finished
    before = names(home)
    retention.tidy(done, folder, "results")
    assert before - names(home) == {
        *("model_0000009.pth", "pretrain/checkpoint_0000010.pth.tar", "last_checkpoint"),
        *("model_final.pth", "pretrain/checkpoint_final.pth.tar"),
    }


def test_all_loses_nothing(finished):
    done, folder, home = finished
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    retention.tidy(done, folder, "all")
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("why", ["running", "by hand"])
def test_a_run_that_is_not_the_suites_own_or_runs_keeps_its_files(finished, why):
    done, folder, home = finished
    if why == "by hand":
        (home / "cell.json").unlink()
        retention.tidy(done, folder, "weights")
    else:
        with lock_of(done, folder):
            retention.tidy(done, folder, "weights")
    assert (home / "model_0000009.pth").is_file()


def test_a_file_that_cannot_be_read_is_a_warning(finished, caplog):
    done, folder, home = finished
    (home / "model_final.pth").write_bytes(b"no checkpoint")
    retention.tidy(done, folder, "weights")
    assert "a keeps all its files" in caplog.text


def test_the_runner_tidies_and_so_does_the_next_one(finished):
    """The first may have been killed before it could."""
    done, folder, home = finished
    assert run_cells(folder, done) == 0
    assert not (home / "model_0000009.pth").exists()
    assert json.loads((home / "cell.json").read_text())["kept"] == "weights"
    assert run_cells(folder, done) == 0


@pytest.mark.parametrize("keep", [*KEEP, None])
def test_a_suite_chooses(tmp_path, keep):
    file = tmp_path / "mine.yaml"
    file.write_text("tasks: [voc_C4]\ninitializations: [random]\n" + f"keep: {keep}\n" * bool(keep))
    assert load_suite(file).keep == (keep or "weights")


def test_another_choice_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("tasks: [voc_C4]\ninitializations: [random]\nkeep: weight\n")
    with pytest.raises(UserError, match="did you mean weights|weights"):
        load_suite(file)
