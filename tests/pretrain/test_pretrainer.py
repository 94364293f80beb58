"""Whole pretraining runs of a few steps, in this process."""

import functools
import json
import logging
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
import torch.nn.functional as F
from detectron2.engine import HookBase
from support.same_state import OF_CLOCK, differences
from support.scripted_trainer import StopAfter
from torch import nn

from moco_d2.engine.launch import seed
from moco_d2.errors import UserError
from moco_d2.pretrain.checkpointing import FINAL_CHECKPOINT
from moco_d2.pretrain.model import moco
from moco_d2.pretrain.pretrainer import Pretrainer

pytestmark = pytest.mark.usefixtures("small_network")


def pretrain_run(cfg, *, resume: bool = False, stop_after: int | None = None) -> Pretrainer:
    """What moco_d2.pretrain.main does, without its log files."""
    seed(cfg)
    trainer = Pretrainer(cfg)
    trainer.resume_or_start(resume=resume)
    if stop_after is None:
        trainer.train()
    else:
        trainer.register_hooks([StopAfter(stop_after)])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return trainer


def values(trainer: Pretrainer, name: str = "total_loss") -> dict[int, float]:
    """Every value of a metric, by iteration; metrics.json has medians of the last 20."""
    return {iteration: value for value, iteration in trainer.storage.history(name).values()}


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("period", [3, 2], ids=["epoch", "within-epoch"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    make_config, images, held_out, tmp_path, workers, period
):
    def config(name):
        return make_config(
            {
                "OUTPUT_DIR": tmp_path / name,
                "DATALOADER.NUM_WORKERS": workers,
                "SOLVER.CHECKPOINT_PERIOD": period,
                # Looking at the features must change nothing either.
                "MOCO.KNN.TRAIN": images,
                "MOCO.KNN.TEST": held_out,
                "MOCO.KNN.PERIOD": period,
            }
        )

    straight = pretrain_run(config("straight"))
    pretrain_run(config("resumed"), stop_after=3)
    resumed = pretrain_run(config("resumed"), resume=True)

    assert resumed.start_iter == period
    assert sorted(values(straight)) == list(range(6))
    for name in ("total_loss", "lr", "pretext_accuracy"):
        assert values(resumed, name) == values(straight, name)
    left = [
        (torch.load(folder / FINAL_CHECKPOINT, weights_only=True), metrics(folder))
        for folder in (tmp_path / "straight", tmp_path / "resumed")
    ]
    assert differences(*left, but=OF_CLOCK) == []


def test_a_training_shortened_to_what_it_has_trained_gets_its_final_checkpoint(
    make_config, tmp_path
):
    longer = {"OUTPUT_DIR": tmp_path / "out", "MOCO.EPOCHS": 2}
    pretrain_run(make_config(longer), stop_after=3)
    assert not (tmp_path / "out" / FINAL_CHECKPOINT).exists()
    shorter = longer | {"MOCO.EPOCHS": 1}
    pretrain_run(make_config(shorter), resume=True)
    final = torch.load(tmp_path / "out" / FINAL_CHECKPOINT, weights_only=True)
    assert (final["epoch"], final["moco_d2"]["iteration"]) == (1, 3)
    assert [change["key"] for change in final["moco_d2"]["changes"]] == ["MOCO.EPOCHS"]


def test_other_settings_for_a_training_that_is_over_are_refused(make_config, tmp_path):
    done = {"OUTPUT_DIR": tmp_path / "out", "MOCO.EPOCHS": 2}
    pretrain_run(make_config(done))
    before = (tmp_path / "out" / FINAL_CHECKPOINT).read_bytes()
    with pytest.raises(
        UserError, match=r"nothing is left to train, so MOCO.TEMPERATURE 0.5, which"
    ):
        pretrain_run(make_config(done | {"MOCO.TEMPERATURE": 0.5}), resume=True)
    with pytest.raises(UserError, match=r"has 6 iterations, and this training has 3: raise MOCO.E"):
        pretrain_run(make_config(done | {"MOCO.EPOCHS": 1}), resume=True)
    pretrain_run(make_config(done), resume=True)
    assert (tmp_path / "out" / FINAL_CHECKPOINT).read_bytes() == before


class SignalDuring(HookBase):
    """A signal in the middle of an iteration."""

    def __init__(self, number: int, iteration: int):
        self.number = number
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_leaves_a_state_to_resume(make_config, tmp_path, number):
    straight = pretrain_run(make_config({"OUTPUT_DIR": tmp_path / "straight"}))
    stopped = make_config({"OUTPUT_DIR": tmp_path / "stopped"})
    seed(stopped)
    trainer = Pretrainer(stopped)
    trainer.resume_or_start(resume=False)
    trainer.register_hooks([SignalDuring(number, iteration=3)])
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(number) is handler
    resumed = pretrain_run(stopped, resume=True)
    assert resumed.start_iter == 4
    assert values(resumed) == values(straight)


@pytest.mark.parametrize("stop_after", [None, 3], ids=["finished", "interrupted"])
def test_no_worker_outlives_the_run(make_config, stop_after):
    before = set(multiprocessing.active_children())  # of tests in other files
    trainer = pretrain_run(make_config({"DATALOADER.NUM_WORKERS": 2}), stop_after=stop_after)
    assert trainer.iter > 1
    assert set(multiprocessing.active_children()) <= before


def test_the_learning_rate_is_set_once_an_epoch(make_config):
    trainer = pretrain_run(make_config({"SOLVER.BASE_LR": 0.04}))
    assert values(trainer, "lr") == pytest.approx(
        {0: 0.04, 1: 0.04, 2: 0.04, 3: 0.02, 4: 0.02, 5: 0.02}  # half a cosine over two epochs
    )


def test_another_seed_is_another_run(make_config, tmp_path):
    config = {"MOCO.EPOCHS": 0, "SOLVER.MAX_ITER": 2}
    first, again, other = (
        pretrain_run(make_config({**config, "SEED": seed, "OUTPUT_DIR": tmp_path / name}))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert values(first) == values(again)
    assert set(values(first).values()).isdisjoint(values(other).values())


def test_checkpoints_and_metrics_of_a_run(make_config, images, held_out, tmp_path):
    pretrain_run(make_config({"MOCO.KNN.TRAIN": images, "MOCO.KNN.TEST": held_out}))
    out = tmp_path / "out"
    assert (out / "last_checkpoint").read_text() == FINAL_CHECKPOINT
    for name, epoch in (("checkpoint_0000003.pth.tar", 1), (FINAL_CHECKPOINT, 2)):
        content = torch.load(out / name, weights_only=True)
        assert (content["epoch"], content["moco_d2"]["iteration"]) == (epoch, 3 * epoch)
    # 48 keys of 6 steps through a queue of 20
    assert content["state_dict"]["module.queue_ptr"].tolist() == [48 % 20]
    random, losses, trained = metrics(out)
    assert random["iteration"] == 0 and 0 <= random["knn_accuracy"] <= 1
    assert losses["iteration"] == 5 and losses["total_loss"] == losses["loss_contrastive"] > 0
    assert trained.keys() == {"iteration", "knn_accuracy"} and trained["iteration"] == 6


def test_resuming_a_finished_run_trains_no_further(make_config, tmp_path):
    pretrain_run(make_config())
    before = (tmp_path / "out" / FINAL_CHECKPOINT).read_bytes()
    trainer = pretrain_run(make_config(), resume=True)
    assert trainer.start_iter == trainer.max_iter == 6
    assert (tmp_path / "out" / FINAL_CHECKPOINT).read_bytes() == before


def test_supervised_pretraining_learns_and_resumes(make_config, tmp_path):
    overrides = {"MOCO.PRETEXT": "supervised", "MOCO.EPOCHS": 40, "SOLVER.BASE_LR": 0.1}
    trainer = pretrain_run(make_config(overrides))
    accuracy = values(trainer, "pretext_accuracy")
    assert sum(accuracy[i] for i in range(111, 120)) / 9 > 0.8  # dark against light
    content = torch.load(tmp_path / "out" / FINAL_CHECKPOINT, weights_only=True)
    assert content["state_dict"]["module.fc.weight"].shape == (2, 10)
    assert content["moco_d2"]["pretext"] == "supervised"
    assert pretrain_run(make_config(overrides), resume=True).start_iter == 120


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_follows_full_precision_and_resumes(make_config, tmp_path, dtype):
    full = values(pretrain_run(make_config({"OUTPUT_DIR": tmp_path / "full"})))
    mixed = {"SOLVER.AMP.ENABLED": True, "MOCO.AMP_DTYPE": dtype}
    straight = pretrain_run(make_config({**mixed, "OUTPUT_DIR": tmp_path / "straight"}))
    # Also the later steps: gradients arrive, which float16 without scaling would lose in part.
    assert values(straight) == pytest.approx(full, rel=0.05)
    assert values(straight) != full
    pretrain_run(make_config(mixed), stop_after=3)
    resumed = pretrain_run(make_config(mixed), resume=True)
    assert values(resumed) == values(straight)


def test_float16_gradients_are_scaled_and_the_scale_survives_a_resume(make_config, tmp_path):
    mixed = {"SOLVER.AMP.ENABLED": True, "MOCO.AMP_DTYPE": "float16"}
    trainer = pretrain_run(make_config(mixed), stop_after=3)
    steps = trainer.scaler.state_dict()["_growth_tracker"]
    assert trainer.scaler.get_scale() > 1
    again = Pretrainer(make_config(mixed))
    again.resume_or_start(resume=True)
    assert again.scaler.state_dict()["_growth_tracker"] == steps == 3
    assert not Pretrainer(make_config()).scaler.is_enabled()


def test_channels_last_changes_the_layout_and_not_the_numbers(make_config, tmp_path):
    short = {"MOCO.EPOCHS": 0, "SOLVER.MAX_ITER": 3}
    last, first = (
        pretrain_run(
            make_config({**short, "MOCO.CHANNELS_LAST": on, "OUTPUT_DIR": tmp_path / str(on)})
        )
        for on in (True, False)
    )
    assert values(last) == pytest.approx(values(first), rel=1e-3)
    weight = last.model.encoder_q.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(make_config, tmp_path):
    overrides = {"SOLVER.BASE_LR": 1e30, "SOLVER.CHECKPOINT_PERIOD": 100}
    with pytest.raises(UserError, match=r"loss is nan .* lower SOLVER\.BASE_LR \(now 1e\+30\)"):
        pretrain_run(make_config(overrides))
    assert not list((tmp_path / "out").glob("*.pth.tar"))


def test_a_damaged_image_is_one_sentence_that_names_it(make_config, images, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(images, folder)
    damaged = folder / "light" / "7.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(UserError) as caught:  # test_pretrain_command.py: of a worker
        pretrain_run(make_config({"DATASETS.TRAIN": (str(folder),)}))
    assert str(damaged) in str(caught.value) and "MAX_UNREADABLE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_few_damaged_images_are_skipped(make_config, images, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(images, folder)
    (folder / "light" / "7.png").write_bytes(b"no image")
    config = {"DATASETS.TRAIN": (str(folder),), "MOCO.DATA.MAX_UNREADABLE": 0.1}
    trainer = pretrain_run(make_config(config))
    assert trainer.iter == 6 and len(trainer.unreadable) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MOCO.PRETEXT": "rotation"}, r"MOCO\.PRETEXT must be .* got 'rotation'"),
        ({"MOCO.BN_SPLITS": 3}, r"MOCO\.BN_SPLITS 3 does not divide the 8 images"),
        (
            {"MOCO.PRETEXT": "mocov3", "SOLVER.IMS_PER_BATCH": 1, "MOCO.BN_SPLITS": 1}
            | {"MOCO.AUGMENTATION.SIZE": 64},
            r"the heads of mocov3 normalize over the batch",
        ),
        ({"MOCO.BN_SPLITS": 8}, r"one image in a group and one value per channel.*views of 32"),
        ({"MOCO.BN_SPLITS": -1}, r"MOCO\.BN_SPLITS must be .* got -1"),
        ({"MOCO.BN_SPLITS": 4, "MOCO.ACCUMULATION": 4}, r"MOCO\.BN_SPLITS 4 .* the 2 images"),
        ({"MOCO.ACCUMULATION": 3}, r"MOCO\.ACCUMULATION 3 does not divide the 8 images"),
        ({"MOCO.CHECKPOINT.REINITIALISE": "('tail',)"}, r"REINITIALISE must be .* got 'tail'"),
        ({"MOCO.CHECKPOINT.KEEP_LAST": -1}, r"MOCO\.CHECKPOINT\.KEEP_LAST"),
        ({"MOCO.AUGMENTATION.NAME": "v9"}, r"MOCO\.AUGMENTATION\.NAME must be .* got 'v9'"),
        ({"MOCO.LR_SCHEDULE": "flat"}, r"MOCO\.LR_SCHEDULE must be .* got 'flat'"),
        ({"MOCO.DICTIONARY.NAME": "Bag"}, r"MOCO\.DICTIONARY\.NAME must be .* got 'Bag'"),
        ({"MOCO.KNN.TRAIN": "nowhere"}, r"MOCO\.KNN\.TRAIN and MOCO\.KNN\.TEST"),
        (
            {"SOLVER.AMP.ENABLED": True, "MOCO.AMP_DTYPE": "float8"},
            r"MOCO\.AMP_DTYPE must be bfloat16 or float16, got 'float8'",
        ),
        ({"SOLVER.IMS_PER_BATCH": 0}, r"SOLVER\.IMS_PER_BATCH must be .* got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    make_config, tmp_path, overrides, message
):
    with pytest.raises(UserError, match=message):
        Pretrainer(make_config(overrides))
    assert not (tmp_path / "out").exists()


def test_images_that_are_tested_are_not_trained_on(make_config, images, held_out, tmp_path):
    train = shutil.copytree(images, tmp_path / "train")
    (train / "dark" / "link.png").symlink_to(held_out / "dark" / "0.png")
    knn = {"MOCO.KNN.TRAIN": images, "MOCO.KNN.TEST": held_out, "DATASETS.TRAIN": (str(train),)}
    with pytest.raises(
        UserError, match=r"^1 of the 8 images .* also in DATASETS\.TRAIN .*/train, "
    ):
        Pretrainer(make_config(knn))
    assert not (tmp_path / "out").exists()
    (train / "dark" / "link.png").unlink()
    Pretrainer(make_config(knn))


def test_a_leak_and_a_dictionary_larger_than_the_data_are_warned_of(make_config, caplog):
    # Detectron2's setup_logger, run by whichever test, cuts loggers off from the one pytest reads.
    Pretrainer(make_config({"MOCO.BN_SPLITS": 1, "MOCO.DICTIONARY.SIZE": 25}))
    assert "set MOCO.BN_SPLITS 8" in caplog.text
    assert "set MOCO.DICTIONARY.SIZE below 24" in caplog.text
    caplog.clear()
    Pretrainer(make_config({"MOCO.BN_SPLITS": 2, "MOCO.DICTIONARY.SIZE": 24}))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


class WithoutBatchNorm(nn.Module):
    """Each image by itself, so that only sums over a batch can depend on how it is cut."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.conv(x)).mean(dim=(2, 3)))


def test_accumulated_gradients_are_those_of_one_batch(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(moco, "build_encoder", lambda arch, *, dim, **_: WithoutBatchNorm(dim))
    # Rounding grows with the steps.
    short = {"MOCO.EPOCHS": 0, "SOLVER.MAX_ITER": 2, "MOCO.BN_SPLITS": 1}
    runs = [
        pretrain_run(
            make_config({**short, "MOCO.ACCUMULATION": n, "OUTPUT_DIR": tmp_path / str(n)})
        )
        for n in (1, 4)
    ]
    assert values(runs[1]) == pytest.approx(values(runs[0]), rel=1e-6)
    whole, parts = (trainer.model.state_dict() for trainer in runs)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_a_run_is_not_begun_where_there_is_one(make_config):
    pretrain_run(make_config(), stop_after=3)
    with pytest.raises(UserError, match="holds a run: continue it with --resume"):
        pretrain_run(make_config())


def test_compiled_encoders_give_the_same_loss_and_names(make_config, tmp_path, monkeypatch):
    """All of torch.compile but the code of its kernels, which takes a C++ compiler a minute."""
    compiled_by = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compiled_by)
    short = {"MOCO.EPOCHS": 0, "SOLVER.MAX_ITER": 2}
    eager, compiled = (
        pretrain_run(make_config({**short, "MOCO.COMPILE": on, "OUTPUT_DIR": tmp_path / str(on)}))
        for on in (False, True)
    )
    assert values(compiled) == pytest.approx(values(eager), rel=1e-4)
    assert compiled.model.state_dict().keys() == eager.model.state_dict().keys()
