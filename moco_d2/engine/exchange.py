"""The exchange of tensors and numbers between the processes of a run."""

from collections.abc import Mapping

import torch
from torch import distributed as dist

from moco_d2.engine.device import send
from moco_d2.engine.hooks import StopOnSignal
from moco_d2.engine.periodic_saves import PeriodicSaves


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


def gather_numbers(
    numbers: Mapping[str, float | torch.Tensor], device: str | torch.device
) -> dict[str, list[float]]:
    """Return the numbers of all processes, in rank order.

    This takes one exchange and one wait for the device.
    """
    tensors = {name: n for name, n in numbers.items() if isinstance(n, torch.Tensor)}
    others = {name: n for name, n in numbers.items() if name not in tensors}
    row = [n.to(device, torch.float64).view(1) for n in tensors.values()]
    row.append(send(torch.tensor([*others.values()], dtype=torch.float64), device))
    columns = all_gather(torch.cat(row)[None]).T.tolist()
    return dict(zip([*tensors, *others], columns, strict=True))


def exchange_step(
    metrics: Mapping[str, float | torch.Tensor],
    data_time: float,
    stop: StopOnSignal,
    saver: PeriodicSaves,
    device: str | torch.device,
) -> tuple[dict[str, float], float]:
    """Return the mean metrics of all processes in a step, and the longest time to load images.

    The same exchange tells all processes whether one of them has received a signal, and whether it
    is time to save.

    Args:
        metrics: The metrics of this process.
        data_time: Seconds that this process has waited for images.
        stop, saver: The hooks that stop and save, which get what all processes agree on.
        device: The device of the exchange.
    """
    others = {"data_time": data_time, "signal": stop.received, "overdue": saver.overdue}
    values = gather_numbers({**metrics, **others}, device)
    if world_size() > 1:
        stop.agreed = int(max(values["signal"]))
        saver.agreed = any(values["overdue"])
    means = {name: sum(values[name]) / len(values[name]) for name in metrics}
    return means, max(values["data_time"])  # all processes wait for the slowest one
