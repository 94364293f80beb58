"""How much memory a training step needs, before it is taken: an estimate from shapes alone."""

import os
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from moco_d2.transfer.preflight.memory_heads import heads
from moco_d2.transfer.schedule import SYNCED_NORMS, normed_keys

HOW = (
    "what backbone, RPN, heads and losses save for the backward pass of images as large as INPUT "
    "allows, with weights, gradients, momentum and 1 GiB for the rest"
)
# Workspace of the kernels, proposals, matching: by as much do the figures of Detectron2's
# MODEL_ZOO.md (2 images on a V100: C4 4.8 GB, Mask R-CNN FPN 3.4 GB) lie above what is counted.
_REST = 1 << 30
# Of the largest logits there are, for a moment and beside all that is saved, themselves or their
# gradient, and what indexing and convolving that gradient copies. Matters where a head has a map
# for each of LVIS' classes: 1 GB of logits, and 3.7 GB between its figure in MODEL_ZOO.md and
# that of COCO's 80 classes.
_COPIES_OF_LOGITS = 3
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
    saved, of_losses = _SavedBytes(model), _SavedBytes(model)
    with saved.counting():
        features = model.backbone(pixels)
        outputs = [(head, head.run(features)) for head in heads(cfg, model, pixels)]
    with of_losses.counting():
        losses = [head.loss(logits) for head, logits in outputs]
    largest = max((logits.numel() for _, logits in outputs), default=0)
    del outputs, losses
    element = _BYTES[cfg.SOLVER.AMP.ENABLED]
    logits = max(element * largest, 4 * of_losses.largest)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    weights = 4 * (_COPIES * parameters + frozen)
    activations = element * saved.elements + 4 * of_losses.elements  # losses are in 32 bits
    return activations + _COPIES_OF_LOGITS * logits + weights + _REST


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
    """Counts elements saved for the backward pass: a storage once, and no parameters.

    Attributes:
        elements: of all that is saved.
        largest: of the largest tensor.
    """

    def __init__(self, model: nn.Module):
        self.elements = self.largest = 0
        # Held, so that no other storage takes the place of one that was counted.
        self._seen: dict[int, Tensor] = {p.untyped_storage()._cdata: p for p in model.parameters()}

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context in which everything saved is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._add, lambda packed: packed)

    def _add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            elements = storage.nbytes() // tensor.element_size()
            self.elements += elements
            self.largest = max(self.largest, elements)
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
    height, width = (-(-int(side) // divisor) * divisor for side in sides)
    return height, width
