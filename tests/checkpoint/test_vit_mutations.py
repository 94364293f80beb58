"""Deliberate mistakes of a ViT's conversion: the proof or the account of tensors catches each."""

import dataclasses
import json

import pytest
import torch
from support.checkpoint.vits import HEADS, WIDTH, of_transformers, vit

import moco_d2  # noqa: F401  before detectron2
from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.network import Request
from moco_d2.checkpoint.vit.mapping import to_detectron2
from moco_d2.checkpoint.vit.proof import prove
from moco_d2.checkpoint.vit.vits import ViTs
from moco_d2.errors import UserError

NET = "backbone.net."
QKV = f"{NET}blocks.0.attn.qkv"


def swapped(order):
    """Return a mistake in the order of queries, keys and values."""

    def change(model, settings, source):
        for leaf in ("weight", "bias"):
            parts = model[f"{QKV}.{leaf}"].chunk(3)
            model[f"{QKV}.{leaf}"] = torch.cat([parts[i] for i in order])

    return change


def dropped(layer):
    """Return the mistake that LayerScale is not multiplied into a layer."""

    def change(model, settings, source):
        for leaf in ("weight", "bias"):
            model[f"{NET}blocks.1.{layer}.{leaf}"] = source[f"blocks.1.{layer}.{leaf}"].clone()

    return change


def along_columns(model, settings, source):
    layer = "blocks.0.attn.proj.weight"
    model[NET + layer] = source[layer] * source["blocks.0.ls1"][None, :]


def weight_only(model, settings, source):
    model[f"{NET}blocks.0.mlp.fc2.bias"] = source["blocks.0.mlp.fc2.bias"].clone()


def transposed(name):
    def change(model, settings, source):
        model[NET + name] = model[NET + name].transpose(-1, -2).contiguous()

    return change


def interleaved(model, settings, source):
    """Keep queries, keys and values of a head together, as some projects do."""
    weight = model[f"{QKV}.weight"].view(3, HEADS, -1, WIDTH)
    model[f"{QKV}.weight"] = weight.transpose(0, 1).reshape(3 * WIDTH, WIDTH)


def positions_by_columns(model, settings, source):
    positions = model[f"{NET}pos_embed"]
    grid = positions[:, 1:].view(1, 14, 14, WIDTH).transpose(1, 2).reshape(1, 196, WIDTH)
    model[f"{NET}pos_embed"] = torch.cat([positions[:, :1], grid], 1)


def positions_shifted_by_the_class_token(model, settings, source):
    model[f"{NET}pos_embed"] = model[f"{NET}pos_embed"].roll(1, 1)


def positions_without_the_class_token(model, settings, source):
    model[f"{NET}pos_embed"] = model[f"{NET}pos_embed"][:, 1:]


def positions_left_out(model, settings, source):
    del model[f"{NET}pos_embed"]


def positions_of_another_grid(model, settings, source):
    settings["MOCO.VIT.PRETRAIN_SIZE"] = 384


def a_block_less(model, settings, source):
    settings["MOCO.VIT.DEPTH"] = 1


def a_block_lost(model, settings, source):
    for name in [name for name in model if "blocks.1." in name]:
        del model[name]


def blocks_exchanged(model, settings, source):
    for name in [name for name in model if "blocks.0." in name]:
        other = name.replace("blocks.0.", "blocks.1.")
        model[name], model[other] = model[other], model[name]


def norms_exchanged(model, settings, source):
    first, second = (f"{NET}blocks.0.norm{i}.weight" for i in (1, 2))
    model[first], model[second] = model[second], model[first]


def wrong_heads(model, settings, source):
    settings["MOCO.VIT.HEADS"] = 6


def channels_as_bgr(model, settings, source):
    name = f"{NET}patch_embed.proj.weight"
    model[name] = model[name].flip(1)


def bias_lost(model, settings, source):
    model[f"{QKV}.bias"] = torch.zeros_like(model[f"{QKV}.bias"])


def class_token_kept_as_a_patch(model, settings, source):
    settings["MOCO.VIT.PRETRAIN_CLASS_TOKEN"] = False


def position_of_the_class_token_added(model, settings, source):
    positions = model[f"{NET}pos_embed"]
    model[f"{NET}pos_embed"] = positions + positions[:, :1]


def layer_scale_twice(model, settings, source):
    layer = "blocks.0.mlp.fc2.weight"
    model[NET + layer] = model[NET + layer] * source["blocks.0.ls2"][:, None]


