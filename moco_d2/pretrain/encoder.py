"""torchvision ResNets with the projection heads of MoCo v1 (linear) and v2 (two layers).

Legend: N batch, C embedding dimension, D width of the last stage (512 or 2048).
"""

from collections.abc import Callable

from torch import nn
from torchvision import models

from moco_d2.errors import UserError, closest

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
BASIC_BLOCK_ARCHITECTURES = ("resnet18", "resnet34")


def build_encoder(
    arch: str,
    *,
    dim: int,
    mlp: bool = False,
    width_per_group: int = 64,
    norm_layer: Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """A ResNet whose ``fc`` maps its pooled features to `dim` outputs: images (N, 3, H, W) -> (N,
    dim).

    Parameter names are torchvision's, and those of the official MoCo checkpoints: ``fc.weight``
    with the linear head, ``fc.0`` and ``fc.2`` with the MLP (v2, section 2: Linear(D, D), ReLU,
    Linear(D, C)).

    Raises:
        UserError: unknown `arch`, or a `width_per_group` that the architecture does not have.
    """
    if arch not in ARCHITECTURES:
        raise UserError(
            f"MOCO.ENCODER.ARCH {arch!r} is not one of {', '.join(ARCHITECTURES)}; "
            f"{closest(arch, ARCHITECTURES) or 'choose one of them'}"
        )
    if arch in BASIC_BLOCK_ARCHITECTURES and width_per_group != 64:
        raise UserError(
            f"{arch} has no bottlenecks to make wider or slimmer: set "
            "MOCO.ENCODER.WIDTH_PER_GROUP 64"
        )
    network = models.get_model(
        arch, num_classes=dim, width_per_group=width_per_group, norm_layer=norm_layer
    )
    if mlp:
        width = network.fc.in_features
        network.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), network.fc)
    return network
