"""A fine-tuning run that is stopped, or killed, and resumed ends as one that is not: weights,
optimizer, generators, metrics and record, bit for bit.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from support.commands import run_processes
from support.paths import SUPPORT
from support.same_state import OF_CLOCK, differences
from support.toy_data import make_voc

from moco_d2.errors import UserError
from moco_d2.transfer.checkpointing import drop_optimizer_state
from moco_d2.transfer.main import train
from moco_d2.transfer.trainer import Trainer

# Checkpoints after iterations 1, 3, 5 (and 6, the last); evaluations after 2, 5 and 6.
LENGTH = {
    "SOLVER.MAX_ITER": 7,
    "SOLVER.STEPS": "(3,5)",
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.EVAL_PERIOD": 3,
}
TWO_STEPS = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()")
# A checkpoint of 5 MB.
SLIM = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
}
# A ViT of two blocks with everything that the task has, on images of 64 pixels.
SMALL_VIT = {
    "MOCO.VIT.EMBED_DIM": 32,
    "MOCO.VIT.DEPTH": 2,
    "MOCO.VIT.HEADS": 2,
    "MOCO.VIT.GLOBAL_BLOCKS": 1,
    "MOCO.VIT.WINDOW_SIZE": 3,
    "MOCO.VIT.IMAGE_SIZE": 64,
    "MOCO.VIT.DROP_PATH": 0.5,
    "MOCO.VIT.LAYER_DECAY": 0.7,
    "INPUT.CROP.SIZE": "[64,64]",
    "INPUT.MAX_SIZE_TEST": 64,
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "SOLVER.STEPS": "()",
    "TEST.EVAL_PERIOD": 0,  # hotcoco's threads do not survive a fork
}


def runner(root, config, tiny, settings):
    """The tool's main function with these settings, into folders of `root`."""

    def run(out, *overrides, resume=False):
        folder = root / out
        args = argparse.Namespace(config_file=config, resume=resume, eval_only=False, force=False)
        words = (str(word) for pair in settings.items() for word in pair)
        args.opts = [*tiny, *words, "OUTPUT_DIR", str(folder), *overrides]
        train(args)
        return folder

    run.root = root
    return run


@pytest.fixture(scope="module")
def finetune_run(tmp_path_factory, tiny, voc):
    root = tmp_path_factory.mktemp("resume")
    return runner(root, "voc_C4_random.yaml", tiny, voc | LENGTH | SLIM)


@pytest.fixture(scope="module")
def uninterrupted(finetune_run):
    return finetune_run("uninterrupted")


@pytest.fixture(scope="module")
def two_steps(finetune_run):
    return finetune_run("two steps", *TWO_STEPS)


def everything(folder):
    """All that a finished run leaves."""
    state = torch.load(folder / "model_final.pth", weights_only=True)
    metrics = state["trainer"]["moco_d2"]["metrics"]
    metrics["smoothed scalars"] = sorted(set(metrics["smoothed"]) - set(OF_CLOCK))
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    record = json.loads((folder / "record.json").read_text())
    kept = {name: record[name] for name in ("metrics", "history", "coverage", "schedule")}
    return {"state": state, "lines": lines, "record": kept}


def assert_same(a, b):
    assert differences(a, b, but=OF_CLOCK) == []


def interrupt(finetune_run, out, number, iteration, *overrides):
    """Send this process, or a forked one, a signal in the middle of a step."""
    original = Trainer.run_step

    def run_step(self):
        if self.iter == iteration:
            os.kill(os.getpid(), number)
        original(self)

    def child():
        Trainer.run_step = run_step
        try:
            finetune_run(out, *overrides)
        except KeyboardInterrupt:
            os._exit(3)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == (3 if number == signal.SIGTERM else -number)
    return finetune_run.root / out


@pytest.fixture(scope="module")
def killed(finetune_run):
    """A run that was killed in the iteration after that of its last checkpoint."""
    return interrupt(finetune_run, "killed first", signal.SIGKILL, 5)


