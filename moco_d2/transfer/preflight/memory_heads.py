"""What stands behind the backbone, as memory.py runs it: shapes without numbers.

Shapes: R regions of all images, of which P are objects; K classes or keypoints; S x S a map of a
region.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from detectron2.config import CfgNode

Features = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Head:
    """A part of the model.

    Attributes:
        run: features -> logits.
        loss: logits -> what training makes of them, annotations replaced by zeros.
    """

    run: Callable[[Features], Tensor]
    loss: Callable[[Tensor], Any]


def heads(cfg: "CfgNode", model: Any, pixels: Tensor) -> Iterator[Head]:
    """The parts of a model on the meta device.

    Args:
        cfg: of `model`.
        model: an nn.Module of Detectron2, whose parts have no types.
        pixels: (N, 3, H, W) that the backbone was given.
    """
    rpn = getattr(model, "proposal_generator", None)
    if rpn is not None and hasattr(rpn, "rpn_head"):
        yield Head(lambda f: _first(rpn.rpn_head([f[name] for name in rpn.in_features])), _nothing)
    head = getattr(model, "sem_seg_head", None)
    if head is not None and callable(getattr(head, "layers", None)):
        labels = torch.zeros_like(pixels[:, 0], dtype=torch.long)
        yield Head(head.layers, lambda logits: head.losses(logits, labels))
    roi_heads = getattr(model, "roi_heads", None)
    if roi_heads is not None:
        yield from _of_regions(cfg, model, roi_heads, len(pixels))


def _of_regions(cfg: "CfgNode", model: Any, roi_heads: Any, images: int) -> Iterator[Head]:
    regions = images * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    objects = int(regions * cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION)
    channels = model.backbone.output_shape()[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
    size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    pooled = _zeros(regions, channels, size)
    if hasattr(roi_heads, "res5"):
        predict = roi_heads.box_predictor
        yield Head(lambda _: predict(roi_heads.res5(pooled).mean((2, 3)))[0], _of_classes)
    elif hasattr(roi_heads, "box_head"):
        yield Head(lambda _: roi_heads.box_predictor(roi_heads.box_head(pooled))[0], _of_classes)
    for name, key, loss in (
        ("mask_head", "ROI_MASK_HEAD", _of_maps),
        ("keypoint_head", "ROI_KEYPOINT_HEAD", _of_places),
    ):
        head = getattr(roi_heads, name, None)
        if head is None:
            continue
        if hasattr(roi_heads, "res5"):  # whose output it shares, halved by its stride
            of_objects = _zeros(objects, roi_heads.box_predictor.cls_score.in_features, size // 2)
        else:
            of_objects = _zeros(objects, channels, cfg.MODEL[key].POOLER_RESOLUTION)
        yield Head(functools.partial(_run_layers, head, of_objects), loss)


def _run_layers(head: Any, of_objects: Tensor, features: Features) -> Tensor:
    return head.layers(of_objects)


def _zeros(count: int, channels: int, size: int) -> Tensor:
    return torch.zeros(count, channels, size, size, device="meta", requires_grad=True)


def _first(outputs: tuple[list[Tensor], ...]) -> Tensor:
    """Of the RPN's logits the largest; it has one for each anchor."""
    return outputs[0][0]


def _nothing(logits: Tensor) -> None:
    """The RPN's loss is of 256 anchors an image."""


def _labels(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.long, device="meta")


def _of_classes(logits: Tensor) -> Tensor:
    """Cross-entropy of (R, K + 1)."""
    return F.cross_entropy(logits, _labels(len(logits)))


def _of_maps(logits: Tensor) -> Tensor:
    """Of (P, K, S, S) the map of each object's own class."""
    own = logits[torch.arange(len(logits), device="meta"), _labels(len(logits))]
    return F.binary_cross_entropy_with_logits(own, torch.zeros_like(own))


def _of_places(logits: Tensor) -> Tensor:
    """Cross-entropy over the places of (P, K, S, S)."""
    flat = logits.flatten(2).flatten(0, 1)
    return F.cross_entropy(flat, _labels(len(flat)))
