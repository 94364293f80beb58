import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from support.commands import run_python
from support.transfer.mains_vit import CHECKOUT, mains_vit
from torch import nn

from moco_d2.errors import UserError
from moco_d2.plugin import compat
from moco_d2.transfer.modeling import vit
from moco_d2.transfer.modeling.feature_pyramid import SCALES, SimpleFeaturePyramid
from moco_d2.transfer.modeling.vit import (
    Attention,
    Block,
    ViT,
    from_windows,
    to_windows,
    vectors_of_distances,
)

DIM, HEADS, PATCH = 32, 4, 16
SMALL = {
    "img_size": 96,
    "patch_size": PATCH,
    "embed_dim": DIM,
    "depth": 4,
    "num_heads": HEADS,
    "window_size": 4,
    "window_block_indexes": (0, 2),
    "pretrain_img_size": 64,
}
# The same as keys.
KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_vit_simple_fpn_backbone",
    "MODEL.FPN.NORM": "LN",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MOCO.VIT.EMBED_DIM": DIM,
    "MOCO.VIT.DEPTH": 4,
    "MOCO.VIT.HEADS": HEADS,
    "MOCO.VIT.GLOBAL_BLOCKS": 2,
    "MOCO.VIT.WINDOW_SIZE": 4,
    "MOCO.VIT.IMAGE_SIZE": 96,
    "MOCO.VIT.PRETRAIN_SIZE": 64,
}


def config(**changes):
    cfg = get_cfg()
    for key, value in (KEYS | {f"MOCO.VIT.{k}": v for k, v in changes.items()}).items():
        cfg.merge_from_list([key, value])
    return cfg


