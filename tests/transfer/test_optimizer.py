import pytest
import torch
from detectron2.modeling import build_model

from moco_d2.config.load import load_config
from moco_d2.engine.resume_checks import UnusableError, check_optimizer
from moco_d2.errors import UserError
from moco_d2.transfer.optimizer import build_adamw, layer_factor
from moco_d2.transfer.trainer import Trainer

DEPTH = 2
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MOCO.VIT.EMBED_DIM": 8,
    "MOCO.VIT.DEPTH": DEPTH,
    "MOCO.VIT.HEADS": 2,
    "MOCO.VIT.GLOBAL_BLOCKS": 1,
    "MOCO.VIT.LAYER_DECAY": 0.5,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.WEIGHT_DECAY": 0.2,
}


@pytest.fixture
def built(words):
    cfg = load_config("coco_vitdet_Ti_25ep_random.yaml", words(SMALL))
    model = build_model(cfg)
    return cfg, model, Trainer.build_optimizer(cfg, model)


def test_every_parameter_has_the_rate_and_decay_of_its_place(built):
    _, model, optimizer = built
    assert type(optimizer) is torch.optim.AdamW
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert settings.keys() == set(names.values())
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)
    expected = {
        "backbone.net.pos_embed": (0.0125, 0.0),
        "backbone.net.patch_embed.proj.weight": (0.0125, 0.2),
        "backbone.net.blocks.0.attn.qkv.weight": (0.025, 0.2),
        "backbone.net.blocks.0.norm1.weight": (0.025, 0.0),
        "backbone.net.blocks.1.attn.rel_pos_h": (0.05, 0.2),
        "backbone.simfp_2.0.weight": (0.1, 0.2),
        "backbone.simfp_2.1.weight": (0.1, 0.2),  # as in main, which does not count it as a norm
        "roi_heads.box_predictor.cls_score.bias": (0.1, 0.2),
    }
    assert {name: settings[name] for name in expected} == {
        name: pytest.approx(values) for name, values in expected.items()
    }
    assert len(optimizer.param_groups) < 10


@pytest.mark.parametrize("depth", [12, 24])
def test_factors_are_those_of_detectron2s_vitdet(depth):
    """Typed from get_vit_lr_decay_rate of main: the exponent is depth + 1 - layer."""
    layers = {"backbone.net.pos_embed": 0, "backbone.net.patch_embed.proj.bias": 0}
    layers |= {f"backbone.net.blocks.{i}.mlp.fc1.weight": i + 1 for i in range(depth)}
    layers |= {"backbone.simfp_2.0.weight": depth + 1, "roi_heads.blocks.0.weight": depth + 1}
    for name, layer in layers.items():
        assert layer_factor(name, 0.7, depth) == pytest.approx(0.7 ** (depth + 1 - layer))


def test_a_layer_decay_that_reaches_no_layer_is_refused_before_a_step(built):
    """A backbone of the user may have other names, and would train with the full rate."""
    cfg, model, _ = built
    model.backbone.vit = model.backbone.net
    del model.backbone.net
    with pytest.raises(UserError, match=r"LAYER_DECAY is 0\.5, but it reaches 0 of the 3 layers"):
        build_adamw(cfg, model)
    model.backbone.net = model.backbone.vit
    del model.backbone.vit, model.backbone.net.blocks[1]
    with pytest.raises(UserError, match=r"2 of the 3 layers.* has the name of block 1 \("):
        build_adamw(cfg, model)
    cfg.MOCO.VIT.LAYER_DECAY = 1.0
    build_adamw(cfg, model)


def test_gradients_are_clipped_if_the_config_says_so(built):
    cfg, model, _ = built
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    optimizer = build_adamw(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    optimizer.step()
    limit = cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE
    assert {float(parameter.grad.max()) for parameter in model.parameters()} == {limit}


def wrong(change):
    def apply(state):
        change(state["state"][0], state["param_groups"][0])

    return apply


HOSTILE = {
    "an average too short": (
        wrong(lambda state, _: state.update(exp_avg=torch.ones(3))),
        r"exp_avg.? has the shape \(3,\)",
    ),
    "a negative square": (
        wrong(lambda state, _: state["exp_avg_sq"].fill_(-1)),
        "exp_avg_sq of parameter 0 has negative",
    ),
    "no step": (wrong(lambda state, _: state.pop("step")), "has no .?step"),
    "a buffer of SGD": (
        wrong(lambda state, _: state.update(momentum_buffer=torch.ones(1))),
        "has .?momentum_buffer",
    ),
    "betas as text": (wrong(lambda _, group: group.update(betas="xy")), "betas are .?xy"),
    "a beta as text": (wrong(lambda _, group: group.update(betas=["x", 1])), "beta is .?x"),
    "amsgrad": (wrong(lambda _, group: group.update(amsgrad=True)), "amsgrad is True and not"),
    "no eps": (wrong(lambda _, group: group.pop("eps")), "optimizer has no eps"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_saved_state_that_is_none_of_adamw_is_refused(case):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    check_optimizer(optimizer.state_dict(), optimizer)
    saved = optimizer.state_dict()
    change, message = HOSTILE[case]
    change(saved)
    with pytest.raises(UnusableError, match=message):
        check_optimizer(saved, optimizer)
