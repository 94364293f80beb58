"""How much memory a training step needs, before it is taken: an estimate from shapes alone."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from moco_d2.transfer.schedule import SYNCED_NORMS, normed_keys

HOW = (
    "what backbone, RPN and heads save for the backward pass of images as large as INPUT allows, "
    "with weights, gradients, momentum and 1 GiB for the rest"
)
# Workspace of the kernels, proposals, losses: by as much do the figures of Detectron2's
# MODEL_ZOO.md (2 images on a V100: C4 4.8 GB, Mask R-CNN FPN 3.4 GB) lie above what is counted.
_REST = 1 << 30
_COPIES = 3  # of a parameter: itself, its gradient, its momentum
_BYTES = {True: 2, False: 4}  # of an activation, with and without SOLVER.AMP.ENABLED
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def training_bytes(cfg: Any, images: int) -> int:
    """Memory that one pass over `images` images takes in one process, estimated (HOW).

    The model is built and run on torch's meta device: the shapes are real, the numbers are not
    computed.

    Args:
        cfg: as it runs.
        images: of the size of the largest that INPUT allows.
    """
    cfg = _on_meta(cfg)
    with torch.device("meta"):
        model = build_model(cfg)
        pixels = torch.zeros(images, 3, *_largest_image(cfg, model.backbone.size_divisibility))
    model.train()
    saved = _SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda packed: packed):
        features = model.backbone(pixels)
        outputs = [run(features) for run in _heads(cfg, model, images)]
    del outputs
    element = _BYTES[cfg.SOLVER.AMP.ENABLED]
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    weights = 4 * (_COPIES * parameters + frozen)
    return saved.elements * element + weights + _REST


def available_bytes(device: str | torch.device, processes: int) -> int | None:
    """Memory that a process can take: free memory of a GPU, or a share of the machine's.

    Args:
        device: MODEL.DEVICE.
        processes: on this machine.

    Returns:
        None where it cannot be told.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in map(Path, _LIMIT_FILES):
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits) // processes


class _SavedBytes:
    """Counts elements saved for the backward pass: a storage once, and no parameters."""

    def __init__(self, model: nn.Module):
        self.elements = 0
        # Held, so that no other storage takes the place of one that was counted.
        self._seen = {p.untyped_storage()._cdata: p for p in model.parameters()}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            self.elements += storage.nbytes() // tensor.element_size()
        return tensor


def _on_meta(cfg: Any) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    for key, norm in normed_keys(cfg).items():
        if norm in SYNCED_NORMS:  # needs other processes; saves as much
            cfg.merge_from_list([key, "BN"])
    return cfg


def _largest_image(cfg: Any, divisor: int) -> tuple[int, int]:
    """Height and width in pixels, padded as Detectron2 does."""
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.TYPE == "absolute":
        sides = crop.SIZE
    else:
        short = max(cfg.INPUT.MIN_SIZE_TRAIN)
        sides = (short, max(short, cfg.INPUT.MAX_SIZE_TRAIN))
    divisor = max(divisor, 1)
    return tuple(-(-int(side) // divisor) * divisor for side in sides)


def _heads(cfg: Any, model: nn.Module, images: int) -> list[Callable[[dict[str, Tensor]], Any]]:
    """The parts behind the backbone, each as features -> what it gives."""
    found: list[Callable[[dict[str, Tensor]], Any]] = []
    rpn = getattr(model, "proposal_generator", None)
    if hasattr(rpn, "rpn_head"):
        found.append(lambda features: rpn.rpn_head([features[f] for f in rpn.in_features]))
    if hasattr(model, "sem_seg_head"):
        head = model.sem_seg_head
        layers = getattr(head, "layers", None)
        if callable(layers):
            found.append(layers)
    roi_heads = getattr(model, "roi_heads", None)
    if roi_heads is None:
        return found
    regions = images * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    positive = int(regions * cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION)
    if hasattr(roi_heads, "res5"):
        size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = model.backbone.output_shape()[roi_heads.in_features[0]].channels
        found.append(lambda _: roi_heads.res5(_regions(regions, channels, size)))
    for name, key, count in (
        ("box_head", "ROI_BOX_HEAD", regions),
        ("mask_head", "ROI_MASK_HEAD", positive),
        ("keypoint_head", "ROI_KEYPOINT_HEAD", positive),
    ):
        head = getattr(roi_heads, name, None)
        if head is not None and hasattr(roi_heads, "box_head"):
            channels = model.backbone.output_shape()[roi_heads.in_features[0]].channels
            region = _regions(count, channels, cfg.MODEL[key].POOLER_RESOLUTION)
            layers = getattr(head, "layers", head)  # without the losses, which need annotations
            found.append(lambda _, layers=layers, region=region: layers(region))
    return found


def _regions(count: int, channels: int, size: int) -> Tensor:
    return torch.zeros(count, channels, size, size, device="meta", requires_grad=True)
