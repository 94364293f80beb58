"""Learning rate over pretraining: the official code sets it once an epoch, by steps (v1) or half a
cosine (v2).
"""

import math
from typing import Any

from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)

from moco_d2.errors import UserError


class OncePerEpoch(ParamScheduler):
    """A schedule held constant within each of `epochs` equal parts of training, at the value of the
    part's start.
    """

    def __init__(self, schedule: ParamScheduler, epochs: int):
        self.schedule = schedule
        self.epochs = epochs

    def __call__(self, where: float) -> float:
        # The small term keeps 3 / 10 * 10 from falling into the epoch before.
        return self.schedule(math.floor(where * self.epochs + 1e-6) / self.epochs)


def training_length(cfg: Any, iterations_per_epoch: int) -> int:
    """Number of iterations: MOCO.EPOCHS epochs, or SOLVER.MAX_ITER where that is 0.

    Raises:
        UserError: that is none.
    """
    if cfg.MOCO.EPOCHS > 0:
        return cfg.MOCO.EPOCHS * iterations_per_epoch
    if cfg.SOLVER.MAX_ITER < 1:
        raise UserError(
            f"nothing to train: MOCO.EPOCHS is {cfg.MOCO.EPOCHS} and SOLVER.MAX_ITER "
            f"{cfg.SOLVER.MAX_ITER}; set one of them"
        )
    return cfg.SOLVER.MAX_ITER


def build_schedule(cfg: Any, iterations_per_epoch: int) -> ParamScheduler:
    """Factor on SOLVER.BASE_LR as a function of progress in [0, 1].

    A length in epochs is stepped once an epoch, as in the official code; one in iterations
    (MOCO.EPOCHS 0) at every iteration, with MOCO.LR_STEPS still in epochs.

    Raises:
        UserError: MOCO.LR_SCHEDULE is neither "step" nor "cosine", or MOCO.LR_STEPS do not ascend.
    """
    length = training_length(cfg, iterations_per_epoch)
    if cfg.MOCO.LR_SCHEDULE == "cosine":
        schedule: ParamScheduler = CosineParamScheduler(1.0, 0.0)
    elif cfg.MOCO.LR_SCHEDULE == "step":
        steps = list(cfg.MOCO.LR_STEPS)
        if steps != sorted(set(steps)) or any(step < 1 for step in steps):
            raise UserError(f"MOCO.LR_STEPS {tuple(steps)} must be ascending epochs from 1 on")
        # In iterations, because the length need not be a whole number of epochs.
        milestones = [s * iterations_per_epoch for s in steps if s * iterations_per_epoch < length]
        schedule = MultiStepParamScheduler(
            [cfg.SOLVER.GAMMA**i for i in range(len(milestones) + 1)],
            num_updates=length,
            milestones=milestones,
        )
    else:
        raise UserError(f"MOCO.LR_SCHEDULE {cfg.MOCO.LR_SCHEDULE!r} is neither step nor cosine")
    return OncePerEpoch(schedule, cfg.MOCO.EPOCHS) if cfg.MOCO.EPOCHS > 0 else schedule
