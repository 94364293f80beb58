"""MoCo v3: twenty steps of the engine against a transcription of the algorithm, and its parts."""

import contextlib
import copy

import pytest
import torch
from support.pretrain.moco_v3_by_hand import Run, SlimResNet50, ViT, sincos
from support.pretrain.two_processes import double_precision
from torch import nn

from moco_d2.engine.launch import seed
from moco_d2.errors import UserError
from moco_d2.pretrain.accumulation import backward_in_parts
from moco_d2.pretrain.model.moco_v3 import MoCoV3, Projector
from moco_d2.pretrain.model.vit import build_vit, sincos_positions
from moco_d2.pretrain.pretrainer import Pretrainer

STEPS = 20
WARMUP = 3  # one epoch of 24 images
TOLERANCE = 1e-9  # in double precision; the claim is 1e-5
TINY_V3 = {
    "SOLVER.AMP.ENABLED": False,
    "MOCO.EPOCHS": 0,
    "SOLVER.MAX_ITER": STEPS,
    "SOLVER.CHECKPOINT_PERIOD": 0,
    "MOCO.WARMUP_EPOCHS": 1,
    "MOCO.ENCODER.MLP_DIM": 24,
    "MOCO.BN_SPLITS": 0,
}
R50 = {
    "config": "moco_v3_R50_100ep.yaml",
    "overrides": {
        "SOLVER.BASE_LR": 0.02,
        "MOCO.ENCODER.ARCH": "resnet50",
        "MOCO.ENCODER.WIDTH_FACTOR": 0.125,
    },
}
VIT = {
    "config": "moco_v3_ViT_S_300ep.yaml",
    "overrides": {
        "SOLVER.BASE_LR": 0.001,  # at twice the rate, rounding grows a thousandfold in these steps
        "MOCO.ENCODER.ARCH": "vit_tiny",
        "MOCO.ENCODER.WIDTH_FACTOR": 0.25,
    },
}


def by_hand(cfg, state):
    """The same training in plain torch, from the same state."""
    hidden, dim = 24, 16
    settings = {"m": 0.99, "lr": cfg.SOLVER.BASE_LR, "warmup": WARMUP, "length": STEPS}
    if cfg.MOCO.ENCODER.ARCH == "resnet50":
        heads = {"fc": [256, hidden, dim], "predictor": [dim, hidden, dim]}
        encoders = [SlimResNet50() for _ in range(2)]
        return Run(encoders, heads, state, "LARS", t=1.0, wd=1e-6, **settings)
    heads = {"head": [48, hidden, hidden, dim], "predictor": [dim, hidden, dim]}
    encoders = [ViT(48, 3, 2) for _ in range(2)]
    return Run(encoders, heads, state, "AdamW", t=0.2, wd=0.1, **settings)


@pytest.mark.parametrize("recipe", [R50, VIT], ids=["R50", "ViT"])
def test_twenty_steps_are_the_algorithms(make_config, recipe):
    cfg = make_config({**TINY_V3, **recipe["overrides"]}, config=recipe["config"])
    batches = []
    with double_precision():
        seed(cfg)
        trainer = Pretrainer(cfg)
        for encoder in trainer.model.children():
            encoder.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        trainer.model.register_forward_pre_hook(lambda _, args: batches.append(args[0]))
        trainer.resume_or_start(resume=False)
        start = {name: t.clone() for name, t in trainer.model.state_dict().items()}
        run = by_hand(cfg, start)
        trainer.train()
        assert len(batches) == STEPS
        wanted = [run.step(batch["query"].double(), batch["key"].double()) for batch in batches]
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert losses == pytest.approx(wanted, abs=TOLERANCE)
    assert max(losses) - min(losses) > 0.1
    if recipe is R50:  # the weights by the same names; those of torch's ViT have others
        base = run.base.state_dict()
        for name, tensor in trainer.model.base_encoder.state_dict().items():
            torch.testing.assert_close(tensor, base[name], rtol=0, atol=1e-8, msg=name)
    frozen = ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    moved = {n: (p - start[n]).abs().max() for n, p in trainer.model.named_parameters()}
    assert {n for n, by in moved.items() if not by} == {n for n in moved if n.endswith(frozen)}
    assert max(moved.values()) > 1e-3


@pytest.mark.parametrize(("width", "side"), [(48, 3), (384, 14)])
def test_positions_are_sines_and_cosines_of_row_and_column(width, side):
    torch.testing.assert_close(sincos_positions(width, side), sincos(width, side))