def test_the_run_has_what_is_compared(uninterrupted):
    found = everything(uninterrupted)
    assert [entry["iteration"] for entry in found["record"]["history"]] == [2, 5, 7]
    assert found["state"]["iteration"] == 6
    assert found["state"]["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 7
    assert len(found["state"]["processes"]) == 1
    buffers = found["state"]["trainer"]["_trainer"]["optimizer"]["state"]
    assert all(of_tensor["momentum_buffer"].abs().sum() > 0 for of_tensor in buffers.values())


def test_evaluations_on_the_way_do_not_change_what_is_trained(finetune_run, uninterrupted):
    """Weights, statistics, optimizer and generators, to the last bit."""
    without = everything(finetune_run("not evaluated", "TEST.EVAL_PERIOD", "0"))
    assert [entry["iteration"] for entry in without["record"]["history"]] == [7]
    found = everything(uninterrupted)
    for part in ("model", "processes", "iteration"):
        assert_same(without["state"][part], found["state"][part])
    optimizer = (of["state"]["trainer"]["_trainer"]["optimizer"] for of in (without, found))
    assert_same(*optimizer)


def test_stopped_by_sigterm(finetune_run, uninterrupted):
    folder = interrupt(finetune_run, "sigterm", signal.SIGTERM, 4)
    assert (folder / "last_checkpoint").read_text() == "model_0000004.pth"
    finetune_run("sigterm", resume=True)
    assert_same(everything(folder), everything(uninterrupted))


def test_killed(finetune_run, uninterrupted, killed):
    folder = shutil.copytree(killed, finetune_run.root / "killed")
    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"
    finetune_run("killed", resume=True)
    assert_same(everything(folder), everything(uninterrupted))


def test_a_step_that_failed_leaves_no_line(finetune_run, uninterrupted, killed):
    """Detectron2 writes what a failed step has measured until then, without a loss."""
    folder = shutil.copytree(killed, finetune_run.root / "failed")
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 4, "eta_seconds": 0.1, "rpn/num_pos_anchors": 1.0}\n')
    finetune_run("failed", resume=True)
    assert_same(everything(folder), everything(uninterrupted))


def test_killed_twice_with_a_damaged_last_checkpoint(finetune_run, uninterrupted, caplog):
    folder = interrupt(finetune_run, "damaged", signal.SIGKILL, 6)
    last = folder / (folder / "last_checkpoint").read_text()
    assert last.name == "model_0000005.pth"
    last.write_bytes(last.read_bytes()[:-1000])
    finetune_run("damaged", resume=True)
    assert "model_0000005.pth is damaged or incomplete" in caplog.text
    assert "continuing from the newest intact one, " in caplog.text
    assert_same(everything(folder), everything(uninterrupted))


def test_killed_between_a_checkpoint_and_its_name(finetune_run, uninterrupted):
    """It is continued from that checkpoint: from the one before, metrics.json would be cut back,
    and if that one is damaged after another kill, lines would be missing.
    """
    folder = finetune_run.root / "unnamed"
    shutil.copytree(uninterrupted, folder)
    final, pointer = folder / "model_final.pth", folder / "last_checkpoint"
    lines = (folder / "metrics.json").read_text().splitlines(keepends=True)
    (folder / "metrics.json").write_text("".join(lines[:-1]))  # the last evaluation's
    (folder / "record.json").unlink()
    before = "model_0000005.pth"
    pointer.write_text(before)
    os.utime(pointer, ns=(final.stat().st_mtime_ns - 10**6,) * 2)

    def child():
        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        Trainer.run_step = Trainer._evaluate = die
        finetune_run("unnamed", resume=True)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    (folder / before).write_bytes(b"")
    finetune_run("unnamed", resume=True)
    assert_same(everything(folder), everything(uninterrupted))
    assert pointer.read_text() == final.name


def test_a_vit_is_killed_and_resumed(tmp_path_factory, tiny, coco):
    """With large-scale jitter, AdamW, layer decay, drop path, activation checkpointing and bf16."""
    root = tmp_path_factory.mktemp("vit")
    config = "coco_vitdet_Ti_25ep_random.yaml"
    vit_run = runner(root, config, tiny, coco | LENGTH | SMALL_VIT)
    whole = vit_run("whole", "MOCO.VIT.CHECKPOINT_BLOCKS", "True")
    folder = interrupt(vit_run, "killed", signal.SIGKILL, 5)
    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"
    vit_run("killed", resume=True)
    found, expected = everything(folder), everything(whole)
    for of in (found, expected):  # checkpointing computes the same
        of["state"]["record"]["config"]["MOCO"]["VIT"].pop("CHECKPOINT_BLOCKS")
    assert_same(found, expected)
    record = json.loads((folder / "record.json").read_text())
    assert record["run"]["task"] == "coco_vitdet_Ti_25ep"
    assert record["schedule"]["norm"] == "LN"
    assert record["coverage"] == {"expected": 2 * 12 + 3, "loaded": 0}
    assert {"bbox", "segm"} <= record["metrics"].keys()
    (rate,) = (line["lr"] for line in found["lines"] if "lr" in line)
    assert rate < 0.1 * 0.0002  # in the last step of a cosine
    optimizer = found["state"]["trainer"]["_trainer"]["optimizer"]
    assert all(state["exp_avg_sq"].sum() > 0 for state in optimizer["state"].values())
    groups = {group["initial_lr"] for group in optimizer["param_groups"]}
    assert len(groups) == 4  # patches and positions, two blocks, the rest


