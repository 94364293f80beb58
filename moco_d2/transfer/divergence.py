"""A loss that is no longer finite: what it looked like, and what it likely came from."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from moco_d2.errors import UserError
from moco_d2.transfer.schedule import reference_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# Beyond the warm-up by as much again, a divergence still is one of the first, steepest steps.
_EARLY = 2
_LR_TOLERANCE = 1.01


class DivergenceError(UserError):
    """The loss, or a weight, is no longer finite; `explain` says why.

    Attributes:
        losses: name -> value, mean over all processes.
        bad_annotations: sentences about the images of the step; empty if they are in order.
    """

    def __init__(self, losses: Mapping[str, float], bad_annotations: list[str] | None = None):
        super().__init__(", ".join(f"{name} {value}" for name, value in losses.items()))
        self.losses = dict(losses)
        self.bad_annotations = bad_annotations or []


def annotations_in_error(batches: Iterable[list[dict[str, Any]]]) -> list[str]:
    """One sentence about every image whose pixels or boxes no loss can be computed from."""
    found = []
    for sample in (sample for batch in batches for sample in batch):
        name = sample.get("file_name", "?")
        if not torch.isfinite(sample["image"].float()).all():
            found.append(f"the pixels of {name} are not finite")
        if "instances" not in sample:
            continue
        boxes = sample["instances"].gt_boxes.tensor
        sizes = boxes[:, 2:] - boxes[:, :2]
        if not torch.isfinite(boxes).all() or (sizes <= 0).any():
            found.append(f"a box of {name} is empty, turned around or not finite")
    return found


@contextlib.contextmanager
def proposals_checked(batches: Iterable[list[dict[str, Any]]] = ()) -> Iterator[None]:
    """Turn what Detectron2's RPN raises for proposals that are not finite into our error.

    Args:
        batches: what the model is given, to be looked at.

    Raises:
        DivergenceError: in the process whose proposals they are.
    """
    try:
        yield
    except FloatingPointError as error:
        raise DivergenceError({"proposals": math.nan}, annotations_in_error(batches)) from error


def likely_cause(cfg: "CfgNode", iteration: int, error: DivergenceError) -> str:
    """What the divergence most likely came from, and the key to change; part of a sentence.

    Args:
        cfg: as it runs.
        iteration: at which it was seen.
        error: what was seen.
    """
    return next(_causes(cfg, iteration, error))


def _causes(cfg: "CfgNode", iteration: int, error: DivergenceError) -> Iterator[str]:
    """In the order in which a cause excludes the next: data, number type, missing norms, and then
    the learning rate, of which there is always too much.
    """
    solver = cfg.SOLVER
    for sentence in error.bad_annotations:
        yield f"{sentence}: mend the annotation or remove it"
    if solver.AMP.ENABLED and cfg.MOCO.AMP_DTYPE == "float16":
        yield (
            "SOLVER.AMP.ENABLED with MOCO.AMP_DTYPE float16, which ends at 65504: set MOCO."
            "AMP_DTYPE bfloat16"
        )
    frozen = cfg.MODEL.RESNETS.NORM == "FrozenBN"
    if "fpn" in cfg.MODEL.BACKBONE.NAME and not cfg.MODEL.FPN.NORM and not frozen:
        yield (
            "MODEL.FPN.NORM is empty, without which such runs diverge (facebookresearch/moco issue "
            "23): set MODEL.FPN.NORM SyncBN"
        )
    reference = reference_config(cfg.MOCO.TASK)
    if reference is not None:
        theirs = reference.SOLVER.BASE_LR * solver.IMS_PER_BATCH / reference.SOLVER.IMS_PER_BATCH
        if theirs * _LR_TOLERANCE < solver.BASE_LR:
            yield (
                f"SOLVER.BASE_LR {solver.BASE_LR:g} is more than the task's {theirs:g} for "
                f"{solver.IMS_PER_BATCH} images a step: lower it"
            )
    if frozen:
        yield (
            "MODEL.RESNETS.NORM is FrozenBN, which does not adapt to the features "
            "(facebookresearch/moco issue 40): set SyncBN, or a quarter of SOLVER.BASE_LR "
            f"({solver.BASE_LR:g})"
        )
    if iteration < _EARLY * max(solver.WARMUP_ITERS, 1):
        yield (
            "the steps of the warm-up are too large: lengthen SOLVER.WARMUP_ITERS (now "
            f"{solver.WARMUP_ITERS}) or lower SOLVER.BASE_LR (now {solver.BASE_LR:g})"
        )
    yield f"the learning rate is too high: lower SOLVER.BASE_LR (now {solver.BASE_LR:g})"


def explain(cfg: "CfgNode", iteration: int, error: DivergenceError, last_good: str) -> str:
    """The whole sentence.

    Args:
        last_good: the newest checkpoint, or "".
    """
    worst = [name for name, value in error.losses.items() if not math.isfinite(value)]
    where = f" ({', '.join(worst)})" if worst else ""
    state = (
        f"the last good state is {last_good}, and --resume continues from it"
        if last_good
        else "there is no checkpoint yet: start again"
    )
    return (
        f"the loss is no longer finite at iteration {iteration}{where}; likely cause: "
        f"{likely_cause(cfg, iteration, error)}; {state}"
    )