def test_a_vit_begins_as_the_official_one():
    torch.manual_seed(0)
    state = build_vit("vit_small", 10, size=32, freeze_patches=True).state_dict()
    bounds = {
        "blocks.3.attn.qkv.weight": (6 / (384 + 384)) ** 0.5,
        "blocks.3.attn.proj.weight": (6 / (384 + 384)) ** 0.5,
        "blocks.3.mlp.fc1.weight": (6 / (384 + 1536)) ** 0.5,
        "patch_embed.proj.weight": (6 / (3 * 256 + 384)) ** 0.5,
    }
    for name, bound in bounds.items():
        assert state[name].abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert not state[name.replace("weight", "bias")].any()
    assert 0 < state["cls_token"].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 40}, "SIZE 40 is no multiple of the 16 pixels of a patch of vit_small: set 32"),
        ({"size": 32, "width_factor": 0.1}, "38.4 channels: choose a factor that gives a mul.* 12"),
    ],
)
def test_a_vit_that_cannot_be_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build_vit("vit_small", 10, **settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MOCO.BN_SPLITS": 2}, "MOCO.BN_SPLITS 2 is for MOCO.PRETEXT moco"),
        ({"MOCO.PRETEXT": "moco"}, "moco has ResNets only, not vit_small: set MOCO.PRETEXT mocov3"),
        ({"MOCO.OPTIMIZER": "AdamW"}, "OPTIMIZER AdamW is for fine-tuning: set MOCO.PRETRAIN_OPT"),
        (
            {"MOCO.ENCODER.ARCH": "resnet50"},
            "resnet50 has no patches: set MOCO.ENCODER.FREEZE_PATCHES",
        ),
        ({"MOCO.ENCODER.SMALL_STEM": True}, "vit_small has no convolutions"),
    ],
)
def test_settings_of_another_pretext_are_refused(make_config, tmp_path, overrides, message):
    small = {"MOCO.ENCODER.ARCH": "vit_small", "MOCO.ENCODER.WIDTH_FACTOR": 0.125}
    settings = {**TINY_V3, **small, **overrides}
    with pytest.raises(UserError, match=message):
        Pretrainer(make_config(settings, config="moco_v3_ViT_S_300ep.yaml"))
    assert not (tmp_path / "out").exists()


class Trunk(nn.Module):
    """A convolution with any norm, and a head."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), norm
        self.fc = Projector(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def accumulated(norm):
    """A model, and the same after a backward pass in four parts of a batch of 12."""
    torch.manual_seed(0)
    predictor = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5))
    model = MoCoV3(Trunk(norm), predictor, momentum=0.9, temperature=0.2)
    batch = {name: torch.randn(12, 3, 8, 8) for name in ("query", "key")}
    in_parts = copy.deepcopy(model)
    outputs = backward_in_parts(
        in_parts, in_parts, batch, 4, autocast=contextlib.nullcontext, scale=lambda loss: 3 * loss
    )
    return model, in_parts, batch, outputs


@pytest.fixture
def in_double_precision():
    with double_precision():
        yield


@pytest.mark.usefixtures("in_double_precision")
def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch():
    """Heads with BatchNorm see the whole batch; the backbone's norm does not look at the batch."""
    model, in_parts, batch, outputs = accumulated(nn.GroupNorm(2, 6))
    whole = model(batch)
    (3 * whole["loss_contrastive"]).backward()
    assert outputs.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(outputs[name], value.detach())
    parameters = zip(model.named_parameters(), in_parts.parameters(), strict=True)
    for (name, wanted), found in parameters:
        assert (wanted.grad is None) == (found.grad is None), name
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, wanted), found in zip(model.named_buffers(), in_parts.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)


@pytest.mark.usefixtures("in_double_precision")
def test_batchnorm_in_the_backbone_has_the_statistics_of_a_part():
    model, in_parts, batch, _ = accumulated(nn.BatchNorm2d(6))
    parts = [{name: views[i : i + 3] for name, views in batch.items()} for i in range(0, 12, 3)]
    features = torch.cat([model.features(part) for part in parts])
    keys = torch.cat([model.key_features(part) for part in parts])
    (3 * model.contrast(features, keys)["loss_contrastive"]).backward()
    for (name, wanted), found in zip(model.named_parameters(), in_parts.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-9, atol=1e-12, msg=name)
    # Each part has moved the running statistics once for each view, though it passed twice.
    assert in_parts.base_encoder.norm.num_batches_tracked == 8
    for (name, wanted), found in zip(model.named_buffers(), in_parts.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    with pytest.raises(AssertionError):  # one pass would be something else
        whole = model(batch)["loss_contrastive"].detach()
        torch.testing.assert_close(
            whole, model.contrast(features, keys)["loss_contrastive"].detach()
        )


def test_the_engine_accumulates_a_vit_as_one_batch(make_config, tmp_path):
    def first_steps(passes):
        settings = {**TINY_V3, **VIT["overrides"], "MOCO.ACCUMULATION": passes}
        settings["OUTPUT_DIR"] = tmp_path / str(passes)
        with double_precision():
            cfg = make_config(settings, config=VIT["config"])
            seed(cfg)
            trainer = Pretrainer(cfg)
            for encoder in trainer.model.children():
                encoder.register_forward_pre_hook(lambda _, args: (args[0].double(),))
            trainer.resume_or_start(resume=False)
            trainer.max_iter = 4
            trainer.train()
        return [value for value, _ in trainer.storage.history("total_loss").values()]

    assert first_steps(4) == pytest.approx(first_steps(1), abs=1e-9)
