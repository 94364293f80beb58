"""Run by tests/transfer/evaluation/test_voc_evaluation.py as FOLDER: two gloo processes
evaluate halves of a dataset, and the first compares with all of it by itself.
"""

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import os
import sys
from pathlib import Path

import torch.distributed as dist
from detectron2.evaluation import PascalVOCDetectionEvaluator
from support.transfer.voc_cases import evaluate, make_case

from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator

IMAGES = 41  # an odd number: the halves differ


def results(case, order):
    return {
        "compatible": evaluate(VOCEvaluator(case.dataset), case, order),
        "exact": evaluate(VOCEvaluator(case.dataset, mode="exact"), case, order),
    }


def worker(rank: int, root: str) -> None:
    from moco_d2.plugin import compat

    # A case is drawn anew in each process, under a folder of its own: equal, as its seed is.
    case = make_case(Path(root) / str(rank), 11, year=2012, images=IMAGES)
    alone = results(case, range(IMAGES))
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    compat.set_local_process_group(2)
    half = (IMAGES + 1) // 2
    # InferenceSampler's parts are contiguous, so together they are in order ...
    together = results_together(case, range(half) if rank == 0 else range(half, IMAGES), rank)
    # ... and here they are not.
    swapped = results_together(case, range(half, IMAGES) if rank == 0 else range(half), rank)
    if rank == 0:
        assert together == alone
        assert swapped["exact"] == alone["exact"]
        assert swapped["compatible"] != alone["compatible"]
        print("equal")
    dist.barrier()  # a process that leaves early takes its connections with it
    dist.destroy_process_group()


def results_together(case, order, rank):
    found = {}
    for mode in ("compatible", "exact"):
        evaluator = VOCEvaluator(case.dataset, mode=mode)
        evaluator.reset()
        for i in order:
            evaluator.process([case.inputs[i]], [case.outputs[i]])
        found[mode] = evaluator.evaluate().get("bbox")
        assert (found[mode] is None) == (rank > 0)
    theirs = PascalVOCDetectionEvaluator(case.dataset)
    theirs.reset()
    for i in order:
        theirs.process([case.inputs[i]], [case.outputs[i]])
    reference = theirs.evaluate()
    if rank == 0:
        for metric, value in reference["bbox"].items():
            assert found["compatible"][metric] == value
    return found


if __name__ == "__main__":
    worker(int(os.environ["RANK"]), sys.argv[1])
