"""Distribution of parallel runs over the GPUs or cores of this machine."""

import itertools
import os
from pathlib import Path

from moco_d2.benchmark.runs.execution import Place
from moco_d2.engine.device import usable_cores
from moco_d2.errors import UserError


def make_places(gpus_per_run: int, jobs: int | None, *, runs: int, tools: Path) -> list[Place]:
    """Return one Place per parallel run. With more jobs than groups of GPUs, runs share GPUs.

    Args:
        gpus_per_run, jobs, tools: See runner.run.
        runs: Number of runs of the whole suite. It determines the number of threads of each run, so
            a resumed run has as many threads as before.

    Raises:
        UserError: If there are too few GPUs.
    """
    gpus = visible_gpus() if gpus_per_run else []
    if gpus_per_run > max(1, len(gpus)):
        raise UserError(
            f"--gpus-per-run must be at most {max(1, len(gpus))}, got {gpus_per_run}: "
            f"{len(gpus)} GPU(s) are visible"
        )
    cores = usable_cores()
    if not gpus:
        jobs = jobs or max(1, min(cores, runs))
        return [Place(threads=max(1, cores // jobs), tools=tools)] * jobs
    groups = [
        tuple(gpus[start : start + gpus_per_run])
        for start in range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)
    ]
    jobs = jobs or len(groups)
    threads = max(1, cores // jobs)
    shared = itertools.islice(itertools.cycle(groups), jobs)
    return [Place(gpus_per_run, group, threads, tools) for group in shared]


def visible_gpus() -> list[str]:
    """Return the GPUs that child processes see, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    # NVML counts them, because CUDA must not be initialized before a fork.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return named[:count] if named != [""] else [str(index) for index in range(count)]
