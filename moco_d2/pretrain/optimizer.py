"""The optimizers of pretraining."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from moco_d2.engine.one_pass import update_in_one_pass
from moco_d2.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates for SGD with momentum (You et al., arXiv:1708.03888).

    As in the official MoCo v3, parameters of one dimension (biases, norms) are neither decayed nor
    scaled, and the state of a parameter is ``mu``.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ):
        """
        Args:
            params: Parameters.
            lr: Learning rate.
            momentum: Momentum, in [0, 1).
            weight_decay: Fraction of a parameter that is added to its gradient.
            trust_coefficient: Norm of a step at learning rate 1, as a fraction of the parameter's
                norm.
        """
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step. `closure` is not supported and must be None."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                change = p.grad
                if p.ndim > 1:
                    change = change.add(p, alpha=group["weight_decay"])
                    ratio = group["trust_coefficient"] * p.norm() / change.norm()
                    # A norm of 0 gives 0, inf or NaN: such a parameter is not scaled.
                    usable = torch.isfinite(ratio) & (ratio > 0)
                    change = change * torch.where(usable, ratio, torch.ones_like(ratio))
                state = self.state[p]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(p)
                state["mu"].mul_(group["momentum"]).add_(change)
                p.add_(state["mu"], alpha=-group["lr"])


def build_optimizer(cfg: "CfgNode", model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build MOCO.PRETRAIN_OPTIMIZER for the trained parameters, all in one group.

    Raises:
        UserError: If the config has an optimizer for fine-tuning.
    """
    solver, name = cfg.SOLVER, cfg.MOCO.PRETRAIN_OPTIMIZER
    if cfg.MOCO.OPTIMIZER != "SGD":
        raise UserError(
            f"MOCO.OPTIMIZER {cfg.MOCO.OPTIMIZER} is for fine-tuning: set "
            "MOCO.PRETRAIN_OPTIMIZER instead"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if name == "AdamW":
        return torch.optim.AdamW(parameters, **options)
    if name == "LARS":
        return LARS(parameters, momentum=solver.MOMENTUM, **options)
    optimizer = torch.optim.SGD(parameters, momentum=solver.MOMENTUM, **options)
    update_in_one_pass(optimizer)
    return optimizer
