"""The exchange of tensors, numbers and decisions between the processes of a run."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from detectron2.utils import comm
from torch import distributed as dist

from moco_d2.engine.device import fetch, send
from moco_d2.engine.hooks import StopOnSignal
from moco_d2.engine.periodic_saves import PeriodicSaves
from moco_d2.errors import UserError

_T = TypeVar("_T")


def world_size() -> int:
    """Return the number of processes, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def all_gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenate tensors (N, ...) of all processes in rank order: (W N, ...). No gradient."""
    if world_size() == 1:
        return x
    x = x.contiguous()  # backends copy memory without regard to strides
    gathered = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(gathered, x)
    return torch.cat(gathered)


def decided_by_main(decide: Callable[[], _T]) -> _T:
    """Return what the main process decides, in all processes, which must all call this.

    Raises:
        UserError: If the main process raises it, in all processes.
    """
    decision, problem = None, None
    if comm.is_main_process():
        try:
            decision = decide()
        except UserError as error:
            if comm.get_world_size() == 1:
                raise
            problem = error.lines
    decision, problem = comm.all_gather((decision, problem))[0]
    if problem is not None:
        raise UserError(*problem)
    return decision


def gather_numbers(
    numbers: Mapping[str, float | torch.Tensor], device: str | torch.device
) -> Callable[[], dict[str, list[float]]]:
    """Queue one exchange of numbers.

    Returns:
        A function that waits for it, and returns the numbers of all processes in rank order.
    """
    tensors = {name: n for name, n in numbers.items() if isinstance(n, torch.Tensor)}
    others = {name: n for name, n in numbers.items() if name not in tensors}
    row = [n.to(device, torch.float64).view(1) for n in tensors.values()]
    row.append(send(torch.tensor([*others.values()], dtype=torch.float64), device))
    arrived = fetch(all_gather(torch.cat(row)[None]))
    return lambda: dict(zip([*tensors, *others], arrived().T.tolist(), strict=True))


def exchange_step(
    metrics: Mapping[str, float | torch.Tensor],
    data_time: float,
    stop: StopOnSignal,
    saver: PeriodicSaves,
    device: str | torch.device,
) -> Callable[[], tuple[dict[str, float], float]]:
    """Queue the exchange of a step's metrics.

    The same exchange tells all processes whether one of them has received a signal, and whether it
    is time to save.

    Args:
        metrics: The metrics of this process.
        data_time: Seconds that this process has waited for images.
        stop, saver: The hooks that stop and save, which get what all processes agree on.
        device: The device of the exchange.

    Returns:
        A function that waits for the exchange, and returns the mean metrics of all processes and
        the longest time to load images. All processes must call it in the same step, because it
        tells `stop` and `saver` what they have agreed on.
    """
    others = {"data_time": data_time, "signal": stop.received, "overdue": saver.overdue}
    arrived = gather_numbers({**metrics, **others}, device)
    if world_size() > 1 and stop.agreed is None:
        stop.agreed, saver.agreed = 0, False  # until the first exchange is read

    def read() -> tuple[dict[str, float], float]:
        values = arrived()
        if world_size() > 1:
            stop.agreed = int(max(values["signal"]))
            saver.agreed = any(values["overdue"])
        means = {name: sum(values[name]) / len(values[name]) for name in metrics}
        return means, max(values["data_time"])  # all processes wait for the slowest one

    return read
