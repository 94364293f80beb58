import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from fvcore.common.registry import Registry

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.modeling import roi_heads

NAME = "Res5ROIHeadsExtraNorm"


def build_res5(depth, res2_channels, norm="BN"):
    cfg = load_config(
        "voc_C4_random.yaml",
        [
            *("MODEL.RESNETS.DEPTH", str(depth)),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", str(res2_channels)),
            *("MODEL.RESNETS.NORM", norm),
        ],
    )
    return ROI_HEADS_REGISTRY.get("Res5ROIHeadsExtraNorm")._build_res5_block(cfg)


@pytest.mark.parametrize(
    ("depth", "res2_channels", "blocks", "channels"),
    [(18, 64, 2, 512), (34, 64, 3, 512), (50, 256, 3, 2048)],
)
def test_res5_keeps_its_names_and_gains_a_norm(depth, res2_channels, blocks, channels):
    res5, out_channels = build_res5(depth, res2_channels)
    assert out_channels == channels
    assert list(dict(res5.named_children())) == [*map(str, range(blocks)), "norm"]
    assert "0.conv1.weight" in res5.state_dict()
    assert res5.norm.num_features == channels


def test_norm_is_applied_to_the_map_before_pooling():
    res5, channels = build_res5(18, 64)
    out = res5.train()(torch.randn(4, channels // 2, 6, 6))
    assert out.shape == (4, channels, 3, 3)
    # Fresh BatchNorm in training: zero mean and unit variance per channel, over regions and places.
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(channels), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("depth", "res2_channels"), [(18, 64), (50, 32)])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_kernels_skip_only_what_meets_padding(depth, res2_channels, side):
    torch.manual_seed(side)
    res5, channels = build_res5(depth, res2_channels)
    plain, _ = build_res5(depth, res2_channels)
    for layer in plain.modules():
        if isinstance(layer, roi_heads._RegionConv):
            layer.__class__ = Conv2d
    plain.load_state_dict(res5.state_dict())
    images = torch.randn(5, channels // 2, side, side)
    results = []
    for network in (res5, plain):
        inputs = images.clone().requires_grad_()
        out = network.train()(inputs)
        out.square().mul(torch.arange(out.numel()).view_as(out) % 7).sum().backward()
        results.append([out, inputs.grad, *(p.grad for p in network.parameters())])
    for ours, theirs in zip(*results, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * scale + 1e-6)


def test_pretrained_res5_has_the_names_of_a_torchvision_stage():
    """What a converted file calls res5.* is what the head calls roi_heads.res5.*, blocks only."""
    from moco_d2.checkpoint.mapping import Architecture, expected_tensors, to_detectron2

    res5, _ = build_res5(18, 64)
    ours = {
        name
        for name in res5.state_dict()
        if not name.startswith("norm.") and "num_batches_tracked" not in name
    }
    converted = {to_detectron2(name) for name in expected_tensors(Architecture(18))}
    theirs = {name.removeprefix("res5.") for name in converted if name.startswith("res5.")}
    assert ours == theirs


class Official(Res5ROIHeads):  # as in the official code for detection
    def _build_res5_block(self, cfg):
        seq, out_channels = super()._build_res5_block(cfg)
        norm = cfg.MODEL.RESNETS.NORM
        norm = get_norm(norm, out_channels)
        seq.add_module("norm", norm)
        return seq, out_channels


class OfficialClassMethod(Res5ROIHeads):
    @classmethod
    def _build_res5_block(cls, cfg):
        seq, out_channels = super()._build_res5_block(cfg)
        seq.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, out_channels))
        return seq, out_channels


class WithoutNorm(Res5ROIHeads):
    @classmethod
    def _build_res5_block(cls, cfg):
        return super()._build_res5_block(cfg)


class WithMore(OfficialClassMethod):
    def forward(self, *args):
        return super().forward(*args)


class Raises(Res5ROIHeads):
    @classmethod
    def _build_res5_block(cls, cfg):
        return super()._build_res5_block(cfg.MODEL)


HEADS = [(Official, True), (OfficialClassMethod, True)]
HEADS += [(head, False) for head in (WithoutNorm, WithMore, Raises)]


@pytest.mark.parametrize(("head", "same"), HEADS, ids=lambda it: getattr(it, "__name__", it))
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_same_head_of_another_program_is_tolerated(head, same, first):
    head.__name__ = NAME
    registry = Registry("heads")
    ours = ROI_HEADS_REGISTRY.get(NAME)

    def register_both() -> None:
        if first == "ours":
            roi_heads._register(ours, registry)
            registry.register(head)
        else:
            registry.register(head)
            roi_heads._register(ours, registry)

    if same:
        register_both()
        assert registry.get(NAME) is ours
    else:
        with pytest.raises(UserError, match="a head Res5ROIHeadsExtraNorm that differs"):
            register_both()
