"""AdamW with a learning rate per layer of a ViT, which Detectron2's config does not offer."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from moco_d2.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_BLOCK = re.compile(r"backbone\.net\.blocks\.(\d+)\.")
_FIRST = ("backbone.net.pos_embed", "backbone.net.patch_embed.")


def build_adamw(cfg: "CfgNode", model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW with the settings of SOLVER, MOCO.VIT.LAYER_DECAY and no weight decay of
    absolute positions, as in Detectron2's ViTDet.

    Raises:
        UserError: If the layer decay does not reach every layer of the ViT.
    """
    solver, vit = cfg.SOLVER, cfg.MOCO.VIT
    names = {parameter: name for name, parameter in model.named_parameters()}
    if vit.LAYER_DECAY < 1:
        _check_reached(names.values(), vit.LAYER_DECAY, vit.DEPTH)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides={"pos_embed": {"weight_decay": 0.0}},
    ):
        for parameter in group["params"]:
            factor = layer_factor(names[parameter], vit.LAYER_DECAY, vit.DEPTH)
            groups.setdefault((group["lr"] * factor, group["weight_decay"]), []).append(parameter)
    params: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
        params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY
    )


def _check_reached(names: Iterable[str], decay: float, depth: int) -> None:
    exponents = {_exponent(name, depth) for name in names}
    layers = {depth + 1: "patches and positions"} | {depth - i: f"block {i}" for i in range(depth)}
    missed = [layer for exponent, layer in layers.items() if exponent not in exponents]
    if missed:
        raise UserError(
            f"MOCO.VIT.LAYER_DECAY is {decay}, but it reaches {len(layers) - len(missed)} of the "
            f"{len(layers)} layers of MOCO.VIT: no parameter has the name of {missed[0]} "
            "(backbone.net.pos_embed, backbone.net.blocks.0. and so on); set it to 1.0, or name "
            "the layers of your backbone so"
        )


def layer_factor(name: str, decay: float, depth: int) -> float:
    """Return the factor of the learning rate of a detector's parameter.

    Args:
        name: Its name in the detector.
        decay: MOCO.VIT.LAYER_DECAY.
        depth: Number of blocks of the ViT.

    Returns:
        ``decay ** k``, where k is 1 for the last block, `depth` for the first one, one more for
        patches and positions, and 0 for everything after the ViT.
    """
    return decay ** _exponent(name, depth)


def _exponent(name: str, depth: int) -> int:
    if name.startswith(_FIRST):
        return depth + 1
    block = _BLOCK.match(name)
    return depth - int(block[1]) if block else 0
