import json

import pytest
import torch
from support.checkpoint.vits import HEADS, WIDTH, of_transformers, under, vit
from support.commands import run_tool
from support.paths import TOOLS
from torch.nn import functional as F
from torchvision.models import VisionTransformer, resnet18

import moco_d2  # noqa: F401  before detectron2
from moco_d2.checkpoint.backbone import load_backbone
from moco_d2.checkpoint.convert import convert, settings_for, summary
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.vit import mapping
from moco_d2.checkpoint.vit.vits import ViTs
from moco_d2.config.load import task_configs
from moco_d2.errors import UserError
from moco_d2.transfer.modeling.vit import ViT


def refusal(src, dst, **arguments) -> str:
    with pytest.raises(UserError) as caught:
        convert(src, dst, **arguments)
    assert not dst.exists() and "\n" not in str(caught.value)
    return str(caught.value)


def detector_features(weights, report, image, **changes):
    """The features of the detector's own ViT, in windows of 14 patches."""
    settings = settings_for(report)
    network = ViT(
        img_size=224,
        patch_size=settings["MOCO.VIT.PATCH_SIZE"],
        embed_dim=settings["MOCO.VIT.EMBED_DIM"],
        depth=settings["MOCO.VIT.DEPTH"],
        num_heads=settings["MOCO.VIT.HEADS"],
        pretrain_img_size=settings["MOCO.VIT.PRETRAIN_SIZE"],
        pretrain_use_cls_token=settings["MOCO.VIT.PRETRAIN_CLASS_TOKEN"],
        **{"window_size": 14, "window_block_indexes": (0,), **changes},
    )
    tensors = load_checkpoint(weights)["model"]
    prefix = "backbone.net."
    left = network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items()}, False)
    assert not left.unexpected_keys
    assert all(name.endswith(("rel_pos_h", "rel_pos_w")) for name in left.missing_keys)
    with torch.inference_mode():
        return network.eval()(image)["last_feat"]


def test_torchvisions_own_network_arrives_in_the_detectors_backbone(save, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(224, 16, 2, HEADS, WIDTH, 4 * WIDTH, num_classes=5).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0.05, 0.2)
        image = torch.randn(1, 3, 224, 224)
    report = convert(save(network.state_dict()), tmp_path / "w.pth", heads=HEADS)
    assert (report["family"], report["dialect"]) == ("torchvision_vit", "torchvision")
    assert report["tensors_found"] == report["tensors_expected"] == 3 + 12 * 2
    assert report["dropped_keys"] == {"class_token": 1, "encoder.ln.*": 2, "heads.*": 2}
    assert report["parity"]["max"] < report["parity"]["tolerance"] == 1e-4

    with torch.inference_mode():
        x = network.conv_proj(image).flatten(2).transpose(1, 2)
        x = network.encoder.layers(x + network.encoder.pos_embedding[:, 1:])
        expected = x.transpose(1, 2).reshape(1, WIDTH, 14, 14)
    actual = detector_features(tmp_path / "w.pth", report, image)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4
    text = summary(report, tmp_path / "w.pth")
    assert "ViT of 2 blocks, 48 channels, 3 heads" in text and "MOCO.VIT.HEADS 3" in text


@pytest.mark.parametrize(
    ("width", "size"), [(192, "Ti"), (384, "S"), (768, "B"), (1024, "L"), (48, "B")]
)
def test_the_command_that_is_shown_names_the_task_of_the_size(width, size):
    task = ViTs().task(mapping.ViT(width=width, depth=12, heads=3, patch=16, grid=14))
    assert task == f"coco_vitdet_{size}_25ep" and f"{task}_random.yaml" in task_configs()


def test_layer_scale_is_multiplied_into_the_layer_before_it(save, tmp_path):
    state = vit(scaled=True)
    convert(save(state), tmp_path / "w.pth", heads=HEADS)
    tensors = load_checkpoint(tmp_path / "w.pth")["model"]
    for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
        gamma = state[f"blocks.1.{scale}.gamma"]
        weight, bias = (
            tensors[f"backbone.net.blocks.1.{layer}.{leaf}"] for leaf in ("weight", "bias")
        )
        torch.testing.assert_close(weight, gamma[:, None] * state[f"blocks.1.{layer}.weight"])
        torch.testing.assert_close(bias, gamma * state[f"blocks.1.{layer}.bias"])


