"""Keeping the contrastive task honest: ShuffleBN over processes, SplitBN on one device (paper
section 3.3).

BatchNorm lets the samples of a batch see each other. If a query and its key are normalised within
the same group of images, the group's statistics give the match away and the loss falls without
anything being learnt. ShuffleBN encodes the keys in an order of their own, so that query and key
meet different groups. That needs more than one group: the processes of a distributed run are
groups; on one device, SplitBatchNorm2d makes them.

Legend: N batch of one process, W world size, C channels or embedding, S splits.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of S consecutive groups of the batch, one each.

    The same as S processes with N / S images and a BatchNorm each; the running statistics are the
    groups' mean. In evaluation it is nn.BatchNorm2d, and so are its parameter names.

    Raises (in training):
        ValueError: N is not a multiple of S.
    """

    def __init__(self, num_features: int, *, num_splits: int, **kwargs):
        super().__init__(num_features, **kwargs)
        self.num_splits = num_splits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.num_splits == 1:
            return super().forward(x)
        if len(x) % self.num_splits:
            raise ValueError(f"batch of {len(x)} images cannot be split into {self.num_splits}")
        means = self.running_mean.repeat(self.num_splits, 1)
        variances = self.running_var.repeat(self.num_splits, 1)
        groups = [
            F.batch_norm(
                group,
                mean,
                variance,
                self.weight,
                self.bias,
                training=True,
                momentum=self.momentum,
                eps=self.eps,
            )
            for group, mean, variance in zip(
                x.chunk(self.num_splits), means, variances, strict=True
            )
        ]
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        self.num_batches_tracked.add_(1)
        return torch.cat(groups)


def norm_layer(num_splits: int) -> Callable[[int], nn.BatchNorm2d]:
    """What torchvision's ``norm_layer`` argument takes: plain BatchNorm for one split, else
    SplitBatchNorm2d.
    """
    if num_splits == 1:
        return nn.BatchNorm2d
    return lambda num_features: SplitBatchNorm2d(num_features, num_splits=num_splits)


def world_size() -> int:
    """Number of processes, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def all_gather(x: torch.Tensor) -> torch.Tensor:
    """Tensors (N, ...) of all processes, concatenated in rank order: (W N, ...). No gradient."""
    if world_size() == 1:
        return x
    # Backends copy memory as it lies: a channels_last batch has to lie alike on both sides.
    x = x.contiguous()
    gathered = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(gathered, x)
    return torch.cat(gathered)


@torch.no_grad()
def encode_shuffled(
    encode: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Embeddings (N, C) of `images` (N, 3, H, W), each encoded among a random group of the global
    batch.

    Every process must call it, with the same N and the same state of torch's CPU generator not
    required: rank 0 draws the order and the others receive it.
    """
    batch = len(images)
    everything = all_gather(images)
    order = torch.randperm(len(everything)).to(images.device)
    if world_size() == 1:
        embeddings = encode(everything[order])
        return embeddings[order.argsort()]
    dist.broadcast(order, src=0)
    rank = dist.get_rank()
    mine = order[rank * batch : (rank + 1) * batch]
    embeddings = all_gather(encode(everything[mine]))
    return embeddings[order.argsort()[rank * batch : (rank + 1) * batch]]
