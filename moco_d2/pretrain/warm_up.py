"""Compile the encoders before the clock of a run starts.

Compiling takes minutes. Within the first step, they would be in its time and in the time that
remains, and the images of the second step would wait in the workers.
"""

import contextlib
import logging
import time
from collections.abc import Iterator

import torch
from torch import nn

from moco_d2.engine.process_state import rng_state, set_rng_state
from moco_d2.errors import UserError, printable
from moco_d2.pretrain.data.stream import TrainingData
from moco_d2.pretrain.model.moco import MoCo

logger = logging.getLogger(__name__)


def compile_parts(model: nn.Module, data: TrainingData) -> None:
    """Let torch compile the networks of a model, and the augmentation on the device, in place.

    So the names in checkpoints stay. All views of a run have one shape.
    """
    augmentations = [data.device_augmentation, *data.other_device_augmentations.values()]
    finish = [getattr(augmentation, "finish", None) for augmentation in augmentations]
    for module in (*model.children(), *filter(None, finish)):
        module.compile(dynamic=False)


@contextlib.contextmanager
def warming_up(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Log how long a block compiles, and undo what its forward and backward passes change.

    These are the buffers (BatchNorm's statistics), the gradients, the batches that wait for the
    dictionary, and the generators. Parameters and the optimizer change in no such pass.

    Raises:
        UserError: If the compiler fails.
    """
    from torch._dynamo.exc import TorchDynamoException  # its import takes a second

    logger.info("compiling the encoders, which can take minutes; the steps are timed after it")
    start = time.perf_counter()
    generators = rng_state()
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        first_line = str(cause).strip().split("\n")[0]
        raise UserError(
            f"the encoders cannot be compiled here ({type(cause).__name__}: "
            f"{printable(first_line)}): set MOCO.COMPILE False, which makes steps on a GPU slower"
        ) from error
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    optimizer.zero_grad(set_to_none=True)
    if isinstance(model, MoCo):
        model.discard_step()
    set_rng_state(generators)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    logger.info("the encoders are compiled, after %.1f s", time.perf_counter() - start)
