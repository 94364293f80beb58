"""Every recipe in configs/pretrain against a table typed from the papers and the official code."""

import pytest
import torch

from moco_d2.checkpoint.convert import convert
from moco_d2.config.load import config_root, load_config
from moco_d2.errors import UserError
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.model.moco_v3 import MoCoV3
from moco_d2.pretrain.model.supervised import SupervisedClassifier
from moco_d2.pretrain.model.vit import VITS
from moco_d2.pretrain.official_layout import official_state_dict
from moco_d2.pretrain.schedule import build_schedule, scale_recipe, training_length

IMAGENET = 1_281_167
# As resolved on `gpus` processes and `images`. arXiv:1911.05722 section 4.1 and main_moco.py.
V1 = {
    "gpus": 8,
    "images": IMAGENET,
    "pretext": "moco",
    "batch": 256,
    "lr": 0.03,
    "sgd": (0.9, 1e-4),
    "epochs": 200,
    "schedule": ("step", (120, 160), 0.1),
    "momentum": 0.999,
    "temperature": 0.07,
    "encoder": ("resnet50", 128, False, False),  # arch, C, MLP, small stem
    "width": (1, 64, 1),  # groups, width per group, factor
    "dictionary": ("Queue", 65536),
    "bn_splits": 1,
    "views": ("v1", 224, (0.2, 1.0), (0.1, 2.0)),
    "amp": False,
    "symmetric": False,
    "expected_loss": (),
}
# arXiv:2003.04297: --mlp --moco-t 0.2 --aug-plus --cos
MLP = {"encoder": ("resnet50", 128, True, False), "temperature": 0.2}
AUG = {"views": ("v2", 224, (0.2, 1.0), (0.1, 2.0))}
COS = {"schedule": ("cosine",)}
V2 = {**V1, **MLP, **AUG, **COS, "expected_loss": (6.5, 6.9)}
# facebookresearch/moco, branch colab-notebook
SMALL = {
    "gpus": 1,
    "images": 50_000,
    "pretext": "moco",
    "batch": 512,
    "lr": 0.06,
    "sgd": (0.9, 5e-4),
    "epochs": 200,
    "schedule": ("cosine",),
    "momentum": 0.99,
    "temperature": 0.1,
    "encoder": ("resnet18", 128, False, True),
    "width": (1, 64, 1),
    "dictionary": ("Queue", 4096),
    "bn_splits": 8,
    "views": ("v2", 32, (0.08, 1.0), (0.0, 0.0)),
    "amp": False,
    "symmetric": False,
    "expected_loss": (),
    "knn": (97, 200, 0.1, "outputs"),  # every epoch: 50,000 // 512 iterations
}
# CONFIG.md and main_moco.py of facebookresearch/moco-v3; the learning rate is --lr x 4096 / 256.
V3 = {
    "gpus": 16,
    "images": IMAGENET,
    "pretext": "mocov3",
    "batch": 4096,
    "lr": 9.6,
    "optimizer": "LARS",
    "sgd": (0.9, 1e-6),
    "epochs": 100,
    "schedule": ("cosine_after_warmup", 10, 0.0),
    "momentum": 0.99,
    "momentum_schedule": "cosine",
    "temperature": 1.0,
    "encoder": ("resnet50", 256, False, False),
    "v3_heads": (4096, False),  # hidden width, frozen patches
    "width": (1, 64, 1),
    "dictionary": ("Queue", 65536),  # not used
    "bn_splits": 1,
    "views": ("v3", 224, (0.2, 1.0), (0.1, 2.0)),
    "amp": "float16",
    "symmetric": False,  # always both directions
    "expected_loss": (),
}
V3_VIT = {
    **V3,
    "lr": 0.0024,
    "optimizer": "AdamW",
    "sgd": (0.9, 0.1),
    "epochs": 300,
    "schedule": ("cosine_after_warmup", 40, 0.0),
    "temperature": 0.2,
    "encoder": ("vit_small", 256, False, False),
    "v3_heads": (4096, True),
    "views": ("v3", 224, (0.08, 1.0), (0.1, 2.0)),
}
TABLE = {
    "moco_v1_R50_200ep": V1,
    "moco_v2_R50_200ep": V2,
    "moco_v2_R50_800ep": {**V2, "epochs": 800},
    "moco_v2_a_mlp_R50_200ep": {**V1, **MLP},
    "moco_v2_b_aug_R50_200ep": {**V1, **AUG},
    "moco_v2_c_mlp_aug_R50_200ep": {**V1, **MLP, **AUG},
    "moco_v2_R50_200ep_1gpu": {**V2, "gpus": 1, "bn_splits": 8, "amp": "bfloat16"},
    "moco_v1_X50_32x8d_200ep": {**V1, "width": (32, 8, 1)},
    "moco_v1_R50w2x_200ep": {**V1, "width": (1, 64, 2)},
    "moco_v1_R50w4x_200ep": {**V1, "width": (1, 64, 4)},
    "moco_v1_R50_IG1B": {
        **V1,
        "gpus": 64,
        "images": 940_000_000,
        "batch": 1024,
        "lr": 0.12,
        "epochs": 0,
        "iterations": 1_250_000,
        "schedule": ("step_every", 62_500, 0.9),
    },
    "end_to_end_R50_200ep": {**V1, "dictionary": ("EndToEnd", 0)},
    "memory_bank_R50_200ep": {**V1, "dictionary": ("MemoryBank", 65536)},
    "supervised_R50_200ep": {**V2, "pretext": "supervised", "dictionary": ("Queue", 0)},
    "moco_v3_R50_100ep": V3,
    "moco_v3_R50_300ep": {**V3, "epochs": 300, "lr": 4.8},
    "moco_v3_R50_1000ep": {
        **V3,
        "epochs": 1000,
        "lr": 4.8,
        "sgd": (0.9, 1.5e-6),
        "momentum": 0.996,
    },
    "moco_v3_ViT_S_300ep": {**V3_VIT, "gpus": 32},
    "moco_v3_ViT_B_300ep": {**V3_VIT, "gpus": 64, "encoder": ("vit_base", 256, False, False)},
    "moco_small_data_R18_200ep": SMALL,
    "moco_small_data_R18_200ep_stem7x7": {
        **SMALL,
        "encoder": ("resnet18", 128, False, False),
        "views": ("v2", 128, (0.08, 1.0), (0.0, 0.0)),
    },
}


