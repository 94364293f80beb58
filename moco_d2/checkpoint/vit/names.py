"""Where ViTs are in checkpoints: the names that projects give to their tensors, and the families.

The structure of names finds a network. The family says what no tensor shows: which of two networks
is the moving average, and the number of heads where the project has only one for a width.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from moco_d2.checkpoint.families import Family

# Name of a layer in a block -> the room's name.
_HUGGING_FACE = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    **{f"attention.attention.{part}": f"attn.{part[0]}" for part in ("query", "key", "value")},
    **{f"attention.{part}_proj": f"attn.{part}" for part in "qkv"},
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layer_scale1.lambda1": "ls1",
    "layer_scale2.lambda1": "ls2",
}
_TORCHVISION = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.in_proj_weight": "attn.qkv.weight",
    "self_attention.in_proj_bias": "attn.qkv.bias",
    "self_attention.out_proj": "attn.proj",
    **dict.fromkeys(("mlp.linear_1", "mlp.0"), "mlp.fc1"),
    **dict.fromkeys(("mlp.linear_2", "mlp.3"), "mlp.fc2"),
}
_SAME = {name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
_TIMM = {
    **_SAME,
    **{name: name for name in ("attn.qkv", "attn.proj")},
    **{f"ls{i}.gamma": f"ls{i}" for i in (1, 2)},
    **{f"gamma_{i}": f"ls{i}" for i in (1, 2)},
}


@dataclass(frozen=True, eq=False)
class Names:
    """The names of one project.

    Args:
        name: The name of the project.
        block: A pattern of the beginning of a block's names, with its number as the only group.
        layers: Name in a block -> the room's name.
        outside: Name outside the blocks -> the room's name.
        eps: The epsilon of LayerNorm, where no config states it.
    """

    name: str
    block: str
    layers: Mapping[str, str]
    outside: Mapping[str, str]
    eps: float = 1e-6
    _pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        layers, outside = ("|".join(map(re.escape, table)) for table in (self.layers, self.outside))
        pattern = (
            rf"(?P<prefix>(?:.*\.)?)(?:{self.block}(?P<layer>{layers})(?P<leaf>\.weight|\.bias|)"
            rf"|(?P<outside>{outside}))"
        )
        object.__setattr__(self, "_pattern", re.compile(pattern))

    def split(self, name: str) -> tuple[str, str] | None:
        """Split a name into its prefix and the room's name; None if it is none of a ViT."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        if match["outside"]:
            return match["prefix"], self.outside[match["outside"]]
        return match[
            "prefix"
        ], f"blocks.{match['number']}.{self.layers[match['layer']]}{match['leaf']}"


_PATCHES = [f"patch_embed.proj.{leaf}" for leaf in ("weight", "bias")]
TIMM = Names(
    "timm",
    # DINOv2's training has the blocks in chunks, whose numbers go on.
    r"blocks\.(?:\d+\.)?(?P<number>\d+)\.",
    _TIMM,
    {name: name for name in ("pos_embed", *_PATCHES)},
)
TRANSFORMERS = Names(
    "transformers",
    r"(?:encoder\.layer|layers)\.(?P<number>\d+)\.",
    _SAME | _HUGGING_FACE,
    {
        "embeddings.position_embeddings": "pos_embed",
        **{name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection"): name
           for name in _PATCHES},
    },
    eps=1e-12,  # ViTConfig's
)  # fmt: skip
TORCHVISION = Names(
    "torchvision",
    r"encoder\.layers\.encoder_layer_(?P<number>\d+)\.",
    _TORCHVISION,
    {
        "encoder.pos_embedding": "pos_embed",
        **{name.replace("patch_embed.proj", "conv_proj"): name for name in _PATCHES},
    },
)
NAMES = (TIMM, TRANSFORMERS, TORCHVISION)
# Tensors below a ViT's prefix that Detectron2's backbone has no use for.
CLASS_TOKENS = ("cls_token", "class_token", "embeddings.cls_token")
DISTILLATION_TOKENS = ("dist_token", "embeddings.distillation_token")
SPECIAL = (*CLASS_TOKENS, *DISTILLATION_TOKENS)
LAST_NORMS = ("norm", "layernorm", "encoder.ln")
REGISTERS = ("register_tokens", "reg_token", "embeddings.register_tokens")
HEADS = (
    *SPECIAL, *REGISTERS, "mask_token", "embeddings.mask_token", "masked_embed", "norm.*",
    "fc_norm.*", "head.*", "head_dist.*", "heads.*", "pre_logits.*", "layernorm.*", "pooler.*",
    "decoder_*", "classifier.*", "encoder.ln.*", "last_layer.*",
)  # fmt: skip


