"""One training step: forward and backward passes, and the exchange of losses between processes."""

import contextlib
import itertools
import math
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.amp.grad_scaler import GradScaler

from moco_d2.engine.exchange import exchange_step
from moco_d2.engine.hooks import StopOnSignal
from moco_d2.engine.periodic_saves import PeriodicSaves
from moco_d2.transfer.divergence import (
    DivergenceError,
    annotations_in_error,
    proposals_checked,
)


class AccumulatingTrainer(SimpleTrainer):
    """Extends Detectron2's SimpleTrainer by several passes per step, autocast on any device, and a
    check of the loss before it changes the weights.

    With one pass and without autocast, a step equals SimpleTrainer's bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        stop: StopOnSignal,
        saver: PeriodicSaves,
        passes: int = 1,
        amp_dtype: torch.dtype | None = None,
    ):
        """
        Args:
            model: A Detectron2 model in training mode, wrapped for several processes or not.
            data_loader: Iterable of the batches of this process, one per pass. Its iterator must
                be a generator.
            optimizer: Optimizer of the parameters of `model`.
            stop: Hook that stops the run; it gets the signals of all processes.
            saver: Hook that saves; it is told if a checkpoint is overdue in any process.
            passes: Number of forward and backward passes per step. Their gradients are averaged,
                as those of several processes are.
            amp_dtype: Number type of autocast; None turns autocast off.
        """
        super().__init__(model, data_loader, optimizer)
        self.passes = passes
        self._stop = stop
        self._saver = saver
        self._amp_dtype = amp_dtype
        self._device = next(model.parameters()).device
        # Small gradients become 0 in float16 if they are not scaled. Disabled, it does nothing.
        self.grad_scaler = GradScaler(self._device.type, enabled=amp_dtype == torch.float16)

    def run_step(self) -> None:
        """Load batches, compute losses, check them, and update the weights.

        Raises:
            DivergenceError: If the loss of any process is not finite; in all processes. The weights
                are then still those before the step.
        """
        self.optimizer.zero_grad(set_to_none=True)
        batches, losses, data_time = [], [], 0.0
        for i in range(self.passes):
            start = time.perf_counter()
            batches.append(next(self._data_loader_iter))
            data_time += time.perf_counter() - start
            with self._synchronization(last=i == self.passes - 1):
                with self.autocast(), proposals_checked(batches):
                    pass_losses = self.model(batches[-1])
                self.grad_scaler.scale(sum(pass_losses.values()) / self.passes).backward()
            losses.append({name: loss.detach() for name, loss in pass_losses.items()})
        self._record(_mean(losses), data_time, batches)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _synchronization(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context that exchanges gradients between processes in the last pass only."""
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return torch.autocast(
            self._device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None
        )

    def _record(
        self, losses: dict[str, torch.Tensor], data_time: float, batches: list[Any]
    ) -> None:
        """Put the mean losses of all processes into the storage, under Detectron2's names."""
        means, slowest = exchange_step(losses, data_time, self._stop, self._saver, self._device)()
        total = sum(means.values())
        if not math.isfinite(total):
            problems = comm.all_gather(annotations_in_error(batches))
            raise DivergenceError(means, list(itertools.chain.from_iterable(problems)))
        storage = get_event_storage()
        storage.put_scalar("data_time", slowest)
        storage.put_scalar("total_loss", total)
        storage.put_scalars(**means)

    def close(self) -> None:
        """End the workers that load images. The garbage collector would need seconds for each."""
        self._data_loader_iter.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of SimpleTrainer and of the gradient scaler, as in AMPTrainer."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that state_dict returned."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _mean(losses: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean over passes, on the device."""
    stacked = torch.stack([torch.stack(list(of_pass.values())).float() for of_pass in losses])
    return dict(zip(losses[0], stacked.double().mean(0), strict=True))
