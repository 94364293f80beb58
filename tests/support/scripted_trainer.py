"""Detectron2's training loop without a network: each step puts the scalars a test dictates; and a
hook that interrupts any loop.
"""

import torch
from detectron2.engine import HookBase, TrainerBase

HEALTHY = {
    "feature_std": 0.9,
    "pretext_accuracy": 0.5,
    "total_loss": 6.7,
    "data_time": 0.01,
    "time": 0.2,
}


class Scripted(TrainerBase):
    """A trainer whose step puts HEALTHY, changed by ``script(iteration)``."""

    def __init__(self, script=lambda iteration: {}):
        super().__init__()
        self.script = script
        self.model = torch.nn.Module()

    def run_step(self):
        self.storage.put_scalars(**{**HEALTHY, **self.script(self.iter)})


class StopAfter(HookBase):
    """Ctrl-C after a number of iterations."""

    def __init__(self, iterations: int):
        self.iterations = iterations

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.iterations:
            raise KeyboardInterrupt


def run_scripted(hooks, script, iterations, *, start=0):
    """A run with `hooks`; the trainer afterwards."""
    trainer = Scripted(script)
    trainer.register_hooks(hooks)
    trainer.train(start, iterations)
    return trainer
