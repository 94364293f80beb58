"""A batch that is too large for the device, with the gradient of the whole batch.

MoCo v3 takes its negatives from the batch, so adding the gradients of small batches trains
something else. Here the backbone sees the batch in parts, first without a graph. Heads and loss see
all features at once, and give the gradient with respect to each. Then the backbone sees each part
again and takes this gradient in (Gao et al., arXiv:2101.06983, "GradCache"). A step costs one more
forward pass of the query backbone.

The result is that of one pass, except for BatchNorm inside the backbone, whose statistics are those
of a part. A ViT has none.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moco_d2.pretrain.data.stream import Batch
from moco_d2.pretrain.model.moco_v3 import MoCoV3
from moco_d2.pretrain.parallel import micro_batches


def backward_in_parts(
    model: MoCoV3,
    parallel_model: nn.Module,
    batch: Batch,
    count: int,
    *,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    scale: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Add the gradient of a batch's loss to the parameters, and return the outputs of `model`.

    Args:
        model: The model.
        parallel_model: The same, as parallel.distribute returns it.
        batch: A batch of this process.
        count: Number of parts.
        autocast: Returns the context of a forward pass.
        scale: Scales the loss (GradScaler.scale).
    """
    parts = [part for part, _ in micro_batches(model, batch, count)]
    with torch.no_grad(), model.running_statistics_kept(), autocast():
        features = torch.cat([model.features(part) for part in parts])
        key_features = torch.cat([model.key_features(part) for part in parts])
    features.requires_grad_()
    with autocast():
        outputs = model.contrast(features, key_features)
    # Outside the wrapper, so the gradients of the heads stay here until the last part sends all.
    scale(outputs["loss_contrastive"]).backward()
    with_gradient = {**batch, "gradient": features.grad}
    for part, synchronization in micro_batches(parallel_model, with_gradient, count):
        with synchronization:
            with autocast():
                loss = parallel_model(part)["loss_of_part"]
            loss.backward()
    return {name: value.detach() for name, value in outputs.items()}
