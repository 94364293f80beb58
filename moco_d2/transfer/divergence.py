"""The error for a loss that is no longer finite, and its most likely cause."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from moco_d2.config.load import reference_config
from moco_d2.errors import UserError
from moco_d2.transfer.norms import backbone_norm

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# A divergence within this many warm-up lengths is blamed on the warm-up.
_EARLY = 2
_LR_TOLERANCE = 1.01  # a learning rate is too high if it is more than 1% above the task's


#: The message of every divergence begins with it.
DIVERGED = "the loss is no longer finite at iteration"


class DivergenceError(UserError):
    """The loss or a weight is no longer finite; `explain` names the likely cause.

    Attributes:
        losses: Mean of each loss over all processes, by name.
        bad_annotations: Sentences about unusable images of the step; empty if there are none.
    """

    def __init__(self, losses: Mapping[str, float], bad_annotations: list[str] | None = None):
        super().__init__(", ".join(f"{name} {value}" for name, value in losses.items()))
        self.losses = dict(losses)
        self.bad_annotations = bad_annotations or []


def annotations_in_error(batches: Iterable[list[dict[str, Any]]]) -> list[str]:
    """Return a sentence about every image with pixels or boxes that make the loss not finite."""
    problems = []
    for sample in (sample for batch in batches for sample in batch):
        name = sample.get("file_name", "?")
        if not torch.isfinite(sample["image"].float()).all():
            problems.append(f"the pixels of {name} are not finite")
        if "instances" not in sample:
            continue
        boxes = sample["instances"].gt_boxes.tensor
        sizes = boxes[:, 2:] - boxes[:, :2]
        if not torch.isfinite(boxes).all() or (sizes <= 0).any():
            problems.append(f"a box of {name} is empty, inverted or not finite")
    return problems


@contextlib.contextmanager
def proposals_checked(batches: Iterable[list[dict[str, Any]]] = ()) -> Iterator[None]:
    """Turn the error that Detectron2's RPN raises for non-finite proposals into DivergenceError.

    Args:
        batches: The inputs of the model; they are checked for the cause.

    Raises:
        DivergenceError: If proposals are not finite; in the process that computed them.
    """
    try:
        yield
    except FloatingPointError as error:
        raise DivergenceError({"proposals": math.nan}, annotations_in_error(batches)) from error


def likely_cause(cfg: "CfgNode", iteration: int, error: DivergenceError) -> str:
    """Return the most likely cause of a divergence and the key to change, as part of a sentence.

    Args:
        cfg: The config of the run.
        iteration: The iteration at which the loss was not finite.
        error: The error that was raised there.
    """
    return next(_causes(cfg, iteration, error))


def _causes(cfg: "CfgNode", iteration: int, error: DivergenceError) -> Iterator[str]:
    """Yield the causes from the most to the least specific: data, number type, missing norms, and
    the learning rate, which is always a possible cause.
    """
    solver = cfg.SOLVER
    for sentence in error.bad_annotations:
        yield f"{sentence}: correct the annotation or remove it"
    if solver.AMP.ENABLED and cfg.MOCO.AMP_DTYPE == "float16":
        yield (
            "SOLVER.AMP.ENABLED is True with MOCO.AMP_DTYPE float16, which overflows above 65504: "
            "set MOCO.AMP_DTYPE bfloat16"
        )
    frozen = backbone_norm(cfg) == "FrozenBN"
    if "fpn" in cfg.MODEL.BACKBONE.NAME and not cfg.MODEL.FPN.NORM and not frozen:
        yield (
            "MODEL.FPN.NORM is empty, with which such runs diverge (facebookresearch/moco issue "
            "23): set MODEL.FPN.NORM SyncBN"
        )
    reference = reference_config(cfg.MOCO.TASK)
    if reference is not None:
        expected = reference.SOLVER.BASE_LR * solver.IMS_PER_BATCH / reference.SOLVER.IMS_PER_BATCH
        if expected * _LR_TOLERANCE < solver.BASE_LR:
            yield (
                f"SOLVER.BASE_LR {solver.BASE_LR:g} is more than the task's {expected:g} for "
                f"{solver.IMS_PER_BATCH} images a step: lower it"
            )
    if frozen:
        yield (
            "MODEL.RESNETS.NORM is FrozenBN, which does not adapt to the features "
            "(facebookresearch/moco issue 40): set it to SyncBN, or lower SOLVER.BASE_LR "
            f"({solver.BASE_LR:g}) to a quarter"
        )
    if iteration < _EARLY * max(solver.WARMUP_ITERS, 1):
        yield (
            "the steps of the warm-up are too large: lengthen SOLVER.WARMUP_ITERS (now "
            f"{solver.WARMUP_ITERS}) or lower SOLVER.BASE_LR (now {solver.BASE_LR:g})"
        )
    yield f"the learning rate is too high: lower SOLVER.BASE_LR (now {solver.BASE_LR:g})"


def explain(cfg: "CfgNode", iteration: int, error: DivergenceError, last_good: str) -> str:
    """Return the whole error message.

    Args:
        cfg: The config of the run.
        iteration: The iteration at which the loss was not finite.
        error: The error that was raised there.
        last_good: The newest checkpoint, or "" if there is none.
    """
    worst = [name for name, value in error.losses.items() if not math.isfinite(value)]
    where = f" ({', '.join(worst)})" if worst else ""
    state = (
        f"the last good state is {last_good}, and --resume continues from it"
        if last_good
        else "there is no checkpoint yet: start again"
    )
    return (
        f"{DIVERGED} {iteration}{where}; likely cause: "
        f"{likely_cause(cfg, iteration, error)}; {state}"
    )