def mlp_backwards(model, settings, source):
    first, second = (f"{NET}blocks.0.mlp.fc{i}.weight" for i in (1, 2))
    model[first], model[second] = model[second].T.contiguous(), model[first].T.contiguous()


def channels_last(model, settings, source):
    """Keep the values of a patch in the order rows, columns, colors, as TensorFlow does."""
    name = f"{NET}patch_embed.proj.weight"
    model[name] = model[name].permute(0, 2, 3, 1).reshape(model[name].shape)


def half_precision(model, settings, source):
    for name in model:
        model[name] = model[name].to(torch.bfloat16).float()


def another_prefix(model, settings, source):
    for name in list(model):
        model[name.replace(NET, "encoder.")] = model.pop(name)


MUTATIONS = {
    "queries and keys swapped": swapped((1, 0, 2)),
    "keys and values swapped": swapped((0, 2, 1)),
    "heads interleaved": interleaved,
    "LayerScale of the attention dropped": dropped("attn.proj"),
    "LayerScale of the MLP dropped": dropped("mlp.fc2"),
    "LayerScale along the wrong side": along_columns,
    "LayerScale not in the bias": weight_only,
    "projection transposed": transposed("blocks.1.attn.proj.weight"),
    "patches transposed": transposed("patch_embed.proj.weight"),
    **{
        function.__name__.replace("_", " "): function
        for function in (
            positions_by_columns,
            positions_shifted_by_the_class_token,
            positions_without_the_class_token,
            positions_left_out,
            positions_of_another_grid,
            a_block_less,
            a_block_lost,
            blocks_exchanged,
            norms_exchanged,
            wrong_heads,
            channels_as_bgr,
            bias_lost,
            class_token_kept_as_a_patch,
            position_of_the_class_token_added,
            layer_scale_twice,
            mlp_backwards,
            channels_last,
            half_precision,
            another_prefix,
        )
    },
}


@pytest.fixture(scope="module")
def proven():
    """The source, its architecture, the content of the file and the settings."""
    kind = ViTs()
    extracted, architecture = kind.extract(vit(scaled=True), Request(heads=HEADS))
    model = {
        NET + name: tensor
        for name, tensor in to_detectron2(extracted.tensors, architecture).items()
    }
    settings = kind.settings(architecture, extracted.traits.input)
    content = {"model": model, "matching_heuristics": True}
    assert prove(content, extracted.tensors, architecture, settings)["max"] < 1e-5
    return extracted.tensors, architecture, model, settings


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mistake_is_caught(mutation, proven):
    source, architecture, model, settings = proven
    model, settings = dict(model), dict(settings)
    MUTATIONS[mutation](model, settings, source)
    with pytest.raises(UserError, match=r"did not arrive|features of the converted network differ"):
        prove({"model": model, "matching_heuristics": True}, source, architecture, settings)


@pytest.mark.parametrize("mistake", [{"heads": 6}, {"eps": 1e-2}, {"extra": 0, "grid": 14}])
def test_a_source_read_wrongly_is_caught(mistake, proven):
    """With other heads, another epsilon of LayerNorm, or its class token as its first patch."""
    source, architecture, model, settings = proven
    if "extra" in mistake:
        source = source | {"pos_embed": source["pos_embed"][:, :-1]}
    other = dataclasses.replace(architecture, **mistake)
    with pytest.raises(UserError, match="features of the converted network differ"):
        prove({"model": model, "matching_heuristics": True}, source, other, settings)


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.proj.bias", "blocks.0.norm2.weight", "patch_embed.proj.bias"]
)
def test_a_tensor_that_the_source_lacks_is_caught(name, save, tmp_path):
    state = vit()
    del state[name]
    with pytest.raises(UserError, match=r"1 missing \(" + name):
        convert(save(state), tmp_path / "w.pth", heads=HEADS)


def test_a_value_that_hugging_faces_network_lacks_is_caught(save, tmp_path):
    state = of_transformers(vit())
    del state["encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(UserError, match=r"1 missing \(blocks.1.attn.k.bias"):
        convert(save(state), tmp_path / "w.pth", heads=HEADS)


def test_an_epsilon_is_caught_where_it_changes_features(save, tmp_path):
    """Detectron2's is 1e-6. Hugging Face's is 1e-12, which matters for small activations only."""
    state = of_transformers(vit())
    for name in state:
        if name.startswith("embeddings."):
            state[name] = state[name] * 1e-3
    with pytest.raises(UserError, match="features of the converted network differ"):
        convert(save(state), tmp_path / "w.pth", heads=HEADS)
    config = {"architectures": ["ViTModel"], "layer_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert(save(state), tmp_path / "w.pth", heads=HEADS)
