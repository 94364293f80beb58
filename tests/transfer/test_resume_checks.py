"""A fine-tuning checkpoint that holds what it must not is refused in one sentence, before a file is
written.
"""

import argparse
from pathlib import Path

import pytest
import torch
from support.hostile_states import drop, not_refused, put

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.hardware_scaling import scale_to_hardware
from moco_d2.transfer.main import train
from moco_d2.transfer.record import RunRecorder
from moco_d2.transfer.trainer import Trainer
from moco_d2.transfer.weights import loading

NAN = float("nan")
NAME = "model_0000000.pth"


def trainer(*path, value):
    return put("trainer", *path, value=value)


def schedule(key, value):
    return trainer("hooks", "LRScheduler", key, value=value)


def optimizer(*path, value):
    return trainer("_trainer", "optimizer", *path, value=value)


def ours(*path, value):
    return trainer("moco_d2", *path, value=value)


def rng(*path, value):
    return put("processes", 0, "rng", *path, value=value)


def record(*path, value):
    return put("record", *path, value=value)


BIAS = "roi_heads.box_predictor.cls_score.bias"
HOSTILE = {
    "model is None": (put("model", value=None), "model is None, not of type dict"),
    "a tensor is text": (put("model", BIAS, value="x"), f"'{BIAS}' is 'x', not a tensor"),
    "a tensor is missing": (drop("model", BIAS), f"model has no '{BIAS}'"),
    "a tensor too many": (put("model", "x", value=torch.ones(1)), "model has 'x', which this"),
    "a name is a number": (put("model", 5, value=torch.ones(1)), "name of a tensor is 5"),
    "another shape": (put("model", BIAS, value=torch.ones(5)), r"has the shape \(5,\) instead"),
    "not finite": (lambda c: c["model"][BIAS].fill_(NAN), "values that are not finite"),
    "iteration beside is text": (put("iteration", value="x"), "iteration is 'x', not a whole"),
    "processes is a number": (put("processes", value=5), "processes is 5, not a list"),
    "a process is a number": (put("processes", value=[5]), "processes is 5, not a dict"),
    "no generators": (drop("processes", 0, "rng"), "no processes.rng"),
    "torch state": (rng("torch", value=torch.zeros(3).byte()), "not a tensor of 5056 bytes"),
    "python state": (rng("python", value=[3, (1, 2), None]), "is not 625 numbers"),
    "numpy position": (rng("numpy", 2, value=200_000_000), "NumPy's generator is 200000000"),
    "trainer is a list": (put("trainer", value=[]), "trainer is a list, not of type dict"),
    "no trainer": (drop("trainer"), "no trainer"),
    "no iteration": (drop("trainer", "iteration"), "no trainer.iteration"),
    "iteration is text": (trainer("iteration", value="x"), "trainer.iteration is 'x'"),
    "iteration is negative": (trainer("iteration", value=-7), "iteration is -7, not a whole"),
    "iteration is absurd": (trainer("iteration", value=2**60), "iteration is 1152921504606846976"),
    "no hooks": (drop("trainer", "hooks"), "no trainer.hooks"),
    "no schedule": (drop("trainer", "hooks", "LRScheduler"), "no trainer.hooks.LRScheduler"),
    "a hook without a state": (
        trainer("hooks", "EvalHook", value={}),
        r"is damaged \(AttributeError",
    ),
    "a hook that a terminal obeys": (trainer("hooks", "\x1b[31m", value={}), "name of a hook is"),
    "schedule with code's name": (schedule("get_lr", 5), "schedule has the unknown entry 'get_lr'"),
    "schedule elsewhere": (schedule("last_epoch", 5), "schedule is at 5 and its training at it"),
    "schedule is text": (schedule("last_epoch", "x"), "LRScheduler.last_epoch is 'x'"),
    "rates are text": (schedule("base_lrs", "x"), "LRScheduler.base_lrs is 'x'"),
    "no rates": (schedule("base_lrs", []), "schedule has 0 learning rates, not"),
    "inner is a list": (trainer("_trainer", value=[]), "trainer._trainer is a list"),
    "no optimizer": (drop("trainer", "_trainer", "optimizer"), "no trainer._trainer.optimizer"),
    "optimizer is a list": (trainer("_trainer", "optimizer", value=[]), "optimizer is a list"),
    "state is a list": (optimizer("state", value=[]), "optimizer.state is a list"),
    "momentum's shape": (
        optimizer("state", 0, "momentum_buffer", value=torch.ones(3)),
        r"momentum of parameter 0' has the shape \(3,\)",
    ),
    "no groups": (optimizer("param_groups", value=[]), "has 0 parameter groups"),
    "decay is text": (
        optimizer("param_groups", 0, "weight_decay", value="x"),
        "weight_decay is 'x', not a finite",
    ),
    "ascent": (optimizer("param_groups", 0, "maximize", value=True), "maximize is True and not"),
    "scaler is text": (trainer("_trainer", "grad_scaler", value="x"), "grad_scaler is 'x'"),
    "ours is a list": (trainer("moco_d2", value=[1]), "trainer.moco_d2 is a list"),
    "seed is text": (ours("data_seed", value="x"), "data_seed is 'x'"),
    "seed is negative": (ours("data_seed", value=-5), "data_seed is -5"),
    "batch is text": (ours("ims_per_batch", value="x"), "ims_per_batch is 'x'"),
    "metrics is a list": (ours("metrics", value=[]), "metrics is a list"),
    "written is text": (ours("metrics", "written", value="x"), "metrics.written is 'x'"),
    "histories": (ours("metrics", "histories", value={"x": [[1]]}), "history of 'x' is not a"),
    "record is a list": (put("record", value=[]), "record is a list, not a dict"),
    "findings is a number": (record("findings", value=5), "record.findings is 5"),
    "a finding is a number": (record("findings", value=[5]), "record.findings is 5, not a dict"),
    "weights is text": (record("weights", value="x"), "record.weights is 'x', not a dict"),
    "weights is no JSON": (
        record("weights", value={"file": "x", "sha256": "0", "provenance": {"x": NAN}}),
        "record.weights cannot be written as JSON",
    ),
    "coverage is a number": (record("coverage", value=5), "record.coverage is 5, not a dict"),
    "coverage without names": (
        record("coverage", value={"expected": 5, "missing": 3}),
        "coverage.missing is 3",
    ),
    "started is text": (record("started", value="x"), "record.started is 'x', not a time"),
    "started in no zone": (record("started", value="2024-01-01T00:00:00"), "not a time with a"),
    "changes is a number": (record("changes", value=5), "record.changes is 5, not a list"),
    "a change is a number": (record("changes", value=[5]), "record.changes is 5, not a dict"),
    "a change without a key": (
        record("changes", value=[{"iteration": 1, "key": None, "before": "1", "after": "2"}]),
        "record.changes.key is None",
    ),
    "data is a number": (record("data", value=5), "record.data is 5, not of type dict"),
    "data is of numbers": (record("data", value={"DATASETS.TRAIN": 5}), "record.data is 5, not a"),
    "config is text": (record("config", value="x"), "record.config is 'x', not a dict"),
    "config is no JSON": (
        record("config", value={"SEED": {1, 2}}),
        "record.config cannot be written as JSON",
    ),
    "config_file is unprintable": (
        record("config_file", value="a\nb"),
        r"record.config_file is 'a\\nb', not a text",
    ),
    "seconds is text": (record("seconds", value="x"), "record.seconds is 'x'"),
    "seconds is infinite": (record("seconds", value=float("inf")), "record.seconds is inf"),
}


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny, voc):
    """Overrides of a run whose first checkpoint is that of its first iteration."""
    settings = voc | {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": "(1,)",
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "TEST.EVAL_PERIOD": 0,
        # Each case reads the checkpoint twice: it has few tensors, and small ones.
        "MODEL.BACKBONE.NAME": "build_basic_resnet",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 2,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
        "MODEL.DEVICE": "cpu",
        "OUTPUT_DIR": tmp_path_factory.mktemp("hostile") / "out",
    }
    return [*tiny, *(str(word) for pair in settings.items() for word in pair)]