def test_with_workers_and_accumulation(finetune_run):
    """Images come from two processes, whose own generators are gone with them."""
    more = ("DATALOADER.NUM_WORKERS", "2", "SOLVER.IMS_PER_BATCH", "4", "MOCO.ACCUMULATION", "2")
    whole = finetune_run("workers whole", *more)
    folder = interrupt(finetune_run, "workers", signal.SIGKILL, 5, *more)
    finetune_run("workers", *more, resume=True)
    assert_same(everything(folder), everything(whole))


def test_a_run_is_not_begun_over_another(finetune_run, uninterrupted):
    with pytest.raises(UserError, match="holds a run: continue it with --resume, or choose"):
        finetune_run("uninterrupted")


def test_another_batch_is_refused(finetune_run, uninterrupted):
    with pytest.raises(UserError, match=r"trained with 2 images a step.* and this run has 4"):
        finetune_run("uninterrupted", "SOLVER.IMS_PER_BATCH", "4", resume=True)


def test_a_lower_learning_rate_counts_after_a_resume(finetune_run, uninterrupted, two_steps):
    """As Detectron2 restores its schedule, the old one would."""
    folder = shutil.copytree(two_steps, finetune_run.root / "rate")
    finetune_run("rate", "SOLVER.BASE_LR", "0.00002", resume=True)
    log = (folder / "log.txt").read_text()
    assert "resuming after 2 iterations with SOLVER.BASE_LR 2e-05, which was 0.0002" in log
    rates = [
        {line["iteration"]: line["lr"] for line in everything(of)["lines"] if "lr" in line}
        for of in (folder, uninterrupted)
    ]
    for iteration in (2, 5, 6):
        assert rates[0][iteration] == pytest.approx(0.1 * rates[1][iteration])


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [("MOMENTUM", "momentum", 0.5), ("WEIGHT_DECAY", "weight_decay", 0.01)],
)
def test_a_changed_setting_of_the_optimizer_counts_after_a_resume(
    finetune_run, uninterrupted, monkeypatch, key, name, value
):
    """As torch restores its optimizer, the old one would, and the record would name the new one."""
    used = set()
    run_step = Trainer.run_step

    def watched(self):
        used.update(group[name] for group in self.optimizer.param_groups)
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", watched)
    folder = finetune_run.root / key
    shutil.copytree(uninterrupted, folder)
    longer = ("SOLVER.MAX_ITER", "8", f"SOLVER.{key}", str(value))
    finetune_run(key, *longer, resume=True)
    assert value in used and used <= {value, 0.0}  # norms have no weight decay
    changes = json.loads((folder / "record.json").read_text())["changes"]
    assert f"SOLVER.{key}" in {change["key"] for change in changes}