def randomize(module):
    """Nothing is zero or one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


def pyramid(vit_class, pyramid_class, **more):
    net = vit_class(**SMALL, use_rel_pos=True, **more)
    return pyramid_class(
        net,
        in_feature="last_feat",
        out_channels=16,
        scale_factors=SCALES,
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=96,
    )


@pytest.mark.parametrize("sides", [(96, 96), (64, 64), (128, 64)])
def test_it_is_mains_in_tensors_outputs_and_gradients(sides):
    """On the grid of the relative positions, on that of the absolute ones, and on another one that
    windows do not divide.
    """
    torch.manual_seed(0)
    with mains_vit() as module:
        if module is None:
            pytest.skip(f"no ViT of Detectron2's main: set {CHECKOUT} to a checkout")

        def norm(dim):
            return nn.LayerNorm(dim, eps=1e-6)

        theirs = pyramid(module.ViT, module.SimpleFeaturePyramid, norm_layer=norm)
        ours = randomize(pyramid(ViT, SimpleFeaturePyramid))
        theirs.load_state_dict(ours.state_dict(), strict=True)
        assert ours.output_shape() == theirs.output_shape()
        images = torch.randn(2, 3, *sides)
        found, expected = ours(images), theirs(images)
    assert list(found) == list(expected) == ["p2", "p3", "p4", "p5", "p6"]
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    for outputs in (found, expected):
        sum((of * torch.linspace(-1, 1, of.shape[-1])).sum() for of in outputs.values()).backward()
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = theirs[name].grad.abs().max()
        assert (parameter.grad - theirs[name].grad).abs().max() <= 1e-4 * scale, name


def test_the_one_of_the_config_is_the_installed_one_if_there_is_one():
    installed = compat.installed_vit()
    backbone = build_backbone(config())
    assert type(backbone) is (installed[1] if installed else SimpleFeaturePyramid)
    assert type(backbone.net) is (installed[0] if installed else ViT)


@torch.no_grad()
def test_without_positions_and_windows_it_is_torchs_encoder():
    torch.manual_seed(0)
    block = randomize(Block(DIM, HEADS, mlp_ratio=2, drop_path=0, window=0, side=None))
    layer = nn.TransformerEncoderLayer(
        *(DIM, HEADS, 2 * DIM, 0.0, "gelu"), layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
    }
    own = block.state_dict()
    for name, tensor in layer.state_dict().items():
        theirs = next((of for of in names if name.startswith(of)), "")
        tensor.copy_(own.pop(names.get(theirs, "") + name.removeprefix(theirs)))
    assert not own
    x = torch.randn(2, 3, 5, DIM)
    expected = layer(x.flatten(1, 2)).view_as(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [3, 4])
def test_attention_on_a_cpu_is_torchs_in_values_and_gradients(side, monkeypatch):
    torch.manual_seed(0)
    attention, x = randomize(Attention(DIM, HEADS, side=3)), torch.randn(2, side, side, DIM)

    def computed():
        output = attention(x)
        names, parameters = zip(*attention.named_parameters(), strict=True)
        weights = torch.linspace(-1, 1, output.numel()).view_as(output)
        return output, dict(
            zip(names, torch.autograd.grad((output * weights).sum(), parameters), strict=True)
        )

    found, gradients = computed()
    monkeypatch.setattr(vit, "_attend_on_cpu", nn.functional.scaled_dot_product_attention)
    expected, wanted = computed()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in wanted.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_a_step_in_bfloat16_is_close_to_that_in_float32():
    torch.manual_seed(0)
    net = randomize(ViT(**SMALL))
    images, steps = torch.randn(2, 3, 96, 96), []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = net(images)["last_feat"]
        output.float().square().mean().backward()
        steps.append((output.float(), net.blocks[0].attn.rel_pos_h.grad.clone()))
    for exact, mixed in zip(*steps, strict=True):
        assert not torch.equal(exact, mixed)
        assert (exact - mixed).norm() <= 0.1 * exact.norm()


@torch.no_grad()
def test_relative_positions_are_added_to_the_scores():
    """Computed for each pair of cells; a table that fits is not interpolated."""
    torch.manual_seed(0)
    side, width = 3, DIM // HEADS
    attention = randomize(Attention(DIM, HEADS, side=side))
    q = torch.randn(1, HEADS, side * side, width)
    found = attention._scores_of_positions(q, side, side)
    for of in range(side * side):
        for to in range(side * side):
            (row, column), (other_row, other_column) = divmod(of, side), divmod(to, side)
            vector = attention.rel_pos_h[row - other_row + side - 1]
            vector = vector + attention.rel_pos_w[column - other_column + side - 1]
            torch.testing.assert_close(found[0, :, of, to], q[0, :, of] @ vector)


def test_relative_positions_begin_at_zero_and_are_interpolated_to_another_grid():
    assert not Attention(DIM, HEADS, side=3).rel_pos_h.any()
    table = torch.arange(5.0)[:, None]  # for 3 places
    assert vectors_of_distances(table, 3)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    longer = vectors_of_distances(table, 6)[..., 0]
    assert longer.shape == (6, 6)
    assert longer[0, 0] == 2  # the same place stays in the middle
    assert longer[5, 0] == 4 and longer[0, 5] == 0


def test_windows_are_cut_and_put_together():
    x = torch.arange(2 * 5 * 7).view(2, 5, 7, 1).float()
    windows, rows = to_windows(x, 4)
    assert windows.shape == (2 * 2 * 2, 4, 4, 1)
    assert torch.equal(windows[0], x[0, :4, :4])
    assert torch.equal(windows[4 + 3][:1, :3], x[1, 4:, 4:])
    assert not windows[3][1:].any() and not windows[3][:, 3:].any()
    assert torch.equal(from_windows(windows, rows, 5, 7), x)


@torch.no_grad()
def test_a_windowed_block_sees_its_window_and_a_window_of_the_whole_grid_everything():
    torch.manual_seed(0)
    block = randomize(Block(DIM, HEADS, mlp_ratio=2, drop_path=0, window=4, side=None))
    x = torch.randn(1, 8, 8, DIM)
    changed = x.clone()
    changed[:, 0, 0] = 9 * torch.randn(DIM)
    moved = (block(changed) - block(x)).abs().sum(-1)[0] > 0
    assert moved[:4, :4].all() and moved.sum() == 16
    small = x[:, :4, :4]
    whole = copy.deepcopy(block)
    whole.window = 0
    torch.testing.assert_close(block(small), whole(small))


@torch.no_grad()
def test_absolute_positions_lose_the_class_token_and_are_interpolated():
    net = ViT(**SMALL)
    grid = net.pos_embed[0, 1:].view(4, 4, DIM)
    assert torch.equal(net._positions(4, 4)[0], grid)
    constant = torch.full_like(net.pos_embed, 3.0)
    constant[:, 0] = -100  # the class token
    net.pos_embed.copy_(constant)
    assert torch.allclose(net._positions(6, 5), torch.full((1, 6, 5, DIM), 3.0))
    without = ViT(**SMALL, pretrain_use_cls_token=False)
    assert torch.equal(without._positions(4, 4)[0].flatten(0, 1), without.pos_embed[0])


def test_drop_path_rises_linearly_and_leaves_an_evaluation_alone():
    net = build_backbone(config(DROP_PATH=0.3)).net
    paths = [block.drop_path for block in net.blocks]
    assert isinstance(paths[0], nn.Identity)
    assert [getattr(path, "p", getattr(path, "drop_prob", 0)) for path in paths[1:]] == (
        pytest.approx([0.1, 0.2, 0.3])
    )
    images = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        assert not torch.equal(net.train()(images)["last_feat"], net(images)["last_feat"])
        assert torch.equal(net.eval()(images)["last_feat"], net(images)["last_feat"])


def test_activation_checkpointing_changes_no_bit():
    """Nor which branches drop path leaves out; also in a copy."""
    images, gradients = torch.randn(2, 3, 96, 96), []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        backbone = build_backbone(config(DROP_PATH=0.5, CHECKPOINT_BLOCKS=checkpointed))
        net = copy.deepcopy(randomize(backbone)).net.train()
        calls = []
        net.blocks[1].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        net(images)["last_feat"].square().sum().backward()
        assert len(calls) == 1 + checkpointed
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *gradients))


def test_global_blocks_are_the_last_of_equal_parts():
    net = build_backbone(config()).net
    name = "window" if isinstance(net, ViT) else "window_size"
    for count, expected in ((0, [4] * 4), (1, [4, 4, 4, 0]), (2, [4, 0, 4, 0]), (4, [0] * 4)):
        blocks = build_backbone(config(GLOBAL_BLOCKS=count)).net.blocks
        assert [getattr(block, name) for block in blocks] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"HEADS": 5}, "EMBED_DIM is 32, but must be a multiple of MOCO.VIT.HEADS, which is 5"),
        ({"GLOBAL_BLOCKS": 3}, "DEPTH is 4, but must be a multiple of MOCO.VIT.GLOBAL_BLOCKS"),
        ({"IMAGE_SIZE": 80}, "IMAGE_SIZE is 80, but must be a multiple of twice MOCO.VIT.PATCH"),
        ({"PRETRAIN_SIZE": 60}, "PRETRAIN_SIZE is 60, but must be a multiple of MOCO.VIT.PATCH"),
        (
            {"PATCH_SIZE": 12, "PRETRAIN_SIZE": 60},
            "PATCH_SIZE is 12.*a power of two; use a network",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_backbone(config(**changes))


@torch.no_grad()
@pytest.mark.parametrize("norm", ["LN", "BN", ""])
def test_levels_have_the_strides_of_an_fpn(norm):
    cfg = config()
    cfg.MODEL.FPN.NORM = norm
    backbone = build_backbone(cfg)
    shapes = {name: (of.channels, of.stride) for name, of in backbone.output_shape().items()}
    assert shapes == {f"p{level}": (16, 2**level) for level in range(2, 7)}
    levels = backbone(torch.randn(1, 3, 96, 96))
    assert {name: of.shape[1:] for name, of in levels.items()} == {
        name: (16, -(-96 // stride), -(-96 // stride)) for name, (_, stride) in shapes.items()
    }


def test_images_of_a_detector_are_padded_to_the_square():
    cfg = config()
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_BOX_HEAD.NORM = "LN"
    model = build_model(cfg)
    assert type(model.roi_heads.box_head.conv1.norm).__name__.endswith("LayerNorm")
    images = [{"image": torch.zeros(3, 50, 96)}, {"image": torch.zeros(3, 70, 30)}]
    assert model.preprocess_image(images).tensor.shape == (2, 3, 96, 96)
    assert model.preprocess_image(images[1:]).tensor.shape == (1, 3, 96, 96)


@pytest.mark.parametrize("module", ["vit", "feature_pyramid", "build_vit"])
def test_a_module_of_it_may_be_the_first_that_imports_detectron2(module):
    result = run_python("-c", f"import moco_d2.transfer.modeling.{module}")
    assert result.returncode == 0, result.stderr