def resume_run(words, *, resume):
    args = argparse.Namespace(
        config_file="voc_C4_random.yaml", resume=resume, eval_only=False, force=False, opts=words
    )
    train(args)


@pytest.fixture(scope="module")
def resumable(words):
    """A trainer with its record, not yet resumed; OUTPUT_DIR has the checkpoint `NAME`."""
    resume_run(words, resume=False)
    cfg, scaled = scale_to_hardware(load_config("voc_C4_random.yaml", words), world_size=1)
    built = Trainer(cfg)
    recorder = RunRecorder("voc_C4_random.yaml", cfg, scaled, [], None)
    built.checkpointer.add_checkpointable("record", recorder)
    return built


@pytest.fixture
def folder(resumable):
    """OUTPUT_DIR of the trainer, with one checkpoint."""
    folder = Path(resumable.checkpointer.save_dir)
    (folder / "model_final.pth").unlink(missing_ok=True)
    (folder / "last_checkpoint").write_text(NAME)
    kept = (folder / NAME).read_bytes()
    yield folder
    (folder / NAME).write_bytes(kept)


def everything(folder):
    """All files but the log, which the first run of this process holds open."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
    return {path: path.read_bytes() for path in files}


def test_what_a_checkpoint_must_not_hold(folder, resumable):
    """One test: making the checkpoint takes longer than all of the cases."""
    resumable.resume_or_load(resume=True)
    assert resumable.start_iter == 1
    wrong = not_refused(
        HOSTILE,
        folder / NAME,
        resume=lambda: resumable.resume_or_load(resume=True),
        everything=lambda: everything(folder),
    )
    assert not wrong


def test_the_command_writes_nothing_before_the_checkpoint_is_accepted(folder, words):
    content = torch.load(folder / NAME, weights_only=True)
    content["processes"][0]["rng"]["numpy"][2] = 1000
    torch.save(content, folder / NAME)
    before = everything(folder)
    with pytest.raises(UserError, match="position in the state of NumPy's generator is 1000"):
        resume_run(words, resume=True)
    assert everything(folder) == before


def test_a_checkpoint_without_what_only_ours_have_is_continued(folder, resumable):
    """As today's Detectron2 writes them."""
    content = torch.load(folder / NAME, weights_only=True)
    del content["processes"], content["record"], content["trainer"]["moco_d2"]
    torch.save(content, folder / NAME)
    resumable.resume_or_load(resume=True)
    assert resumable.start_iter == 1


@pytest.mark.parametrize("pointer", [b"\xff\xfe", b"a\0b", b"\x1b[31m", b"a" * 5000, b""], ids=repr)
def test_a_pointer_that_names_nothing(folder, resumable, pointer):
    (folder / "last_checkpoint").write_bytes(pointer)
    assert resumable.checkpointer.newest_intact() == str(folder / NAME)
    assert str(folder) in resumable.checkpointer.get_checkpoint_file()


@pytest.mark.parametrize("error", [TypeError, IndexError, OverflowError, KeyError, ValueError])
def test_whatever_a_file_makes_its_reader_raise_is_a_sentence(error):
    sentence = r"^Detectron2 cannot load x \(.*why.*\); do this"
    with pytest.raises(UserError, match=sentence), loading("x", "do this"):
        raise error("why")
