"""The networks of tools/linear_eval.py: ViTs of every family with their class token, random ones,
and the input of each.
"""

import json

import pytest
import torch
from support.checkpoint.vits import HEADS, WIDTH, of_transformers, under, vit
from support.commands import run_tool
from support.paths import TOOLS
from support.toy_data import make_class_folders
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from moco_d2.checkpoint.convert import AlreadyConvertedError, convert
from moco_d2.checkpoint.families import IMAGENET
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.errors import UserError
from moco_d2.pretrain.probe.networks import load_network, random_network

SIDE, PATCHES = 48, 9
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def save(tmp_path):
    """Function: tensors, name -> their file."""

    def write(state, name="source.pth"):
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return write


def small(extra=1, **more):
    return vit(positions=PATCHES + extra, **more)


def class_token(state, images, *, special=("cls_token",), eps=1e-6):
    """The class token of a ViT with timm's names, as its project computes it."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps)

    weight, bias = (state[f"patch_embed.proj.{leaf}"] for leaf in ("weight", "bias"))
    patches = F.conv2d(images, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    tokens = torch.cat([state[name] for name in special], 1).expand(len(images), -1, -1)
    positions = state["pos_embed"]
    with_position = positions.shape[1] - PATCHES
    x = torch.cat([tokens[:, :with_position], patches], 1) + positions
    x = torch.cat([x[:, :with_position], tokens[:, with_position:], x[:, with_position:]], 1)
    for i in range(2):
        block = f"blocks.{i}"
        scales = [state.get(f"{block}.ls{j}.gamma", torch.ones(WIDTH)) for j in (1, 2)]
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + scales[0] * linear(y, f"{block}.attn.proj")
        y = linear(
            F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2"
        )
        x = x + scales[1] * y
    return norm(x, "norm")[:, 0]


def features(path, images=IMAGES, **words):
    network, _, width, _ = load_network(path, size=SIDE, **{"heads": HEADS, **words})
    with torch.no_grad():
        found = network.eval()(images)
    assert found.shape == (len(images), width)
    return found


DIST, REGISTERS = torch.randn(1, 1, WIDTH), torch.randn(1, 4, WIDTH)
FILES = {
    "plain": (small(), ("cls_token",)),
    "LayerScale": (small(scaled=True), ("cls_token",)),
    "distilled": (small(2) | {"dist_token": DIST}, ("cls_token", "dist_token")),
    "registers": (small() | {"register_tokens": REGISTERS}, ("cls_token", "register_tokens")),
    "registers with positions": (small(5) | {"reg_token": REGISTERS}, ("cls_token", "reg_token")),
    "class token without position": (small(0), ("cls_token",)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", FILES)
def test_the_class_token_is_that_of_the_project(name, save):
    state, special = FILES[name]
    expected = class_token(state, IMAGES, special=special)
    torch.testing.assert_close(features(save(state)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_names_and_their_epsilon(save):
    state = small()
    expected = class_token(state, IMAGES, eps=1e-12)
    found = features(save(under("vit.", of_transformers(state))))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    torch.manual_seed(0)
    network = VisionTransformer(SIDE, 16, 2, HEADS, WIDTH, 4 * WIDTH, num_classes=5).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.05, 0.2)
    found = features(save(network.state_dict(), "torchvision.pth"))
    network.heads = torch.nn.Identity()
    torch.testing.assert_close(found, network(IMAGES), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_images_have_the_input_of_the_checkpoint(save):
    """Pixels of 127.5 are zero for augreg's ViTs; Caffe's ResNets take BGR with std 1."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET.pixel_mean, IMAGENET.pixel_std))
    pixels = IMAGES * std + mean
    state = small()
    expected = class_token(state, (pixels - 127.5) / 127.5)
    found = features(save(state, "vit_tiny_patch16_augreg.pth"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    slim = Architecture(18, width_factor=1 / 8)
    torch.manual_seed(0)
    network = build_torchvision(slim).eval()
    file = save(network.state_dict(), "resnet18_caffe.pth")
    network.fc = torch.nn.Identity()
    expected = network((pixels - mean).flip(1))
    torch.testing.assert_close(features(file, heads=None), expected, rtol=1e-3, atol=1e-4)


def test_heads_that_no_tensor_shows_are_asked_for(save):
    file = save(small())
    with pytest.raises(UserError, match="name it with --heads N"):
        load_network(file, size=SIDE)
    assert not torch.allclose(features(file, heads=6), features(file))
    network = build_torchvision(Architecture(18, width_factor=1 / 8))
    with pytest.raises(UserError, match="--heads is only for ViTs, and it is a ResNet-18"):
        load_network(save(network.state_dict(), "r.pth"), size=SIDE, heads=3)


def without(state, name):
    return {key: value for key, value in state.items() if not key.startswith(name)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without(small(), "cls_token"), "of timm_vit without class token, which the features"),
        (without(small(), "norm."), "of timm_vit without last norm"),
        (without(small(), "norm.bias"), "of timm_vit without last norm"),
        (
            small() | {"cls_token": torch.zeros(1, 2, WIDTH)},
            r"its cls_token of the shape \[1, 2, 48\]",
        ),
        (small() | {"reg_token": torch.zeros(4, WIDTH)}, r"its token of the shape \[4, 48\]"),
        (small() | {"norm.bias": torch.full((WIDTH,), torch.nan)}, "norm.bias .* is not finite"),
    ],
)
def test_what_has_no_class_token_is_refused(state, message, save):
    with pytest.raises(UserError, match=message):
        load_network(save(state), size=SIDE, heads=HEADS)


