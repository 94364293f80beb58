"""Run by tests/transfer/evaluation/test_precise_bn.py as FOLDER: two gloo processes estimate
BatchNorm statistics, each from its images, and write them.
"""

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import os
import sys

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN as DetectronsPreciseBN
from torch import nn

from moco_d2.plugin import compat
from moco_d2.transfer.evaluation.precise_bn import update_statistics

BATCHES, PROCESSES, SHARE, SIDE = 4, 2, 3, 8  # images of a process in a batch, and their side


def network(norm: str) -> nn.Module:
    """Two layers; the statistics of the second depend on how the first one normalizes."""
    from detectron2.layers import get_norm

    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 4, 3), get_norm(norm, 4), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(4, 5, 3, stride=2), get_norm(norm, 5))
    return model.train()


def images() -> torch.Tensor:
    """(BATCHES, PROCESSES, SHARE, 3, SIDE, SIDE), unlike from process to process."""
    pixels = torch.randn(
        BATCHES, PROCESSES, SHARE, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7)
    )
    return pixels * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1, 1) + 2


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b for name, b in model.state_dict().items() if "running" in name}


def detectrons(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What Detectron2's own hook makes of the same."""
    hook: HookBase = DetectronsPreciseBN(0, model, batches, len(batches))
    hook.update_stats()
    return statistics(model)


def worker(root: str, rank: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{root}/store", rank=rank, world_size=PROCESSES
    )
    compat.set_local_process_group(PROCESSES)
    mine = list(images()[:, rank])
    found = {}
    for norm in ("BN", "naiveSyncBN"):
        model = network(norm)
        update_statistics(model, mine)
        found[norm] = statistics(model)
    # Images are of all sizes; weighted by this process's, the same batches have another mean.
    cropped = [batch[..., : SIDE - rank * i] for i, batch in enumerate(mine)]
    found["detectron2"] = detectrons(network("naiveSyncBN"), cropped)
    model = network("naiveSyncBN")
    update_statistics(model, cropped)
    found["of all sizes"] = statistics(model)
    torch.save(found, f"{root}/rank{rank}.pth")
    dist.barrier()  # a process that leaves early takes its connections with it
    dist.destroy_process_group()


if __name__ == "__main__":
    worker(sys.argv[1], int(os.environ["RANK"]))
