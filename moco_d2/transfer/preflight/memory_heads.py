"""The parts of a model after the backbone, in the form in which memory.py runs them on the meta
device.

Shapes: R is the number of regions of all images, P the number of objects among them, K the number
of classes or keypoints, and S x S the size of a region's map.
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
        run: Function from features to logits.
        loss: Function from logits to the loss; zeros stand for the annotations.
    """

    run: Callable[[Features], Tensor]
    loss: Callable[[Tensor], Any]


def heads(cfg: "CfgNode", model: Any, pixels: Tensor) -> Iterator[Head]:
    """Yield the parts of a model on the meta device.

    Args:
        cfg: The config of `model`.
        model: A model of Detectron2; its parts have no static types.
        pixels: The input of the backbone, (N, 3, H, W).
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
        yield from _region_heads(cfg, model, roi_heads, len(pixels))


def _region_heads(cfg: "CfgNode", model: Any, roi_heads: Any, images: int) -> Iterator[Head]:
    regions = images * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    objects = int(regions * cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION)
    channels = model.backbone.output_shape()[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
    size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    pooled = _zeros(regions, channels, size)
    if hasattr(roi_heads, "res5"):
        predict = roi_heads.box_predictor
        yield Head(lambda _: predict(roi_heads.res5(pooled).mean((2, 3)))[0], _class_loss)
    elif hasattr(roi_heads, "box_head"):
        yield Head(lambda _: roi_heads.box_predictor(roi_heads.box_head(pooled))[0], _class_loss)
    for name, key, loss in (
        ("mask_head", "ROI_MASK_HEAD", _mask_loss),
        ("keypoint_head", "ROI_KEYPOINT_HEAD", _keypoint_loss),
    ):
        head = getattr(roi_heads, name, None)
        if head is None:
            continue
        if hasattr(roi_heads, "res5"):  # the head gets the output of res5, which has stride 2
            inputs = _zeros(objects, roi_heads.box_predictor.cls_score.in_features, size // 2)
        else:
            inputs = _zeros(objects, channels, cfg.MODEL[key].POOLER_RESOLUTION)
        yield Head(functools.partial(_run_layers, head, inputs), loss)


def _run_layers(head: Any, inputs: Tensor, features: Features) -> Tensor:
    return head.layers(inputs)


def _zeros(count: int, channels: int, size: int) -> Tensor:
    return torch.zeros(count, channels, size, size, device="meta", requires_grad=True)


def _first(outputs: tuple[list[Tensor], ...]) -> Tensor:
    """Return the objectness logits of the finest level, the RPN's largest ones."""
    return outputs[0][0]


def _nothing(logits: Tensor) -> None:
    """Compute no loss: the RPN's is over only 256 anchors per image."""


def _labels(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.long, device="meta")


def _class_loss(logits: Tensor) -> Tensor:
    """Return the cross-entropy of (R, K + 1)."""
    return F.cross_entropy(logits, _labels(len(logits)))


def _mask_loss(logits: Tensor) -> Tensor:
    """Return the binary cross-entropy of the map of each object's own class in (P, K, S, S)."""
    own = logits[torch.arange(len(logits), device="meta"), _labels(len(logits))]
    return F.binary_cross_entropy_with_logits(own, torch.zeros_like(own))


def _keypoint_loss(logits: Tensor) -> Tensor:
    """Return the cross-entropy over the S x S locations of (P, K, S, S)."""
    flat = logits.flatten(2).flatten(0, 1)
    return F.cross_entropy(flat, _labels(len(flat)))
