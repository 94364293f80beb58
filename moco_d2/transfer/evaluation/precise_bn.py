"""BatchNorm statistics of the current weights ("precise BN", arXiv 2105.07576 section 3), equal in
all processes.

With Detectron2's hook, each process estimates the statistics from its own images and keeps them
(detectron2 issue 5398), so the evaluated and saved statistics are those of one process. Here, the
sums of all processes are added. The hook's function, fvcore's update_bn_stats, cannot be used for
that: it does not return its sums, and it assumes torch's unbiased variance over the images of this
process, which a synchronized norm does not compute. Therefore the sums are computed here from the
inputs of the layers. In one process, both methods agree.
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

_STREAM = 1  # number of a stream of training batches; see TrainingBatches.other


class PreciseBN(HookBase):
    """Updates the statistics before every evaluation.

    The images and the sampled regions depend only on the seed and are the same each time.
    Therefore two evaluations differ only in their weights, and a resumed run gets the statistics of
    an uninterrupted one.
    """

    def __init__(self, period: int, batches: TrainingBatches, num_iter: int):
        """
        Args:
            period: Number of iterations between updates; 0 updates only at the end.
            batches: Training batches of this process.
            num_iter: Number of batches to use, TEST.PRECISE_BN.NUM_ITER.
        """
        self._period = period
        self._batches = batches
        self._num_iter = num_iter

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.update()

    def update(self) -> None:
        """Update the statistics of the trainer's model. All processes must call this method.

        Raises:
            DivergenceError: If proposals are not finite.
        """
        model = self.trainer.model
        device = next(model.parameters()).device
        seed = derive_seed(Purpose.DEVICE, self._batches.seed, comm.get_rank())
        logger.info("precise BatchNorm statistics from %d batches a process", self._num_iter)
        with (
            contextlib.closing(self._batches.other(_STREAM)) as batches,
            EventStorage(),  # the model in training mode writes its losses here; they are not used
            seeded(seed, device),
            proposals_checked(),
        ):
            update_statistics(unwrapped(model), islice(batches, self._num_iter))


@torch.no_grad()
def update_statistics(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set running_mean and running_var of every BatchNorm layer in training mode to the mean and
    variance of its input over `batches` of all processes.

    Every value of a channel has the same weight. A layer without input keeps its statistics, and
    num_batches_tracked does not change. All processes must call this function; if layers
    synchronize, all need the same number of batches.

    Args:
        model: A model in training mode, not wrapped for several processes.
        batches: Inputs of the model.
    """
    layers = [layer for layer in get_bn_modules(model) if layer.running_mean is not None]
    if not layers:
        return
    sums = [_Sums(layer.num_features, layer.running_mean.device) for layer in layers]
    handles = [
        layer.register_forward_pre_hook(layer_sums.add)
        for layer, layer_sums in zip(layers, sums, strict=True)
    ]
    counts = [layer.num_batches_tracked.clone() for layer in layers]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        for layer, count in zip(layers, counts, strict=True):
            layer.num_batches_tracked.copy_(count)
    all_sums = torch.cat([layer_sums.flat for layer_sums in sums])
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(all_sums)
    parts = all_sums.split([layer_sums.flat.numel() for layer_sums in sums])
    for layer, part in zip(layers, parts, strict=True):
        count = part[0]
        if count > 0:
            mean, squares = (part[1:] / count).chunk(2)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_((squares - mean.square()).clamp(min=0))


class _Sums:
    """Sums over the input of one layer.

    Attributes:
        flat: [number of values, their sums (C), sums of their squares (C)], in float64, because the
            variance is a small difference of large numbers. MPS has only float32.
    """

    def __init__(self, channels: int, device: torch.device):
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