def test_a_converted_file_is_refused_and_says_its_heads(save, tmp_path):
    weights = tmp_path / "weights.pth"
    convert(save(small()), weights, heads=HEADS)
    with pytest.raises(UserError, match="give the checkpoint that it was converted from"):
        load_network(weights, size=SIDE)
    with pytest.raises(AlreadyConvertedError):
        convert(weights, tmp_path / "again.pth")


def test_random_vits_follow_the_seed_and_have_the_heads_of_their_name():
    images = torch.randn(2, 3, 32, 32)

    def computed(**words):
        torch.manual_seed(0)
        network, architecture, width, origin = random_network("vit_tiny", size=32, **words)
        assert (width, origin.source, origin.sha256) == (192, "random", None)
        with torch.no_grad():
            return architecture, network.eval()(images)

    architecture, found = computed()
    assert architecture == "ViT of 12 blocks, 192 channels, 3 heads, patch 16 and 2x2 positions"
    assert torch.equal(computed()[1], found)
    architecture, other = computed(heads=6)
    assert "6 heads" in architecture and not torch.allclose(other, found)


@pytest.mark.parametrize(
    ("arch", "words", "message"),
    [
        ("vit_smal", {}, "not one of resnet18, .*vit_tiny, .*vit_small"),
        ("vit_tiny", {"size": 100}, "--size 100 is no multiple of the 16 .*: give --size 96"),
        ("vit_tiny", {"heads": 5}, "--heads 5 does not divide the 192 channels of vit_tiny"),
        ("vit_tiny", {"heads": 0}, "--heads 0 does not divide"),
        ("resnet18", {"heads": 3}, "--heads is only for ViTs, and it is a ResNet-18"),
    ],
)
def test_random_networks_that_cannot_be_built(arch, words, message):
    with pytest.raises(UserError, match=message):
        random_network(arch, **{"size": 32, **words})


def test_the_command_takes_a_random_vit_and_the_heads_of_a_file(save, tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        make_class_folders(tmp_path / "data" / split, count, seed=count)
    for name, words in (
        ("random", ("random", "--arch", "vit_tiny", "--size", 32)),
        ("file", (save(small()), "--heads", HEADS, "--size", SIDE)),
    ):
        done = run_tool(
            *(TOOLS / "linear_eval.py", *words, "--data", tmp_path / "data", "--workers", 0),
            *("--protocol", "knn", "--device", "cpu", "--output", tmp_path / name),
        )
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / name / "result.json").read_text())
        assert " 3 heads," in record["checkpoint"]["architecture"]