def resolved(cfg) -> dict:
    """The rows of the table, read from a config."""
    moco, solver = cfg.MOCO, cfg.SOLVER
    schedules = {
        "step": ("step", tuple(moco.LR_STEPS), solver.GAMMA),
        "step_every": ("step_every", moco.LR_STEP_EVERY, solver.GAMMA),
        "cosine": ("cosine",),
        "cosine_after_warmup": (
            *("cosine_after_warmup", moco.WARMUP_EPOCHS, solver.WARMUP_FACTOR),
        ),
    }
    encoder, views = moco.ENCODER, moco.AUGMENTATION
    return {
        "pretext": moco.PRETEXT,
        "batch": solver.IMS_PER_BATCH,
        "lr": solver.BASE_LR,
        "sgd": (solver.MOMENTUM, solver.WEIGHT_DECAY),
        "epochs": moco.EPOCHS,
        "iterations": solver.MAX_ITER,
        "schedule": schedules[moco.LR_SCHEDULE],
        "momentum": moco.MOMENTUM,
        "temperature": moco.TEMPERATURE,
        "encoder": (encoder.ARCH, encoder.DIM, encoder.MLP, encoder.SMALL_STEM),
        "width": (encoder.GROUPS, encoder.WIDTH_PER_GROUP, encoder.WIDTH_FACTOR),
        "dictionary": (moco.DICTIONARY.NAME, moco.DICTIONARY.SIZE),
        "bn_splits": moco.BN_SPLITS,
        "views": (views.NAME, views.SIZE, tuple(views.CROP_SCALE), tuple(views.BLUR_SIGMA)),
        "optimizer": moco.PRETRAIN_OPTIMIZER,
        "momentum_schedule": moco.MOMENTUM_SCHEDULE,
        "v3_heads": (encoder.MLP_DIM, encoder.FREEZE_PATCHES),
        "amp": solver.AMP.ENABLED and moco.AMP_DTYPE,
        "symmetric": moco.SYMMETRIC,
        "expected_loss": tuple(moco.MONITOR.EXPECTED_LOSS),
        "knn": (moco.KNN.PERIOD, moco.KNN.NEIGHBOURS, moco.KNN.TEMPERATURE, moco.KNN.PROTOCOL),
    }


def test_the_table_has_every_recipe():
    files = {path.stem for path in (config_root() / "pretrain").glob("*.yaml")}
    assert files - {"base"} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_recipe_is_the_published_one(name):
    wanted = TABLE[name]
    cfg = load_config(f"{name}.yaml")
    assert wanted["batch"] == cfg.MOCO.REFERENCE_BATCH
    scaled, _ = scale_recipe(cfg, world_size=wanted["gpus"], num_images=wanted["images"])
    found = resolved(scaled)
    assert {key: found[key] for key in wanted if key not in ("gpus", "images")} == {
        key: value for key, value in wanted.items() if key not in ("gpus", "images")
    }


