"""Files as lightly, torchvision, transformers and open_clip write them."""

from pathlib import Path
from typing import Any

import lightly.models.modules as lightly
import open_clip.model
import timm
import torch
import transformers
from lightly.models.modules.heads import MSNProjectionHead
from made import TINY, made_by, of_timm, of_torchvision, of_transformers, random
from torch import nn
from torchvision.models import VisionTransformer


def lightning(folder: Path, module: nn.Module) -> str:
    torch.save(
        {"epoch": 9, "global_step": 100, "pytorch-lightning_version": "2.6.6",
         "state_dict": module.state_dict()},
        folder / "epoch=9-step=100.ckpt",
    )  # fmt: skip
    return "epoch=9-step=100.ckpt"


@made_by("lightly", "MaskedVisionTransformerTIMM, MAEDecoderTIMM", "MAE", heads=3)
def _lightly_mae(folder):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    decoder = lightly.MAEDecoderTIMM(
        num_patches=196, patch_size=16, embed_dim=192, decoder_embed_dim=48, decoder_depth=1,
        decoder_num_heads=3, mlp_ratio=4.0, proj_drop_rate=0.0, attn_drop_rate=0.0,
    )  # fmt: skip
    module = nn.ModuleDict(
        {"backbone": lightly.MaskedVisionTransformerTIMM(vit=vit), "decoder": decoder}
    )
    random(module)
    return lightning(folder, module), of_timm(vit)


@made_by("lightly", "MaskedVisionTransformerTIMM, DINOProjectionHead", "DINO", heads=3)
def _lightly_dino(folder):
    networks = [timm.create_model("vit_tiny_patch16_224", num_classes=0) for _ in range(2)]
    parts = {}
    for name, network in zip(("student", "teacher"), networks, strict=True):
        parts[f"{name}_backbone"] = lightly.MaskedVisionTransformerTIMM(vit=network)
        parts[f"{name}_head"] = lightly.DINOProjectionHead(192, 16, 8, 32)
    return lightning(folder, random(nn.ModuleDict(parts))), of_timm(networks[0])


@made_by("lightly", "MaskedVisionTransformerTorchvision", "I-JEPA", heads=3)
def _lightly_torchvision(folder):
    network = VisionTransformer(224, 16, 12, 3, 192, 768, num_classes=5)
    module = nn.ModuleDict({"backbone": lightly.MaskedVisionTransformerTorchvision(vit=network)})
    return lightning(folder, random(module)), of_torchvision(network)


@made_by("lightly", "MaskedVisionTransformerTIMM, MSNProjectionHead", "MSN", heads=3)
def _lightly_msn(folder):
    networks = [timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY) for _ in range(2)]
    module = nn.ModuleDict()
    for prefix, network in zip(("", "anchor_"), networks, strict=True):
        module[f"{prefix}backbone"] = lightly.MaskedVisionTransformerTIMM(vit=network)
        module[f"{prefix}projection_head"] = MSNProjectionHead(48, 16, 8)
    module.register_parameter("prototypes", nn.Parameter(torch.zeros(4, 8)))
    return lightning(folder, random(module)), of_timm(networks[1])


@made_by("torchvision", "VisionTransformer", "state_dict", heads=3)
def _torchvision(folder):
    network = random(VisionTransformer(224, 16, 2, 3, 48, 192, num_classes=5))
    torch.save(network.state_dict(), folder / "vit.pth")
    return "vit.pth", of_torchvision(network)


HUGGING_FACE = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
}
_DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
}
_SWIN = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4]}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
for _name, _arguments, _plain in (
    ("ViTModel", HUGGING_FACE, True),
    ("ViTForImageClassification", HUGGING_FACE, True),
    ("ViTMAEForPreTraining", HUGGING_FACE | _DECODER, True),
    ("ViTMSNModel", HUGGING_FACE, True),
    ("DeiTModel", HUGGING_FACE, True),
    ("IJepaModel", HUGGING_FACE, True),
    ("Dinov2Model", HUGGING_FACE | {"image_size": 224, "patch_size": 14}, True),
    ("Dinov2WithRegistersModel", HUGGING_FACE | {"image_size": 224, "patch_size": 14}, True),
    ("Dinov2Model", HUGGING_FACE | {"use_swiglu_ffn": True}, False),
    ("BeitModel", HUGGING_FACE | {"use_relative_position_bias": True}, False),
    ("Data2VecVisionModel", HUGGING_FACE, False),
    ("DINOv3ViTModel", HUGGING_FACE | {"num_register_tokens": 4}, False),
    ("CLIPVisionModel", HUGGING_FACE, False),
    ("SiglipVisionModel", HUGGING_FACE, False),
    ("VitDetModel", HUGGING_FACE | {"use_relative_position_embeddings": True}, False),
    ("SwinModel", _SWIN, False),
    ("Swinv2Model", _SWIN, False),
    ("ConvNextModel", _STAGES, False),
    ("ConvNextV2Model", _STAGES, False),
    ("DINOv3ConvNextModel", _STAGES, False),
):  # fmt: skip

    def _save(folder: Path, name=_name, arguments=_arguments, plain=_plain):
        of = getattr(transformers, name)
        network = random(of(of.config_class(**arguments)))
        network.save_pretrained(folder)
        if name == "ViTModel":
            transformers.ViTImageProcessor().save_pretrained(folder)
        body = getattr(network, network.base_model_prefix, network)
        expected = of_transformers(body) if plain else None
        return "model.safetensors", expected

    made_by(
        "transformers", _name, "gated MLPs" if "use_swiglu_ffn" in _arguments else "save_pretrained"
    )(_save)


@made_by("open_clip", "CLIP", "both towers")
def _open_clip(folder):
    network = _clip(quick_gelu=True)
    torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")
    return "open_clip_pytorch_model.bin", None


@made_by("open_clip", "VisionTransformer", "the visual tower alone")
def _open_clip_visual(folder):
    torch.save(_clip().visual.state_dict(), folder / "visual.pt")
    return "visual.pt", None


@made_by("open_clip", "TimmModel", "SigLIP's visual tower")
def _open_clip_timm(folder):
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": False,
              "timm_pool": "map", "timm_proj": "none", "image_size": 224, "layers": 2}  # fmt: skip
    network = _clip(vision)
    torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")
    return "open_clip_pytorch_model.bin", None


def _clip(vision: dict[str, Any] | None = None, **more: Any) -> nn.Module:
    if vision is None:
        vision = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": 224}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    embed = 768 if "timm_model_name" in vision else 32
    return random(open_clip.model.CLIP(embed, vision, text, **more))
