"""Whole runs of MoCo v3: resumed, continued from an official file, converted and evaluated."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from support.commands import run_tool
from support.paths import TOOLS
from support.pretrain.moco_v3_by_hand import Run, SlimResNet50
from support.pretrain.two_processes import double_precision
from support.same_state import differences
from support.scripted_trainer import StopAfter
from support.toy_data import make_class_folders

from moco_d2.checkpoint.convert import convert
from moco_d2.engine.launch import seed
from moco_d2.errors import UserError
from moco_d2.pretrain.checkpointing import FINAL_CHECKPOINT
from moco_d2.pretrain.model.vit import VITS
from moco_d2.pretrain.pretrainer import Pretrainer
from moco_d2.pretrain.probe.knn import backbone_in_evaluation
from moco_d2.pretrain.probe.networks import load_network

RECIPES = {
    "R18": (
        "moco_v3_R50_100ep.yaml",
        {"MOCO.ENCODER.ARCH": "resnet18", "MOCO.ENCODER.WIDTH_FACTOR": 0.125},
    ),
    "ViT": (
        "moco_v3_ViT_S_300ep.yaml",
        {"MOCO.ENCODER.ARCH": "vit_tiny", "MOCO.ENCODER.WIDTH_FACTOR": 0.25},
    ),
}
SMALL = {
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.BASE_LR": 0.01,
    "MOCO.EPOCHS": 2,  # of 3 iterations
    "MOCO.WARMUP_EPOCHS": 1,
    "MOCO.ENCODER.MLP_DIM": 24,
    "MOCO.BN_SPLITS": 0,
    "MOCO.KNN.PERIOD": 2,
    "MOCO.MONITOR.NEIGHBOURS": 0,
}
NOT_COMPARED = {"time", "data_time", "eta_seconds", "OUTPUT_DIR"}


@pytest.fixture(params=RECIPES)
def config(request, make_config, images, held_out, tmp_path):
    """Function: name of the run, overrides -> its config."""
    recipe, widths = RECIPES[request.param]

    def build(name, overrides=None):
        knn = {"MOCO.KNN.TRAIN": images, "MOCO.KNN.TEST": held_out}
        settings = {**SMALL, **widths, **knn, "OUTPUT_DIR": tmp_path / name, **(overrides or {})}
        return make_config(settings, config=recipe)

    return build


def train(cfg, *, resume=False) -> Pretrainer:
    seed(cfg)
    trainer = Pretrainer(cfg)
    trainer.resume_or_start(resume=resume)
    trainer.train()
    return trainer


def saved(folder) -> dict:
    return torch.load(folder / FINAL_CHECKPOINT, weights_only=True)


@pytest.fixture(scope="module")
def runs():
    """Architecture -> its trained run, as soon as a test has asked for it."""
    return {}


@pytest.fixture
def run(config, runs, tmp_path_factory) -> Pretrainer:
    """A trained run of the recipe, which tests only read."""
    cfg = config("run")
    arch = cfg.MOCO.ENCODER.ARCH
    if arch not in runs:
        cfg.OUTPUT_DIR = str(tmp_path_factory.mktemp(arch))
        runs[arch] = train(cfg)
    return runs[arch]


@pytest.mark.parametrize("passes", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config, tmp_path, passes, monkeypatch):
    monkeypatch.setitem(VITS, "vit_tiny", dataclasses.replace(VITS["vit_tiny"], depth=2))
    overrides = {"SOLVER.CHECKPOINT_PERIOD": 2, "MOCO.ACCUMULATION": passes}
    train(config("straight", overrides))
    seed(config("resumed", overrides))
    stopped = Pretrainer(config("resumed", overrides))
    stopped.resume_or_start(resume=False)
    stopped.register_hooks([StopAfter(3)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert train(config("resumed", overrides), resume=True).start_iter == 2
    first, second = (saved(tmp_path / name) for name in ("straight", "resumed"))
    assert differences(first, second, but=NOT_COMPARED) == []


def test_a_checkpoint_has_the_official_names(run):
    content = saved(Path(run.cfg.OUTPUT_DIR))
    assert {"epoch", "arch", "state_dict", "optimizer", "scaler"} <= content.keys()
    names = list(content["state_dict"])
    parts = ("module.base_encoder.", "module.momentum_encoder.", "module.predictor.")
    assert all(name.startswith(parts) for name in names)
    is_vit = "vit" in content["arch"]
    head, layers = ("head", (0, 1, 3, 4, 6, 7)) if is_vit else ("fc", (0, 1, 3, 4))
    found = {int(n.split(".")[3]) for n in names if n.startswith(f"module.base_encoder.{head}.")}
    assert found == set(layers)
    assert f"module.base_encoder.{head}.{layers[-1]}.weight" not in names  # no gamma
    # The optimizer numbers all parameters in the order of the names, as torch does.
    (group,) = content["optimizer"]["param_groups"]
    parameters = list(run.model.named_parameters())
    assert group["params"] == list(range(len(parameters)))
    trained = {i for i, (_, p) in enumerate(parameters) if p.requires_grad}
    assert content["optimizer"]["state"].keys() == trained
    state = set().union(*(s.keys() for s in content["optimizer"]["state"].values()))
    assert state == ({"step", "exp_avg", "exp_avg_sq"} if is_vit else {"mu"})


@pytest.mark.parametrize("branch", ["query", "key"])
def test_a_checkpoint_is_converted_and_evaluated(run, tmp_path, branch):
    accuracies = [value for value, _ in run.storage.history("knn_accuracy").values()]
    assert len(accuracies) > 2 and all(0 <= value <= 1 for value in accuracies)
    source = Path(run.cfg.OUTPUT_DIR) / FINAL_CHECKPOINT
    report = convert(source, tmp_path / "weights.pth", branch=branch)
    assert report["family"] in ("moco_v3", "moco_v3_vit")
    assert report["tensors_found"] == report["tensors_expected"]
    assert report["parity"]["max"] <= report["parity"]["tolerance"]

    network, _, width, origin = load_network(source, branch=branch, size=32)
    assert origin.pretraining["config"]["MOCO"]["PRETEXT"] == "mocov3"
    encoder = run.model.base_encoder if branch == "query" else run.model.momentum_encoder
    batch = torch.randn(3, 3, 32, 32)
    with torch.no_grad(), backbone_in_evaluation(encoder) as backbone:
        features = network.eval()(batch)
        assert features.shape == (3, width)
        torch.testing.assert_close(features, backbone(batch))


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_linear_evaluation_runs_on_a_checkpoint(run, tmp_path, protocol):
    make_class_folders(tmp_path / "data" / "train", 8)
    make_class_folders(tmp_path / "data" / "val", 4, seed=1)
    done = run_tool(
        *(
            TOOLS / "linear_eval.py",
            Path(run.cfg.OUTPUT_DIR) / FINAL_CHECKPOINT,
            "--data",
            tmp_path / "data",
        ),
        *("--output", tmp_path / "out", "--size", 32, "--batch-size", 8, "--workers", 0),
        *("--device", "cpu", "--protocol", protocol, *(("--epochs", 1) * (protocol == "linear"))),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["protocol"] == protocol
    assert result["checkpoint"]["family"] in ("moco_v3", "moco_v3_vit")
    assert result["pretraining"]["iterations"] == 6
    if protocol == "linear":
        is_vit = result["checkpoint"]["architecture"].startswith("ViT")
        assert result["settings"]["base_lr"] == (3 if is_vit else 30)


def test_the_supervised_baseline_of_a_vit(make_config, tmp_path):
    recipe, widths = RECIPES["ViT"]
    cfg = make_config({**SMALL, **widths, "MOCO.PRETEXT": "supervised"}, config=recipe)
    losses = train(cfg).storage.history("total_loss").values()
    assert len(losses) == 6 and all(0 < value < 5 for value, _ in losses)
    report = convert(tmp_path / "out" / FINAL_CHECKPOINT, tmp_path / "weights.pth")
    assert report["vit"]["heads"] == 3
    assert report["tensors_found"] == report["tensors_expected"]


@pytest.mark.parametrize("config", ["ViT"], indirect=True)
def test_a_vit_is_evaluated_at_its_own_size(run, tmp_path):
    folder = Path(run.cfg.OUTPUT_DIR)
    with pytest.raises(
        UserError, match="positions are those of images of 32 pixels: give --size 32"
    ):
        load_network(folder / FINAL_CHECKPOINT, size=224)
    state = saved(folder)
    del state["state_dict"]["module.base_encoder.norm.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(UserError, match="without last norm, which the features"):
        load_network(tmp_path / "cut.pth", size=32)


def test_an_official_run_goes_on_here(make_config, tmp_path):
    """Its file has no update of the last step, no position and no metrics."""
    settings = {
        **SMALL,
        "MOCO.ENCODER.ARCH": "resnet50",
        "MOCO.ENCODER.WIDTH_FACTOR": 0.125,
        "SOLVER.CHECKPOINT_PERIOD": 0,
    }
    words = {"config": "moco_v3_R50_100ep.yaml"}
    batches = []
    with double_precision():
        here = Pretrainer(make_config(settings, **words))
        state = here.model.state_dict()
        encoders = [SlimResNet50() for _ in range(2)]
        heads = {"fc": [256, 24, 16], "predictor": [16, 24, 16]}
        there = Run(
            *(encoders, heads, state, "LARS"), t=1.0, m=0.99, lr=0.01, wd=1e-6, warmup=3, length=6
        )
        with contextlib.closing(here.data.batches(0)) as stream:
            batches = [here.data.views(next(stream), i) for i in range(6)]
        views = [(batch["query"].double(), batch["key"].double()) for batch in batches]
        for pair in views[:3]:
            there.step(*pair)
        torch.save(there.official(epoch=1), tmp_path / "official.pth.tar")
        wanted = [there.step(*pair) for pair in views[3:]]

        cfg = make_config({**settings, "MODEL.WEIGHTS": tmp_path / "official.pth.tar"}, **words)
        trainer = Pretrainer(cfg)
        for encoder in trainer.model.children():
            encoder.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        trainer.resume_or_start(resume=True)
        assert trainer.start_iter == 3
        trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert losses == pytest.approx(wanted, abs=1e-9)
