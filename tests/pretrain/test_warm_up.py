"""Compiling before the clock of a run starts, with a compiler that leaves graphs as they are."""

import dataclasses
import functools
import logging

import pytest
import torch
from detectron2.engine import HookBase
from support.same_state import differences

from moco_d2.engine.launch import seed
from moco_d2.engine.process_state import rng_state
from moco_d2.errors import UserError
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.model.vit import VITS
from moco_d2.pretrain.pretrainer import Pretrainer

V3 = {"MOCO.BN_SPLITS": 0, "SOLVER.AMP.ENABLED": False, "MOCO.WARMUP_EPOCHS": 1}
V3 |= {"MOCO.ENCODER.MLP_DIM": 24, "MOCO.ENCODER.WIDTH_FACTOR": 0.25}
RECIPES = {
    "queue": ("moco_v2_R50_200ep.yaml", {}),
    "symmetric, 2 passes": (
        "moco_v2_R50_200ep.yaml",
        {"MOCO.SYMMETRIC": True, "MOCO.ACCUMULATION": 2},
    ),
    "memory bank": ("moco_v2_R50_200ep.yaml", {"MOCO.DICTIONARY.NAME": "MemoryBank"}),
    "augmentation on the device": (
        "moco_v2_R50_200ep.yaml",
        {"MOCO.AUGMENTATION.WHERE": "device"},
    ),
    "supervised": ("supervised_R50_200ep.yaml", {}),
    "v3, 2 passes": (
        "moco_v3_ViT_S_300ep.yaml",
        V3 | {"MOCO.ENCODER.ARCH": "vit_tiny", "MOCO.ACCUMULATION": 2},
    ),
}

pytestmark = pytest.mark.usefixtures("small_network")


@pytest.fixture
def asked(monkeypatch):
    """The sides of the inputs of each graph that is compiled, in order."""
    graphs = []

    def compiler(graph, inputs):
        graphs.append([side for x in inputs if isinstance(x, torch.Tensor) for side in x.shape])
        return graph.forward

    torch._dynamo.reset()
    compiled_by = functools.partialmethod(torch.nn.Module.compile, backend=compiler)
    monkeypatch.setattr(torch.nn.Module, "compile", compiled_by)
    return graphs


class Before(HookBase):
    """Calls a function when the clock of the run starts."""

    def __init__(self, look):
        self.look = look

    def before_train(self) -> None:
        self.look()


def state(trainer: Pretrainer) -> dict:
    return {
        "model": {name: t.clone() for name, t in trainer.model.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict(),
        "gradients": [p.grad for p in trainer.model.parameters()],
        "scaler": trainer.scaler.state_dict(),
        "generators": rng_state(),
        "pending": list(trainer.model._seen) if isinstance(trainer.model, MoCo) else [],
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_is_compiled_before_the_clock_starts_for_one_shape_and_changes_no_state(
    make_config, images, held_out, monkeypatch, asked, recipe
):
    """kNN before the first step has batches of other sizes."""
    monkeypatch.setitem(VITS, "vit_tiny", dataclasses.replace(VITS["vit_tiny"], depth=2))
    config, settings = RECIPES[recipe]
    knn = {"MOCO.KNN.TRAIN": images, "MOCO.KNN.TEST": held_out, "MOCO.KNN.PERIOD": 2}
    cfg = make_config({**settings, **knn, "MOCO.COMPILE": True}, config=config)
    seed(cfg)
    trainer = Pretrainer(cfg)
    trainer.resume_or_start(resume=False)
    start, seen = state(trainer), []
    looks = Before(lambda: seen.append((len(asked), state(trainer))))
    looks.trainer = trainer
    trainer._hooks.insert(0, looks)  # before kNN, which reads images
    trainer.train()
    ((compiled, begun),) = seen
    assert compiled == len(asked) > 0
    assert {type(side) for graph in asked for side in graph} == {int}
    assert differences(start, begun) == []


def test_compiling_skips_no_image(make_config, asked):
    indices = []

    def observe(trainer):
        forward = trainer.data.views
        trainer.data.views = lambda batch, i: (
            indices.append((i, batch["index"])) or forward(batch, i)
        )

    for compiled in (True, False):
        cfg = make_config({"MOCO.COMPILE": compiled, "MOCO.EPOCHS": 1})
        cfg.OUTPUT_DIR += str(compiled)
        trainer = Pretrainer(cfg)
        trainer.resume_or_start(resume=False)
        observe(trainer)
        trainer.train()
    (warm_up, *compiled), eager = indices[:4], indices[4:]
    assert differences(compiled, eager) == differences(warm_up, eager[0]) == []


def test_the_log_says_that_and_how_long_it_compiles(make_config, asked, caplog):
    cfg = make_config({"MOCO.COMPILE": True, "MOCO.EPOCHS": 1})
    with caplog.at_level(logging.INFO):
        trainer = Pretrainer(cfg)
        trainer.resume_or_start(resume=False)
        trainer.train()
    said = [record.getMessage() for record in caplog.records]
    (begun,) = [i for i, line in enumerate(said) if line.startswith("compiling the encoders")]
    assert said[begun + 1].startswith("the encoders are compiled, after ")


def test_a_compiler_that_fails_is_one_sentence_that_names_the_key(make_config, monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("ptxas is of another CUDA")

    torch._dynamo.reset()
    compiled_by = functools.partialmethod(torch.nn.Module.compile, backend=fails)
    monkeypatch.setattr(torch.nn.Module, "compile", compiled_by)
    trainer = Pretrainer(make_config({"MOCO.COMPILE": True}))
    trainer.resume_or_start(resume=False)
    with pytest.raises(UserError, match=r"ptxas is of another CUDA.*: set MOCO.COMPILE False"):
        trainer.train()
