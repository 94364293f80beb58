"""The metrics of a step, which the host reads after it has queued the next step.

To read a number, the host waits until the device has computed it. If it read those of the step that
it has just queued, a GPU would have nothing to do until the next step is queued.
"""

import math
from collections.abc import Callable
from typing import Any

from detectron2.utils.events import get_event_storage

from moco_d2.errors import UserError


class StepMetrics:
    """Puts the metrics of each step into the storage, under the iteration of the step.

    Attributes:
        late: Whether those of a step are read in the next step, or at once.
    """

    def __init__(self, *, late: bool, base_lr: float):
        """
        Args:
            late: See above.
            base_lr: SOLVER.BASE_LR, for the error.
        """
        self.late = late
        self._base_lr = base_lr
        self._unread: tuple[int, Callable[[], tuple[dict[str, float], float]]] | None = None

    def add(self, read: Callable[[], tuple[dict[str, float], float]], *, needed: bool) -> None:
        """Take in a step that is queued, and put the metrics of the step before into the storage.

        Args:
            read: The result of exchange.exchange_step.
            needed: Whether this step's metrics are needed now, by something that writes them.

        Raises:
            UserError: If a loss is not finite.
        """
        self.flush()
        self._unread = get_event_storage().iter, read
        if needed or not self.late:
            self.flush()

    def flush(self) -> None:
        """Put what is not yet read into the storage.

        Raises:
            UserError: If a loss is not finite.
        """
        if self._unread is None:
            return
        (iteration, read), self._unread = self._unread, None
        means, data_time = read()
        loss = total_loss(means)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at iteration {iteration}: lower SOLVER.BASE_LR (now "
                f"{self._base_lr}) and continue with --resume from the last checkpoint"
            )
        storage = get_event_storage()
        current, storage.iter = storage.iter, iteration
        storage.put_scalars(total_loss=loss, data_time=data_time, **means)
        storage.iter = current


def total_loss(outputs: dict[str, Any]) -> Any:
    """Return the sum of the losses among the outputs of a model."""
    return sum(value for name, value in outputs.items() if name.startswith("loss"))
