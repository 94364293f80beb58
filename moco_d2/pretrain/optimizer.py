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
            trained = [p for p in group["params"] if p.grad is not None]
            if not trained:
                continue
            changes = self._changes(group, [p for p in trained if p.ndim > 1])
            for p in trained:
                if "mu" not in self.state[p]:
                    self.state[p]["mu"] = torch.zeros_like(p)
            mus = [self.state[p]["mu"] for p in trained]
            torch._foreach_mul_(mus, group["momentum"])
            torch._foreach_add_(mus, [changes.get(p, p.grad) for p in trained])
            torch._foreach_add_(trained, mus, alpha=-group["lr"])

    @staticmethod
    def _changes(
        group: dict[str, Any], weights: list[torch.Tensor]
    ) -> dict[torch.Tensor, torch.Tensor]:
        """Return the decayed and scaled gradients, in a few calls for all of them."""
        if not weights:
            return {}
        gradients = [p.grad for p in weights if p.grad is not None]
        changes = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, changes))
        ratios = group["trust_coefficient"] * next(norms) / next(norms)
        # A norm of 0 gives 0, inf or NaN: such a parameter is not scaled.
        usable = torch.isfinite(ratios) & (ratios > 0)
        scales = torch.where(usable, ratios, torch.ones_like(ratios)).unbind()
        torch._foreach_mul_(changes, scales)
        return dict(zip(weights, changes, strict=True))


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
