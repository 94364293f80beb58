"""Why a file with transformer blocks holds no plain ViT."""

import re

# Patterns of names -> why Detectron2's ViT cannot be the network that has them.
REASONS = (
    (r"(?:^|\.)layers\.\d+\.blocks\.|encoder\.layers\.\d+\.blocks\.",
     "it is a Swin Transformer, whose windows are shifted and whose stages shrink"),
    (r"rope|periods$|storage_tokens|bias_mask$|inv_freq",
     "it has rotary positions (DINOv3, EVA-02), and Detectron2's ViT has absolute ones"),
    (r"relative_position_bias_table|rel_pos_bias|\.q_bias$",
     "its attention (BEiT, EVA) has a table of relative positions, and Detectron2's ViT has "
     "only decomposed ones"),
    (r"rel_pos_h$|rel_pos_w$",
     "it has trained relative positions, as SAM or a fine-tuned ViTDet: it is no pretrained ViT"),
    (r"resblocks\.\d+|norm_pre\.|ln_pre\.|pre_layrnorm\.|pre_norm\.",
     "it normalizes before its first block (CLIP), and Detectron2's ViT does not"),
    (r"attn\.q_norm\.|attn\.k_norm\.|attn\.norm\.|mlp\.norm\.",
     "it normalizes inside its attention or its MLPs, and Detectron2's ViT does not"),
    (r"mlp\.(?:w12|w3|w1|w2|gate_proj|up_proj|weights_in|fc1_g)\.",
     "its MLPs are gated (SwiGLU), and those of Detectron2's ViT are not"),
    (r"patch_embed\.(?:proj\.\d|backbone|conv)|(?:^|\.)stem\.",
     "its patches come from a stem of convolutions, and those of Detectron2's ViT from one"),
    (r"decoder\.decoder_|\.\d+\.attns\.|\.norm3\.|crossattn|cross_attn",
     "its blocks have other layers than those of Detectron2's ViT"),
)  # fmt: skip


def reason(names: list[str]) -> str | None:
    """Return why Detectron2's ViT is not the network with these names; None if none tells."""
    for pattern, text in REASONS:
        if any(re.search(pattern, name) for name in names):
            return f"{text}; use a plain ViT's checkpoint (docs/checkpoints.md lists them)"
    return None
