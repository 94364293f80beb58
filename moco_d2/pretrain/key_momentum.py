"""The momentum of the key encoder over time (MoCo v3, arXiv:2104.02057, section 4.1)."""

import math
from typing import TYPE_CHECKING

from detectron2.engine import HookBase

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def key_momentum(cfg: "CfgNode", progress: float) -> float:
    """Return MOCO.MOMENTUM after a fraction of the training, by MOCO.MOMENTUM_SCHEDULE."""
    start = cfg.MOCO.MOMENTUM
    if cfg.MOCO.MOMENTUM_SCHEDULE == "constant":
        return start
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2


class KeyMomentum(HookBase):
    """Sets the momentum of the update at the end of each step.

    The official code updates the key encoder at the beginning of a step, so the update at our end
    has the momentum of the next step.
    """

    def __init__(self, cfg: "CfgNode"):
        self.cfg = cfg

    def before_step(self) -> None:
        progress = (self.trainer.iter + 1) / self.trainer.max_iter
        self.trainer.model.momentum = key_momentum(self.cfg, progress)
