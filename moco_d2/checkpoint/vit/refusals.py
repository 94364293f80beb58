"""Why a file holds no plain ViT."""

import re

# Pattern of a name -> the network that has it, also if none of its names are those of a ViT here.
_NETWORKS = (
    (r"stages\.\d+\.(?:blocks\.|layers\.)?\d+\.(?:conv_dw|dwconv|depthwise_conv)\.",
     "it is a ConvNeXt or similar, and there is no backbone of detectors for it here"),
    (r"layers\.\d+\.blocks\.\d+\.(?:attn|attention)\.",
     "it is a Swin Transformer, whose windows are shifted and whose stages shrink, and there is no "
     "backbone of detectors for it here"),
    (r"\.attns\.\d+\.", "its blocks have parallel branches, and those of Detectron2's ViT do not"),
    (r"(?:^|[._])rope|periods$|storage_tokens|bias_mask$|inv_freq|(?:^|\.)layer\.\d+\.attention\.k_proj\.",
     "it has rotary positions (DINOv3, EVA-02), and Detectron2's ViT has absolute ones"),
    (r"attn_pool\.|(?:^|\.)head\.probe$",
     "it is SigLIP's tower, which pools by attention and was trained with an approximation of GELU "
     "that Detectron2's ViT does not compute"),
    (r"norm_pre\.|ln_pre\.|pre_layrnorm\.|pre_norm\.",
     "it normalizes before its first block (CLIP), and Detectron2's ViT does not"),
    (r"visual\.transformer\.resblocks\.\d+\.attn\.",
     "it is a tower of open_clip, and no tensor shows whether it computes GELU or QuickGELU"),
    (r"attn\.pool_[qkv]\.|pos_embed_window|blocks\.\d+\.proj\.",
     "it has stages of different widths (MViT, Hiera), and Detectron2's plain ViT has one width"),
    (r"rel_pos_[hw]$",
     "it has trained relative positions, as SAM or a fine-tuned ViTDet: it is no pretrained ViT"),
)  # fmt: skip
# The same for names that networks of other kinds may have, too.
_BLOCKS = (
    (r"relative_position_bias_table|rel_pos_bias|attn\.rel_pos\.",
     "its attention (BEiT, EVA) has a table of relative positions, whose bias is the same for all "
     "queries, and Detectron2's ViT has only decomposed ones, which are products with the query"),
    (r"\.q_bias$",
     "its queries and values have a bias and its keys have none (BEiT, EVA), and such networks add "
     "relative or rotary positions, which no tensor may show and Detectron2's ViT does not have"),
    (r"attn\.q_norm\.|attn\.k_norm\.|attn\.norm\.|mlp\.norm\.",
     "it normalizes inside its attention or its MLPs, and Detectron2's ViT does not"),
    (r"mlp\.(?:w12|w3|w1|w2|gate_proj|up_proj|weights_in|fc1_g)\.",
     "its MLPs are gated (SwiGLU), and those of Detectron2's ViT are not"),
    (r"patch_embed\.(?:proj\.\d|backbone|conv)|(?:^|\.)stem\.",
     "its patches come from a stem of convolutions, and those of Detectron2's ViT from one"),
    (r"decoder\.decoder_|\.norm3\.|crossattn|cross_attn",
     "its blocks have other layers than those of Detectron2's ViT"),
)  # fmt: skip
REASONS = (*_NETWORKS, *_BLOCKS)
_ADVICE = "use a checkpoint of a ResNet or of a plain ViT (docs/checkpoints.md lists them)"


def reason(names: list[str]) -> str | None:
    """Return why Detectron2's ViT is not the network with these names; None if none tells."""
    return _first(names, REASONS)


def other_network(names: list[str]) -> str | None:
    """Return the same for a network that needs no block of a ViT to be recognized."""
    return _first(names, _NETWORKS)


def _first(names: list[str], reasons: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, text in reasons:
        if any(re.search(pattern, name) for name in names):
            return f"{text}; {_ADVICE}"
    return None