def test_ig1b_ends_after_nineteen_decays():
    cfg = load_config("moco_v1_R50_IG1B.yaml")
    per_epoch = 940_000_000 // 1024
    assert training_length(cfg, per_epoch) == 1_250_000
    factor = build_schedule(cfg, per_epoch)
    assert factor(62_499 / 1_250_000) == 1.0
    assert factor(62_500 / 1_250_000) == pytest.approx(0.9)
    assert factor(1_249_999 / 1_250_000) == pytest.approx(0.9**19)


def shrunken(name):
    """A recipe's config and model with its own mechanism, head, grouping and stem, narrow."""
    small = ["SOLVER.IMS_PER_BATCH", "8", "MOCO.DICTIONARY.SIZE", "16", "MOCO.ENCODER.DIM", "8"]
    cfg = load_config(f"{name}.yaml", small)
    if cfg.MOCO.ENCODER.ARCH == "resnet50":
        cfg.MOCO.ENCODER.WIDTH_PER_GROUP = 64 // cfg.MOCO.ENCODER.GROUPS // 4
        cfg.MOCO.ENCODER.WIDTH_PER_GROUP = max(1, cfg.MOCO.ENCODER.WIDTH_PER_GROUP)
    if cfg.MOCO.ENCODER.WIDTH_FACTOR > 1:
        cfg.MOCO.ENCODER.WIDTH_FACTOR /= 16
    if cfg.MOCO.ENCODER.ARCH in VITS:
        cfg.MOCO.ENCODER.WIDTH_FACTOR, cfg.MOCO.AUGMENTATION.SIZE = 0.125, 32
    cfg.MOCO.ENCODER.MLP_DIM = 16
    cfg.MOCO.BN_SPLITS = 0
    cfg, _ = scale_recipe(cfg, world_size=1, num_images=40)
    torch.manual_seed(0)
    if cfg.MOCO.PRETEXT == "mocov3":
        model = MoCoV3.from_config(cfg)
    elif cfg.MOCO.PRETEXT == "moco":
        model = MoCo.from_config(cfg, num_images=40)
    else:
        model = SupervisedClassifier.from_config(cfg, num_classes=3)
    return cfg, model


@pytest.mark.parametrize("name", TABLE)
def test_shrunken_recipe_takes_a_step(name):
    cfg, model = shrunken(name)
    model.train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=cfg.SOLVER.BASE_LR
    )
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    query, key = torch.randn(2, 8, 3, 32, 32)
    index = torch.arange(8)
    outputs = model({"query": query, "key": key, "index": index, "label": index % 3})
    loss = sum(value for output, value in outputs.items() if output.startswith("loss"))
    loss.backward()
    optimizer.step()
    model.finish_step()
    after = [p for p in model.parameters() if p.requires_grad]
    assert torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_only_the_recipe_with_a_small_stem_says_that_it_does_not_convert():
    folder = config_root() / "pretrain"
    no = "It does not convert to Detectron2, whose ResNets have no 3x3 stem"
    assert {n for n in TABLE if no in (folder / f"{n}.yaml").read_text()} == {
        name for name, recipe in TABLE.items() if recipe["encoder"][3]
    }


# Recipes with the same network have the same checkpoints.
NETWORKS = {(r["pretext"], r["encoder"], r["width"]): name for name, r in TABLE.items()}


@pytest.mark.parametrize("name", NETWORKS.values())
def test_the_checkpoint_of_each_recipe_converts(name, tmp_path):
    """Its checkpoint becomes weights of Detectron2, which compute the same features."""
    _, model = shrunken(name)
    checkpoint = {"state_dict": official_state_dict(model)}
    if "vit" in name.lower():  # its width is no published one, so that the run says the heads
        checkpoint["moco_d2"] = {"vit": {"heads": 12}}
    torch.save(checkpoint, tmp_path / "checkpoint.pth.tar")
    if TABLE[name]["encoder"][3]:
        with pytest.raises(UserError, match=r"the 3x3 convolution for small images \(CIFAR\)"):
            convert(tmp_path / "checkpoint.pth.tar", tmp_path / "weights.pth")
        return
    report = convert(tmp_path / "checkpoint.pth.tar", tmp_path / "weights.pth")
    assert report["tensors_found"] == report["tensors_expected"]
    assert report["parity"]["max"] <= report["parity"]["tolerance"]
