"""An estimate of the memory that a training step needs, computed from shapes alone."""

import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from moco_d2.transfer.norms import SYNCED_NORMS, normed_keys
from moco_d2.transfer.preflight.memory_heads import heads
from moco_d2.transfer.preflight.shapes_only import shapes_only

HOW = (
    "the tensors that backbone, RPN, heads and losses save for the backward pass of images as "
    "large as INPUT allows, the weights, their gradients and momentum, and 1 GiB for the rest"
)
# Kernel workspace, proposals and matching. The figures in Detectron2's MODEL_ZOO.md (2 images on a
# V100: C4 4.8 GB, Mask R-CNN FPN 3.4 GB) exceed the counted tensors by this much.
_REST = 1 << 30
# For a moment, the largest logits exist several times beside all saved tensors: the logits or their
# gradient, and the copies that indexing and convolving the gradient make. This matters for a mask
# head with a map per LVIS class, whose logits take 1 GB: its figure in MODEL_ZOO.md is 3.7 GB above
# that for COCO's 80 classes.
_COPIES_OF_LOGITS = 3
_COPIES = 3  # of each parameter: its value, its gradient and its momentum
_BYTES = {True: 2, False: 4}  # per activation, with and without SOLVER.AMP.ENABLED
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def training_bytes(cfg: CfgNode, images: int) -> int:
    """Estimate the bytes that one pass over `images` images takes in one process (HOW).

    The model is built and run on torch's meta device, which computes shapes but no values.

    Args:
        cfg: The config of the run.
        images: Number of images, all of the largest size that INPUT allows.
    """
    cfg = _on_meta(cfg)
    with shapes_only(), torch.device("meta"):
        model = build_model(cfg)
        pixels = torch.zeros(images, 3, *_largest_image(cfg, model.backbone.size_divisibility))
    model.train()
    saved, saved_by_losses = _SavedTensors(model), _SavedTensors(model)
    with shapes_only(), saved.counting():
        features = model.backbone(pixels)
        outputs = [(head, head.run(features)) for head in heads(cfg, model, pixels)]
    with saved_by_losses.counting():
        losses = [head.loss(logits) for head, logits in outputs]
    largest = max((logits.numel() for _, logits in outputs), default=0)
    del outputs, losses
    element = _BYTES[cfg.SOLVER.AMP.ENABLED]
    logits = max(element * largest, 4 * saved_by_losses.largest)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    copies = _COPIES + (cfg.MOCO.OPTIMIZER == "AdamW")  # which keeps the squares, too
    weights = 4 * (copies * parameters + frozen)
    activations = element * saved.elements + 4 * saved_by_losses.elements  # losses have 32 bits
    return activations + _COPIES_OF_LOGITS * logits + weights + _REST


def available_bytes(device: str | torch.device, processes: int) -> int | None:
    """Return the bytes that a process can use: the free memory of a GPU, or an equal part of the
    machine's memory.

    Args:
        device: MODEL.DEVICE.
        processes: Number of processes on this machine.

    Returns:
        The number of bytes; None if it is unknown.
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


class _SavedTensors:
    """Counts elements of tensors that are saved for the backward pass: each storage once, and no
    parameters.

    Attributes:
        elements: Number of elements of all saved tensors.
        largest: Number of elements of the largest one.
    """

    def __init__(self, model: nn.Module):
        self.elements = self.largest = 0
        # A reference keeps each counted storage alive; otherwise a new one could get its address.
        self._seen: dict[int, Tensor] = {p.untyped_storage()._cdata: p for p in model.parameters()}

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return a context in which saved tensors are counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._add, lambda packed: packed)

    def _add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            elements = storage.nbytes() // tensor.element_size()
            self.elements += elements
            self.largest = max(self.largest, elements)
        return tensor


def _on_meta(cfg: CfgNode) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    for key, norm in normed_keys(cfg).items():
        if norm in SYNCED_NORMS:  # these need other processes, and save as much as BN
            cfg.merge_from_list([key, "BN"])
    return cfg


def _largest_image(cfg: CfgNode, divisor: int) -> tuple[int, int]:
    """Return height and width in pixels, padded as Detectron2 does."""
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.TYPE == "absolute":
        sides = crop.SIZE
    else:
        short = max(cfg.INPUT.MIN_SIZE_TRAIN)
        sides = (short, max(short, cfg.INPUT.MAX_SIZE_TRAIN))
    divisor = max(divisor, 1)
    height, width = (-(-int(side) // divisor) * divisor for side in sides)
    return height, width