@dataclass(frozen=True)
class ViTFamily(Family):
    """The checkpoint files of one project with ViTs.

    Attributes:
        names: The names of its tensors.
        sizes: (channels, blocks) -> heads, where the project has only one number of heads for them.
    """

    names: tuple[Names, ...] = (TIMM,)
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)


class _Anywhere(ViTFamily):
    def role(self, container: str, prefix: str) -> str | None:
        key = re.search(
            r"(?:^|[._:])(?:momentum|teacher|target|ema)(?=[._:]|$)", f"{container}:{prefix}"
        )
        return "key" if key else "query"


_B, _L, HUGE = (768, 12), (1024, 24), (1280, 32)
OF_64 = {(192, 12): 3, (384, 12): 6, _B: 12, _L: 16}
_BESIDE = ("head.*", "dino_head.*", "ibot_head.*", "predictor.*", "decoder.*", "classifier.*")
_LIGHTLY = (
    *("*_head.*", "*backbone.mask_token", "decoder.*", "predictor.*", "prototypes"),
    *("online_classifier.*", "criterion.*"),
)


def _of_lightly(*backbones: str) -> tuple[str, ...]:
    """Return the locations of lightly's masked ViTs."""
    return tuple(f"{place}:{name}.vit." for place in ("state_dict", "") for name in backbones)


# The first family that fits is used.
FAMILIES: tuple[ViTFamily, ...] = (
    ViTFamily(
        name="moco_v3_vit",
        title="MoCo v3, ViT",
        example="vit-s-300ep.pth.tar",
        query=("state_dict:base_encoder.",),
        key=("state_dict:momentum_encoder.",),
        companions=("predictor.*",),
        sizes={(384, 12): 12, _B: 12, _L: 16, HUGE: 16},
    ),
    ViTFamily(
        name="dino_vit",
        title="DINO and iBOT, ViT, training",
        example="dino_deitsmall16_pretrain_full_checkpoint.pth",
        query=("student:backbone.",),
        key=("teacher:backbone.",),
        companions=_BESIDE,
        sizes=OF_64,
    ),
    ViTFamily(
        name="mae",
        title="MAE, the encoder of released and training files",
        example="mae_pretrain_vit_base_full.pth",
        query=("model:",),
        needs=("decoder_*",),
        sizes={_B: 12, _L: 16, HUGE: 16},
    ),
    ViTFamily(
        name="dinov2",
        title="DINOv2, patch 14",
        example="dinov2_vitb14_pretrain.pth",
        query=(":",),
        needs=("mask_token", "blocks.0.ls1.gamma"),
        sizes=OF_64,
    ),
    ViTFamily(
        name="lightly_vit_anchor",
        title="lightly, MSN and PMSN, whose backbone is the moving average of the anchor",
        example="epoch=99-step=500400.ckpt",
        query=_of_lightly("anchor_backbone"),
        key=_of_lightly("backbone"),
        companions=_LIGHTLY,
        needs=("anchor_backbone.mask_token",),
        names=(TIMM, TORCHVISION),
    ),
    ViTFamily(
        name="lightly_vit",
        title="lightly, MAE, DINO, DINOv2, iBOT and others",
        example="epoch=99-step=500400.ckpt",
        query=_of_lightly("student_backbone", "backbone"),
        key=_of_lightly("teacher_backbone"),
        companions=_LIGHTLY,
        needs=("*backbone.mask_token",),
        names=(TIMM, TORCHVISION),
    ),
    ViTFamily(
        name="transformers_vit",
        title="Hugging Face ViTModel, Dinov2Model and ViTMAE, with config.json beside the file",
        example="model.safetensors",
        query=(":vit.", ":dinov2.", ":"),
        companions=_BESIDE,
        names=(TRANSFORMERS,),
    ),
    ViTFamily(
        name="torchvision_vit",
        title="torchvision, vit_b_16, vit_b_32, vit_l_16, vit_l_32, vit_h_14",
        example="vit_b_16-c867db91.pth",
        query=(":",),
        names=(TORCHVISION,),
        sizes={_B: 12, _L: 16, HUGE: 16},
    ),
    ViTFamily(
        name="timm_vit",
        title="timm, DeiT, DeiT-3, and backbones released under timm's names (DINO, iBOT, MAE)",
        example="deit_small_patch16_224-cd65a155.pth",
        query=(":", "model:", "state_dict:"),
        key=("state_dict_ema:", "model_ema:"),
    ),
    _Anywhere(
        name="other_vit",
        title="any file with a complete ViT under one prefix, behind any wrappers",
        example="my_vit.pth",
        query=(),
        companions=_BESIDE,
        names=NAMES,
    ),
)