def test_a_divergence_leaves_the_last_good_state(finetune_run, two_steps):
    folder = shutil.copytree(two_steps, finetune_run.root / "diverged")
    steep = ("SOLVER.BASE_LR", "1e30", "SOLVER.CHECKPOINT_PERIOD", "1")
    with pytest.raises(
        UserError, match=r"no longer finite at iteration \d.* last good state is .*pth"
    ):
        finetune_run("diverged", *steep, resume=True)
    last = folder / (folder / "last_checkpoint").read_text()
    state = torch.load(last, weights_only=True)["model"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_finished_run_is_evaluated_again(finetune_run, uninterrupted):
    before = everything(uninterrupted)
    (uninterrupted / "record.json").unlink()
    finetune_run("uninterrupted", resume=True)
    assert_same(everything(uninterrupted)["record"], before["record"])


def test_a_finished_run_is_lengthened_and_its_record_says_so(finetune_run, uninterrupted):
    """The iterations before are not trained again, and the result is not that of a run of the whole
    length, which would have lowered its rate later.
    """
    folder = finetune_run.root / "longer"
    shutil.copytree(uninterrupted, folder)
    finetune_run("longer", "SOLVER.MAX_ITER", "9", "SOLVER.STEPS", "(3,8)", resume=True)
    record = json.loads((folder / "record.json").read_text())
    assert record["schedule"]["max_iter"] == 9
    assert [evaluation["iteration"] for evaluation in record["history"]] == [2, 5, 7, 9]
    before = json.loads((uninterrupted / "record.json").read_text())
    assert record["history"][:3] == before["history"]
    assert record["changes"] == [
        {"iteration": 7, "key": "SOLVER.MAX_ITER", "before": "7", "after": "9"},
        {"iteration": 7, "key": "SOLVER.STEPS", "before": "[3, 5]", "after": "[3, 8]"},
    ]


def test_a_finished_run_that_kept_its_weights_only_is_evaluated_but_not_lengthened(
    finetune_run, uninterrupted
):
    folder = finetune_run.root / "weights_only"
    shutil.copytree(uninterrupted, folder)
    drop_optimizer_state(folder / "model_final.pth")
    size = (folder / "model_final.pth").stat().st_size
    assert size < 0.6 * (uninterrupted / "model_final.pth").stat().st_size
    before = json.loads((folder / "record.json").read_text())
    (folder / "record.json").unlink()
    finetune_run("weights_only", resume=True)
    assert json.loads((folder / "record.json").read_text())["metrics"] == before["metrics"]
    with pytest.raises(UserError, match="kept only its weights.*keep: all"):
        finetune_run("weights_only", "SOLVER.MAX_ITER", "9", resume=True)


def test_a_finished_random_run_does_not_become_another(finetune_run, uninterrupted):
    before = everything(uninterrupted)
    with pytest.raises(UserError, match=r"SEED is 5, but the run in .* began with 1, and --resume"):
        finetune_run("uninterrupted", "SEED", "5", resume=True)
    assert_same(everything(uninterrupted), before)


@pytest.mark.parametrize("lost", ["last_checkpoint", "checkpoints"])
def test_a_run_is_not_begun_over_one_that_lost_a_part(finetune_run, uninterrupted, lost):
    folder = finetune_run.root / f"lost {lost}"
    shutil.copytree(uninterrupted, folder)
    for file in [folder / "last_checkpoint", *(folder.glob("*.pth") if "points" in lost else ())]:
        file.unlink()
    with pytest.raises(UserError, match="holds a run: continue it with --resume, or choose"):
        finetune_run(folder.name)


def test_a_run_that_was_longer_is_not_called_damaged(finetune_run, uninterrupted):
    with pytest.raises(UserError, match=r"has 7 iterations, and SOLVER.MAX_ITER is 6 for this run"):
        finetune_run("uninterrupted", "SOLVER.MAX_ITER", "6", resume=True)


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_data_that_changed_before_a_resume_is_in_the_log_and_in_the_record(
    finetune_run, uninterrupted, tmp_path, split
):
    """At the same path; and the same data at another path is no change."""
    moved = make_voc(tmp_path / "VOC2007")
    data = ("DATASETS.TRAIN", f"('voc:{moved}:trainval',)")
    data += ("DATASETS.TEST", f"('voc:{moved}:test',)")
    folder = finetune_run.root / f"data of {split}"
    shutil.copytree(uninterrupted, folder)
    finetune_run(folder.name, *data, resume=True)
    assert json.loads((folder / "record.json").read_text())["changes"] == []
    file = moved / "Annotations" / f"{split}000.xml"
    file.write_text(file.read_text().replace("<name>dark<", "<name>light<"))
    longer = ("SOLVER.MAX_ITER", "8")
    finetune_run(folder.name, *data, *longer, resume=True)
    changes = json.loads((folder / "record.json").read_text())["changes"]
    key = "the content of DATASETS." + ("TRAIN" if split == "trainval" else "TEST")
    named = [change["key"] for change in changes]
    assert named == [key.removeprefix("the content of "), "SOLVER.MAX_ITER", key]
    assert f"with {key} 6 images, " in (folder / "log.txt").read_text()


def test_two_processes_stop_together_and_resume(finetune_run, tiny, voc, tmp_path):
    """BatchNorm is each process's own, and so are the generators."""
    more = {"SOLVER.IMS_PER_BATCH": 4, "MODEL.RESNETS.NORM": "BN", "MODEL.DEVICE": "cpu"}
    settings = voc | LENGTH | SLIM | more
    words = [*tiny, *(str(word) for pair in settings.items() for word in pair)]
    (tmp_path / "overrides.json").write_text(json.dumps(words))
    script = SUPPORT / "transfer" / "resume_two_processes.py"
    run_processes(2, script, tmp_path, tmp_path / "overrides.json")
    assert (tmp_path / "stopped0").exists() and (tmp_path / "stopped1").exists()
    assert (tmp_path / "parts" / "model_0000003.pth").is_file()
    whole = everything(tmp_path / "whole")
    assert_same(everything(tmp_path / "parts"), whole)
    # The tensors that pretraining supplies are found in a wrapped model too: 53 convolutions of a
    # ResNet-50 with weight and 4 BatchNorm tensors each.
    assert whole["record"]["coverage"] == {"expected": 53 * 5, "loaded": 0}
    own = [state["buffers"] for state in whole["state"]["processes"]]
    assert len(own) == 2 and own[1]
