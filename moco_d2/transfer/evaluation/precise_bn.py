"""BatchNorm statistics of the model as it is ("precise BN", arXiv 2105.07576 section 3), the same
in every process.

Detectron2's hook lets each process estimate them from images of its own and keep what it found
(detectron2 issue 5398); what is evaluated and saved is then the statistics of some process. Here
the sums of all processes are added up. fvcore's update_bn_stats, which that hook calls, keeps its
sums to itself, and takes every layer's variance for torch's unbiased one over this process's
images, which that of a synchronized norm is not; so sums are taken here from the layers' inputs.
In one process both agree.
"""

import contextlib
import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn

from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.transfer.data.training_data import TrainingBatches, seeded
from moco_d2.transfer.divergence import proposals_checked
from moco_d2.transfer.weights import unwrapped

logger = logging.getLogger(__name__)

_STREAM = 1  # of the training data; see TrainingBatches.other


class PreciseBN(HookBase):
    """Updates the statistics before every evaluation.

    The images and the regions sampled in them are the same each time, a function of the seed: two
    evaluations differ by their weights, and a resumed run finds what an uninterrupted one does.
    """

    def __init__(self, period: int, batches: TrainingBatches, num_iter: int):
        """
        Args:
            period: iterations; 0: only at the end.
            batches: of this process.
            num_iter: batches to use, TEST.PRECISE_BN.NUM_ITER.
        """
        self._period = period
        self._batches = batches
        self._num_iter = num_iter

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.update()

    def update(self) -> None:
        """Update the trainer's model now. All processes must call.

        Raises:
            DivergenceError: proposals are not finite.
        """
        model = self.trainer.model
        device = next(model.parameters()).device
        seed = derive_seed(Purpose.DEVICE, self._batches.seed, comm.get_rank())
        logger.info("precise BatchNorm statistics from %d batches a process", self._num_iter)
        with (
            contextlib.closing(self._batches.other(_STREAM)) as batches,
            EventStorage(),  # of the losses that the model computes on the way; nobody reads it
            seeded(seed, device),
            proposals_checked(),
        ):
            update_statistics(unwrapped(model), islice(batches, self._num_iter))


@torch.no_grad()
def update_statistics(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set running_mean and running_var of every BatchNorm layer in training mode to the mean and
    variance of its input over `batches` of all processes.

    Every value of a channel counts once, wherever it was computed. A layer without input keeps what
    it has, and no layer counts these batches as trained on. All processes must call, with the same
    number of batches where layers synchronize.

    Args:
        model: in training mode, not wrapped for several processes.
        batches: what ``model(batch)`` takes.
    """
    layers = [layer for layer in get_bn_modules(model) if layer.running_mean is not None]
    if not layers:
        return
    sums = [_Sums(layer.num_features, layer.running_mean.device) for layer in layers]
    handles = [
        layer.register_forward_pre_hook(of_layer.add)
        for layer, of_layer in zip(layers, sums, strict=True)
    ]
    trained = [layer.num_batches_tracked.clone() for layer in layers]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        for layer, count in zip(layers, trained, strict=True):
            layer.num_batches_tracked.copy_(count)
    everything = torch.cat([of_layer.flat for of_layer in sums])
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(everything)
    parts = everything.split([of_layer.flat.numel() for of_layer in sums])
    for layer, part in zip(layers, parts, strict=True):
        count = part[0]
        if count > 0:
            mean, squares = (part[1:] / count).chunk(2)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_((squares - mean.square()).clamp(min=0))


class _Sums:
    """Of one layer's input: ``flat`` is [number of values, their sums (C), sums of squares (C)].

    In float64: the variance is a small difference of large numbers.
    """

    def __init__(self, channels: int, device: torch.device):
        # MPS has no float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.flat = torch.zeros(1 + 2 * channels, dtype=dtype, device=device)

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        count = x.numel() // x.shape[1]
        if not count:
            return
        dims = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = (v.to(self.flat.dtype) for v in torch.var_mean(x, dims, correction=0))
        self.flat[0] += count
        self.flat[1:] += count * torch.cat((mean, variance + mean.square()))
