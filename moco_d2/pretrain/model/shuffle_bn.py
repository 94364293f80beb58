"""ShuffleBN over processes and SplitBN on one device (paper section 3.3).

BatchNorm mixes the samples of a batch. If a query and its key are normalized in the same group of
images, the group's statistics give the positive away. The loss then falls, but the network learns
nothing. ShuffleBN encodes the keys in another order, which puts query and key into different
groups. This needs more than one group: in a distributed run each process is one, and on one device
SplitBatchNorm2d makes several.

Legend: N batch of one process, W world size, C channels or embedding, S splits.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn import functional as dist_functional

from moco_d2.engine.device import send
from moco_d2.engine.exchange import world_size


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that normalizes each of S consecutive groups of a training batch on its own.

    It equals S processes with N / S images and a BatchNorm each. The running statistics are the
    mean over the groups. In evaluation it equals nn.BatchNorm2d, and it has the same parameter
    names.

    Raises (in training):
        ValueError: If N is not a multiple of S, or a group has one value per channel.
    """

    # In nn.BatchNorm2d these may be None. Here running statistics are always tracked.
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def __init__(
        self, num_features: int, *, num_splits: int, eps: float = 1e-5, momentum: float = 0.1
    ):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.num_splits = num_splits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.num_splits == 1:
            return super().forward(x)
        if len(x) % self.num_splits:
            raise ValueError(f"batch of {len(x)} images cannot be split into {self.num_splits}")
        if x.numel() == self.num_splits * x.shape[1]:
            raise ValueError(
                f"expected more than 1 value per channel and group, got {tuple(x.shape)} in "
                f"{self.num_splits} groups"
            )
        self.num_batches_tracked.add_(1)
        if torch.compiler.is_compiling():
            return self._normalize_at_once(x)
        running = self.running_mean, self.running_var
        settings = self.num_splits, self.momentum, self.eps
        out: torch.Tensor = _GroupsInPlace.apply(  # type: ignore[no-untyped-call] # torch has none
            _dense(x), self.weight, self.bias, running, settings
        )
        return out

    def _normalize_at_once(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize all groups of x (N, C, H, W) as one BatchNorm with S C channels.

        Without a compiler this would copy x. A compiler only computes other addresses.
        """
        splits = self.num_splits
        stacked = x.unflatten(0, (splits, -1)).transpose(0, 1).flatten(1, 2)
        means, variances, weight, bias = (
            one.repeat(splits)
            for one in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        settings = True, self.momentum, self.eps
        out = F.batch_norm(stacked, means, variances, weight, bias, *settings)
        self.running_mean.copy_(means.view(splits, -1).mean(0))
        self.running_var.copy_(variances.view(splits, -1).mean(0))
        out = out.unflatten(1, (splits, -1)).transpose(0, 1).flatten(0, 1)
        is_plain = x.is_contiguous()
        layout = torch.contiguous_format if is_plain else torch.channels_last
        return out.contiguous(memory_format=layout)


class _GroupsInPlace(torch.autograd.Function):
    """The groups of SplitBatchNorm2d, one after the other, without a compiler.

    The kernel writes each group directly into the output, so the forward pass touches no more
    memory than one BatchNorm.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes positional arguments
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running: tuple[torch.Tensor, torch.Tensor],
        settings: tuple[int, float, float],
    ) -> torch.Tensor:
        splits, momentum, eps = settings
        out = torch.empty_like(x)
        means, inverse_stds = (r.new_empty(splits, len(r)) for r in running)
        for i, (group, result) in enumerate(zip(x.chunk(splits), out.chunk(splits), strict=True)):
            # With these momenta, the statistics of all groups get the weight momentum / splits.
            now = momentum / (splits - (splits - 1 - i) * momentum)
            torch.native_batch_norm(
                *(group, weight, bias, *running, True, now, eps),
                out=(result, means[i], inverse_stds[i]),
            )
        ctx.save_for_backward(x, weight, means, inverse_stds)
        ctx.eps = eps
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight, means, inverse_stds = ctx.saved_tensors
        splits, grad = len(means), _dense(grad)
        groups = zip(grad.chunk(splits), x.chunk(splits), means, inverse_stds, strict=True)
        grads = [
            torch.ops.aten.native_batch_norm_backward(
                *(group_grad, group, weight, None, None, mean, inverse_std),
                *(True, ctx.eps, [True, True, True]),
            )
            for group_grad, group, mean, inverse_std in groups
        ]
        grad_x, grad_weight, grad_bias = zip(*grads, strict=True)
        return torch.cat(grad_x), sum(grad_weight), sum(grad_bias), None, None


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Return x (N, C, H, W) contiguous or in channels_last: of other strides, the CPU's kernel
    gives wrong means when it writes into an output.
    """
    is_dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if is_dense else x.contiguous()


def norm_layer(num_splits: int) -> Callable[[int], nn.BatchNorm2d]:
    """Return a value for torchvision's argument ``norm_layer``.

    It builds plain BatchNorm for one split, and SplitBatchNorm2d otherwise.
    """
    if num_splits == 1:
        return nn.BatchNorm2d
    return lambda num_features: SplitBatchNorm2d(num_features, num_splits=num_splits)


def all_gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """Gather like all_gather; `x` receives the sum of the gradients of all processes."""
    return torch.cat(dist_functional.all_gather(x.contiguous())) if world_size() > 1 else x


def encode_shuffled(
    encode: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Return the embeddings of the batch, with each image encoded in a random group.

    Every image is sent once, to the process that encodes it. (The official code sends every image
    to every process.) The embeddings are sent to all processes. All processes must call this.

    Args:
        encode: images (N, 3, H, W) -> embeddings (N, C), with gradient if it is enabled.
        images: Local images (N, 3, H, W), with the same N in every process.

    Returns:
        Embeddings (W N, C), in rank order and, within a rank, in the order of its `images`.
    """
    batch, processes = len(images), world_size()
    order = torch.randperm(batch * processes)
    order = send(order, images.device)
    if processes == 1:
        return encode(images[order])[order.argsort()]
    dist.broadcast(order, src=0)  # the generators of the processes differ
    encoded = all_gather_with_gradient(encode(_exchange(images, order)))
    return encoded[order.argsort()]


@torch.no_grad()
def _exchange(images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return images order[rank N : (rank + 1) N] of the batch of all processes.

    Args:
        images: Local images (N, 3, H, W).
        order: Permutation (W N,) of the batch of all processes, equal in all processes.
    """
    batch, rank, processes = len(images), dist.get_rank(), dist.get_world_size()
    owner = (order // batch).view(processes, batch)  # row r: owners of the images for rank r
    is_local = owner == rank
    sent = order.view(processes, batch)[is_local] - rank * batch
    # Backends copy memory without regard to strides, so channels_last is sent as (N, H, W, 3).
    channels_last = not images.is_contiguous() and images.is_contiguous(
        memory_format=torch.channels_last
    )
    if channels_last:
        images = images.permute(0, 2, 3, 1)
    received = torch.empty_like(images, memory_format=torch.contiguous_format)
    dist.all_to_all_single(
        received,
        images[sent],
        output_split_sizes=owner[rank].bincount(minlength=processes).tolist(),
        input_split_sizes=is_local.sum(dim=1).tolist(),
    )
    # The received images are sorted by owner. Put them into the order of `order`.
    received = received[owner[rank].argsort(stable=True).argsort()]
    return received.permute(0, 3, 1, 2) if channels_last else received
