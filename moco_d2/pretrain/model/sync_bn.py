"""BatchNorm over the images of all processes, as MoCo v3 uses it (official main_moco.py).

On GPUs it is torch's SyncBatchNorm, which refuses tensors on a CPU.
"""

import torch
from torch import nn
from torch.distributed.nn import functional as dist_functional

from moco_d2.engine.exchange import world_size


def synchronize_batchnorm(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Return the model with BatchNorm over all processes. One process changes nothing.

    Args:
        model: A model, whose layers may be exchanged in place.
        device: The device on which it will train.
    """
    if world_size() == 1:
        return model
    if torch.device(device).type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    kinds: dict[type[nn.Module], type[nn.Module]] = {
        nn.BatchNorm1d: _SyncBatchNorm1d,
        nn.BatchNorm2d: _SyncBatchNorm2d,
    }
    for layer in model.modules():
        if type(layer) in kinds:
            layer.__class__ = kinds[type(layer)]
    return model


class _SyncOnCPU(nn.modules.batchnorm._BatchNorm):
    """BatchNorm on a CPU whose statistics are those of all processes, each with the same N."""

    # In torch's class these may be None. Here running statistics are always there.
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
        mean = _mean_of_processes(x.mean(dims))
        centered = x - mean.view(shape)
        variance = _mean_of_processes(centered.square().mean(dims))
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach(), world_size() * x.numel() // x.shape[1])
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if not self.affine:
            return normalized
        return normalized * self.weight.view(shape) + self.bias.view(shape)

    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


class _SyncBatchNorm1d(_SyncOnCPU, nn.BatchNorm1d):
    pass


class _SyncBatchNorm2d(_SyncOnCPU, nn.BatchNorm2d):
    pass


def _mean_of_processes(x: torch.Tensor) -> torch.Tensor:
    if not x.requires_grad:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x / world_size()
    return dist_functional.all_reduce(x) / world_size()
