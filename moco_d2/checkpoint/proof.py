"""Proves a conversion: torchvision and Detectron2 compute the same features."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moco_d2.checkpoint.mapping import (
    Architecture,
    build_torchvision,
    detectron2_settings,
    expected_tensors,
    own_builder_of,
    to_detectron2,
    without_values,
)
from moco_d2.errors import UserError
from moco_d2.resnet import build_basic_resnet

# Largest relative difference of two correct networks in float32. A swapped convolution, a stride in
# the wrong layer or a missing statistic gives more than 1e-2.
TOLERANCE = 1e-5
# Odd sizes reveal a wrong padding or stride at the borders. With this small image a proof takes
# about a second.
_IMAGE_SHAPE = (1, 3, 97, 129)
_STAGES = ("res2", "res3", "res4", "res5")


def prove(
    content: Mapping[str, Any], reference: Mapping[str, Tensor], architecture: Architecture
) -> dict[str, float]:
    """Load Detectron2 weights the way Detectron2 does, and compare with torchvision's network.

    Args:
        content: The content of the file of weights.
        reference: torchvision name -> tensor from the source checkpoint, in float32.
        architecture: The network's architecture.

    Returns:
        The largest relative difference of the features of one random image, max|a - b| / max|a| in
        eval mode and float32, for res2 .. res5, and as "max" over all of them.

    Raises:
        UserError: If a tensor did not arrive, or the features differ by more than `TOLERANCE`.
    """
    # fork_rng keeps the caller's random state.
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        backbone = _detectron2_backbone(content, architecture)
        _check_arrival(backbone, reference, architecture)
        with without_values():  # a layer that the reference lacks (fc) cannot be used
            network = build_torchvision(architecture).eval()
        network.load_state_dict(dict(reference), strict=False, assign=True)
        image = torch.randn(_IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))
        features = backbone(image)
        x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
        differences: dict[str, float] = {}
        for stage, layer in zip(_STAGES, ("layer1", "layer2", "layer3", "layer4"), strict=True):
            x = getattr(network, layer)(x)
            differences[stage] = relative_difference(stage, x, features[stage])
    return {**differences, "max": max(differences.values())}


def _detectron2_backbone(content: Mapping[str, Any], architecture: Architecture) -> nn.Module:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    settings = {
        **detectron2_settings(architecture),
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": list(_STAGES),
        "MODEL.BACKBONE.FREEZE_AT": 0,
    }
    cfg = get_cfg()
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    build = build_basic_resnet if own_builder_of(architecture) else build_resnet_backbone
    with without_values():
        backbone = build(cfg, ShapeSpec(channels=3)).eval()
    backbone.to_empty(device="cpu")
    for tensor in backbone.state_dict().values():  # NaN reveals a tensor that does not arrive
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    # load() calls this with the content of a file.
    DetectionCheckpointer(backbone)._load_model(dict(content))
    return backbone


def _check_arrival(
    backbone: nn.Module, reference: Mapping[str, Tensor], architecture: Architecture
) -> None:
    """Check that every tensor of Detectron2's backbone has the value of the source checkpoint."""
    loaded = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    source = {to_detectron2(name): reference[name] for name in expected_tensors(architecture)}
    absent = [
        name
        for name in source.keys() | loaded.keys()
        if name not in source
        or name not in loaded
        or not torch.equal(loaded[name], source[name].to(loaded[name].dtype))
    ]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(source)} tensors did not arrive in Detectron2's backbone "
            f"(first: {min(absent)}), so nothing was written; please report this with the versions "
            "of torch and detectron2"
        )


def relative_difference(
    stage: str,
    expected: Tensor,
    actual: Tensor,
    tolerance: float = TOLERANCE,
    advice: str = "check the checkpoint's BatchNorm statistics",
) -> float:
    """Return max|expected - actual| / max|expected|.

    Raises:
        UserError: If nothing can be proven with these features, or it is not below `tolerance`.
    """
    scale = float(expected.abs().max())
    if not math.isfinite(scale):
        raise UserError(
            f"the {stage} features that the original network computes for a random image are not "
            "finite: its weights are so large that float32 overflows; use an earlier checkpoint"
        )
    if scale == 0:
        raise UserError(
            f"every {stage} feature of a random image is zero: the network is dead, so nothing can "
            "be proven about it; use another checkpoint"
        )
    difference = float((expected - actual).abs().max()) / scale
    if not difference < tolerance:  # also when it is NaN
        raise UserError(
            f"{stage} features of the converted network differ from the original by "
            f"{difference:.1e} (relative; up to {tolerance:.0e} is rounding), so nothing was "
            f"written; {advice}"
        )
    return difference
