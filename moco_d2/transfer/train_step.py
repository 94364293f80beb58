"""One training step: forward and backward passes, and what all processes have to know of it."""

import contextlib
import math
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.amp.grad_scaler import GradScaler

from moco_d2.engine.hooks import StopOnSignal
from moco_d2.transfer.divergence import (
    DivergenceError,
    annotations_in_error,
    proposals_checked,
)


class AccumulatingTrainer(SimpleTrainer):
    """Detectron2's SimpleTrainer with several passes a step, autocast on any device, and a loss
    that is checked before it changes the weights.

    With one pass and without autocast, a step is SimpleTrainer's to the last bit.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        stop: StopOnSignal,
        passes: int = 1,
        amp_dtype: torch.dtype | None = None,
    ):
        """
        Args:
            model: a Detectron2 model in training mode, wrapped for several processes or not.
            data_loader: iterable of the batches of this process, one a pass; its iterator is a
                generator.
            optimizer: over the parameters of `model`.
            stop: is told which signal any process was sent.
            passes: forward and backward passes a step. The gradient is the mean of theirs, as
                that of several processes is.
            amp_dtype: of autocast; None: none.
        """
        super().__init__(model, data_loader, optimizer)
        self.passes = passes
        self._stop = stop
        self._amp_dtype = amp_dtype
        self._device_type = next(model.parameters()).device.type
        # float16's smallest number is large enough to lose gradients: scale them. Does nothing
        # where it is not enabled.
        self.grad_scaler = GradScaler(self._device_type, enabled=amp_dtype == torch.float16)

    def run_step(self) -> None:
        """Load, compute, check, and update the weights.

        Raises:
            DivergenceError: in all processes, if the loss of one is not finite; the weights are
                before the step.
        """
        self.optimizer.zero_grad(set_to_none=True)
        batches, losses, data_time = [], [], 0.0
        for i in range(self.passes):
            start = time.perf_counter()
            batches.append(next(self._data_loader_iter))
            data_time += time.perf_counter() - start
            with self._synchronization(last=i == self.passes - 1):
                with self._autocast(), proposals_checked(batches):
                    of_pass = self.model(batches[-1])
                self.grad_scaler.scale(sum(of_pass.values()) / self.passes).backward()
            losses.append({name: loss.detach() for name, loss in of_pass.items()})
        self._record(_mean(losses), data_time, batches)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _synchronization(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients travel between the processes with the last pass only."""
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(
            self._device_type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None
        )

    def _record(self, losses: dict[str, float], data_time: float, batches: list[Any]) -> None:
        """Put the mean losses of all processes into the storage, under Detectron2's names.

        The same exchange tells all whether one has been sent a signal.
        """
        told = comm.all_gather(
            {"losses": losses, "data_time": data_time, "signal": self._stop.received}
        )
        if len(told) > 1:
            self._stop.agreed = max(one["signal"] for one in told)
        means = {name: sum(one["losses"][name] for one in told) / len(told) for name in losses}
        total = sum(means.values())
        if not math.isfinite(total):
            found = comm.all_gather(annotations_in_error(batches))
            raise DivergenceError(means, [sentence for of_rank in found for sentence in of_rank])
        storage = get_event_storage()
        # The slowest process is the one that all wait for.
        storage.put_scalar("data_time", max(one["data_time"] for one in told))
        storage.put_scalar("total_loss", total)
        storage.put_scalars(**means)

    def close(self) -> None:
        """End the workers that load images: left to the garbage collector, each takes seconds."""
        self._data_loader_iter.close()

    def state_dict(self) -> dict[str, Any]:
        """SimpleTrainer's, and the gradient scaler's as in Detectron2's AMPTrainer."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what state_dict gave."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _mean(losses: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """The mean over passes, with one wait for the device."""
    stacked = torch.stack([torch.stack(list(of_pass.values())).float() for of_pass in losses])
    return dict(zip(losses[0], stacked.double().mean(0).tolist(), strict=True))