SMALL = {"width": 384, "depth": 12}
FILES = {
    "moco_v3": (
        lambda s, k: {
            "arch": "vit_small",
            "state_dict": under("module.base_encoder.", s | {"head.0.weight": torch.zeros(2, 2)})
            | under("module.momentum_encoder.", k)
            | {"module.predictor.0.weight": torch.zeros(2)},
        },
        ("vit-s-300ep.pth.tar", SMALL, "moco_v3_vit", 12),
    ),
    "dino": (
        lambda s, k: {
            "student": under("module.backbone.", s) | {"module.head.mlp.0.bias": torch.zeros(2)},
            "teacher": under("backbone.", k) | {"head.mlp.0.bias": torch.zeros(2)},
        },
        ("checkpoint.pth", SMALL, "dino_vit", 6),
    ),
    "deit": (lambda s, k: {"model": s}, ("deit_small_patch16_224-cd65.pth", SMALL, "timm_vit", 6)),
    "dino_released": (lambda s, k: s, ("dino_deitsmall16_pretrain.pth", SMALL, "timm_vit", 6)),
    "deit_3": (
        lambda s, k: {"model": {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"):
                                t for n, t in s.items()}},
        ("deit_3_small_224_1k.pth", SMALL | {"scaled": True, "positions": 196}, "timm_vit", 6),
    ),
    "dinov2": (
        lambda s, k: s | {"mask_token": torch.zeros(1, 384)},
        (
            "dinov2_vits14_pretrain.pth",
            SMALL | {"scaled": True, "patch": 14, "positions": 1370},
            "dinov2",
            6,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_families_say_the_heads(name, save, tmp_path):
    build, (file, size, family, heads) = FILES[name]
    report = convert(save(build(vit(**size), vit(**size, seed=1)), file), tmp_path / "w.pth")
    assert (report["family"], report["vit"]["heads"]) == (family, heads)
    assert report["parity"]["max"] < 1e-4
    assert settings_for(report)["MOCO.VIT.PRETRAIN_SIZE"] == (518 if name == "dinov2" else 224)


def test_a_full_mae_leaves_its_decoder_behind(save, tmp_path):
    decoder = {"decoder_pos_embed": torch.zeros(1, 197, 8), "mask_token": torch.zeros(1, 1, 8)}
    decoder |= under("decoder_", {k: v for k, v in vit(width=16).items() if "blocks" in k})
    report = convert(save({"model": vit() | decoder}), tmp_path / "w.pth", heads=HEADS)
    assert report["family"] == "mae" and report["dropped_keys"]["decoder_*"] == 25


def test_the_moving_average_is_chosen_by_branch(save, tmp_path):
    content = {
        "student": under("module.backbone.", vit()),
        "teacher": under("backbone.", vit(seed=1)),
    }
    for branch, seed in (("query", 0), ("key", 1)):
        convert(save(content), tmp_path / "w.pth", branch=branch, heads=HEADS)
        tensors = load_checkpoint(tmp_path / "w.pth")["model"]
        name = "blocks.0.mlp.fc1.weight"
        assert torch.equal(tensors[f"backbone.net.{name}"], vit(seed=seed)[name])


def test_hugging_faces_network_and_its_config(save, tmp_path):
    state = vit()
    config = {"architectures": ["ViTModel"], "num_attention_heads": 3, "layer_norm_eps": 1e-12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    report = convert(save(under("vit.", of_transformers(state))), tmp_path / "w.pth")
    assert (report["family"], report["vit"]["heads"]) == ("transformers_vit", 3)
    assert report["preprocessing"]["pixel_mean"] == [127.5] * 3 and not report["caveats"]
    tensors = load_checkpoint(tmp_path / "w.pth")["model"]
    name = "blocks.1.attn.qkv.weight"
    assert torch.equal(tensors[f"backbone.net.{name}"], state[name])

    assert "contradictory" in refusal(tmp_path / "source.pth.tar", tmp_path / "n.pth", heads=6)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    assert "hidden_act quick_gelu" in refusal(tmp_path / "source.pth.tar", tmp_path / "n.pth")


def test_positions_of_another_grid_are_interpolated_as_detectron2_does(save, tmp_path):
    state = vit(positions=1 + 20 * 20)
    report = convert(save(state), tmp_path / "w.pth", heads=HEADS)
    assert settings_for(report)["MOCO.VIT.PRETRAIN_SIZE"] == 320
    positions = state["pos_embed"][0, 1:].T.reshape(1, WIDTH, 20, 20)
    resized = F.interpolate(positions, (14, 14), mode="bicubic").flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], resized], 1)
    convert(save(state, "at_224.pth"), tmp_path / "w_224.pth", heads=HEADS)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    large = detector_features(tmp_path / "w.pth", report, image)
    report["vit"]["grid"] = 14
    small = detector_features(tmp_path / "w_224.pth", report, image)
    torch.testing.assert_close(large, small, rtol=0, atol=1e-4)


def test_registers_and_patches_of_14_pixels_come_with_a_caveat(save, tmp_path):
    state = vit(patch=14, positions=1 + 4 + 16 * 16) | {"reg_token": torch.zeros(1, 4, WIDTH)}
    report = convert(save(state), tmp_path / "w.pth", heads=HEADS)
    assert report["vit"]["extra"] == 5 and report["dropped_keys"]["reg_token"] == 1
    assert any("4 register tokens are left out" in caveat for caveat in report["caveats"])
    assert any("power of two" in caveat for caveat in report["caveats"])


def test_a_converted_file_is_known(save, tmp_path):
    convert(save(vit()), tmp_path / "w.pth", heads=HEADS)
    assert "already in Detectron2's format" in refusal(
        tmp_path / "w.pth", tmp_path / "again.pth", heads=HEADS
    )


EXTRA = torch.zeros(WIDTH)
REFUSED = {
    "BEiT": ("the same for all queries", {"blocks.0.attn.relative_position_bias_table": EXTRA}),
    "EVA": ("its keys have none", {"blocks.0.attn.q_bias": EXTRA}),
    "DINOv3": ("rotary positions", {"rope_embed.periods": EXTRA}),
    "CLIP": ("normalizes before its first block", {"norm_pre.weight": EXTRA}),
    "open_clip": (
        "GELU or QuickGELU",
        {"visual.transformer.resblocks.0.attn.in_proj_weight": EXTRA},
    ),
    "query norm": ("normalizes inside its attention", {"blocks.0.attn.q_norm.weight": EXTRA}),
    "SwiGLU": ("gated", {"blocks.0.mlp.w12.weight": EXTRA}),
    "SAM": ("trained relative positions", {"blocks.0.attn.rel_pos_h": EXTRA}),
    "unknown": ("1 unknown (blocks.0.adapter.weight)", {"blocks.0.adapter.weight": EXTRA}),
    "not square": ("no square grid", {"pos_embed": torch.zeros(1, 200, WIDTH)}),
    "gray": ("no squares of color", {"patch_embed.proj.weight": torch.zeros(WIDTH, 1, 16, 16)}),
    "far": ("blocks are missing", {"blocks.900000000.attn.qkv.bias": EXTRA}),
    "shallow": ("hidden channels", {"blocks.0.mlp.fc1.weight": torch.zeros(96, WIDTH)}),
    "not finite": ("NaN or infinite", {"blocks.0.norm1.weight": EXTRA + torch.nan}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_network_is_refused_with_the_reason(name, save, tmp_path):
    reason, tensors = REFUSED[name]
    src = save(vit() | tensors)
    message = refusal(src, tmp_path / "w.pth", heads=HEADS)
    assert reason in message
    if ".0." in next(iter(tensors)):  # nothing among the blocks can be left out
        assert reason in refusal(src, tmp_path / "w.pth", heads=HEADS, drop=("*",))


def test_what_lies_beside_a_resnet_makes_it_no_other_network():
    state = resnet18().state_dict()
    for name in ("stages.0.blocks.0.conv_dw.weight", "ln_pre.weight", "rope_embed.periods"):
        assert ViTs().recognizes({name: EXTRA}), name
        assert not ViTs().recognizes(state | {name: EXTRA}), name


def test_heads_are_asked_for_and_never_guessed(save, tmp_path):
    dst = tmp_path / "w.pth"
    for name, size in (("my.pth", SMALL), ("mocov3_vit_small_patch16.pth", SMALL),
                       ("vit_small_patch16_224.pth", {})):  # fmt: skip
        assert "--heads N" in refusal(save(vit(**size), name), dst)
    assert "do not divide its 48" in refusal(save(vit()), dst, heads=5)
    post_norm = save(vit(), "vit_base_patch16_rpn_224.pth")
    assert "blocks compute something else" in refusal(post_norm, dst, heads=HEADS)
    run = run_tool(TOOLS / "convert.py", str(save(vit())), str(dst), "--heads", "3")
    assert run.returncode == 0 and "3 heads" in run.stdout and dst.is_file()


def test_a_class_token_without_blocks_is_no_vit(save, tmp_path):
    state = {name: tensor for name, tensor in vit().items() if "blocks" not in name}
    assert "none of its blocks among 6 tensors" in refusal(save(state), tmp_path / "w.pth")


def test_other_targets_and_depths_are_refused(save, tmp_path):
    src = save(vit())
    assert "for Detectron2 only" in refusal(src, tmp_path / "w.pth", to="timm", heads=HEADS)
    assert "not a ResNet-50" in refusal(src, tmp_path / "w.pth", heads=HEADS, expect_depth=50)


def test_what_reads_resnets_only_says_so(save):
    with pytest.raises(UserError, match=r"vision transformer \(ViT\), and here only ResNets"):
        load_backbone(save(vit()))
