"""Build torchvision ResNets and ViTs, with the projection heads of MoCo v1 (linear) and v2 (two
layers). moco_v3.py exchanges the head for its own.

Legend: N batch, C embedding dimension, D width of the last stage (512 or 2048, times width_factor).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from moco_d2.errors import UserError
from moco_d2.pretrain.model.vit import VITS, build_vit
from moco_d2.resnet import BASIC_DEPTHS, BOTTLENECK_DEPTHS, STEM_WIDTH, SmallMapConv, build_resnet

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_DEPTHS = {f"resnet{depth}": depth for depth in (*BASIC_DEPTHS, *BOTTLENECK_DEPTHS)}
ARCHITECTURES = tuple(_DEPTHS)


def build_encoder(
    arch: str,
    *,
    dim: int,
    mlp: bool = False,
    groups: int = 1,
    width_per_group: int = 64,
    width_factor: float = 1,
    small_stem: bool = False,
    image_size: int = 224,
    freeze_patches: bool = False,
    norm_layer: Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """Build a ResNet or ViT with a projection head: images (N, 3, H, W) -> embeddings (N, dim).

    Parameter names are those of torchvision and of the official MoCo checkpoints. The linear head
    is ``fc.weight``. The MLP has ``fc.0`` and ``fc.2`` (v2, section 2: Linear(D, D), ReLU,
    Linear(D, C)).

    Args:
        arch: One of ARCHITECTURES or VITS.
        dim: C.
        mlp: Whether the head is the MLP.
        groups, width_per_group: Shape of the 3x3 convolutions in bottlenecks, as in torchvision.
            ResNeXt-50 32x8d has 32 and 8.
        width_factor: Factor on every number of channels; 64 times it must be an integer.
        small_stem: Use a 3x3 convolution of stride 1 and no pooling, for images of 32 pixels
            (authors' CIFAR demo). Detectron2 has no such network.
        image_size: H and W, on which a ViT's positions depend.
        freeze_patches: Whether a ViT's patch projection is not trained.
        norm_layer: Builds a normalization layer from a number of channels.

    Raises:
        UserError: If the architecture does not exist in this width.
        KeyError: If there is no such architecture.
    """
    if arch in VITS:
        if (width_per_group, groups, small_stem) != (64, 1, False):
            raise UserError(
                f"{arch} has no convolutions for MOCO.ENCODER.WIDTH_PER_GROUP, GROUPS and "
                "SMALL_STEM: leave them out"
            )
        return build_vit(
            arch,
            dim,
            size=image_size,
            width_factor=width_factor,
            freeze_patches=freeze_patches,
        )
    if freeze_patches:
        raise UserError(f"{arch} has no patches: set MOCO.ENCODER.FREEZE_PATCHES False")
    depth = _DEPTHS[arch]
    if depth in BASIC_DEPTHS and (width_per_group, groups) != (64, 1):
        raise UserError(
            f"{arch} has no bottlenecks, which MOCO.ENCODER.WIDTH_PER_GROUP and GROUPS change: set "
            "MOCO.ENCODER.WIDTH_PER_GROUP 64 and MOCO.ENCODER.GROUPS 1"
        )
    if STEM_WIDTH * width_factor % 1:
        raise UserError(
            f"MOCO.ENCODER.WIDTH_FACTOR {width_factor} gives {STEM_WIDTH * width_factor} channels: "
            f"choose a multiple of 1/{STEM_WIDTH}, as 0.25"
        )
    network = build_resnet(
        depth,
        num_classes=dim,
        groups=groups,
        width_per_group=width_per_group,
        width_factor=width_factor,
        norm_layer=norm_layer,
    )
    for layer in network.layer4.modules():  # on images of 32 pixels, its maps have one cell
        if type(layer) is nn.Conv2d:
            layer.__class__ = SmallMapConv
    if small_stem:
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.add_module("maxpool", nn.Identity())
    if mlp:
        width = network.fc.in_features
        network.add_module("fc", nn.Sequential(nn.Linear(width, width), nn.ReLU(), network.fc))
    return network


def encoder_options(cfg: "CfgNode") -> dict[str, Any]:
    """Return the arguments of build_encoder in ``cfg.MOCO.ENCODER``, except for the head."""
    encoder = cfg.MOCO.ENCODER
    return {
        "groups": encoder.GROUPS,
        "width_per_group": encoder.WIDTH_PER_GROUP,
        "width_factor": encoder.WIDTH_FACTOR,
        "small_stem": encoder.SMALL_STEM,
        "image_size": cfg.MOCO.AUGMENTATION.SIZE,
        "freeze_patches": encoder.FREEZE_PATCHES,
    }


def head_name(network: nn.Module) -> str:
    """Return the name of a network's head: ``head`` in ViTs, ``fc`` in torchvision's ResNets."""
    return "head" if hasattr(network, "head") else "fc"
