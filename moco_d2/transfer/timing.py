"""Time steps of the trainer and test images, for tools/benchmark.py plan --measure and
tools/transfer.py.

python -m moco_d2.transfer.timing --config-file voc_C4_random.yaml --out timing.json KEY VALUE
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from moco_d2.cli import argument_parser, run_command, start_job

WARM_UP, STEPS = 3, 10
_TEST_WARM_UP, _TEST_IMAGES = 2, 10
_ENOUGH_SECONDS = 60.0  # after this time, slow hardware stops before STEPS steps


def measure(args: argparse.Namespace) -> None:
    """Time steps of a run from random weights (their values do not change the speed), and write
    ``{"seconds_per_iteration", "steps", "iterations", "images_per_batch", "world_size", "on_gpu",
    "hardware", "peak_memory_gib", "seconds_per_test_image", "train_images", "test_images",
    "start_seconds"}``. The seconds are medians over ``steps`` steps and over a few test images;
    iterations and images per batch are those of a whole run on this number of processes, and
    ``start_seconds`` is what a run needs before its first step (checks of the data, the model).

    Raises:
        UserError: As in tools/train_net.py.
    """
    import torch
    from detectron2.utils import comm
    from detectron2.utils.events import EventStorage

    from moco_d2.engine.job import load_job
    from moco_d2.files import write_json
    from moco_d2.records.environment import hardware, peak_memory_gib
    from moco_d2.transfer.plan import LoadedRun, plan_run
    from moco_d2.transfer.preflight.changes import apply_changes
    from moco_d2.transfer.preflight.dataset_checks import check_datasets
    from moco_d2.transfer.preflight.findings import enforce
    from moco_d2.transfer.trainer import Trainer
    from moco_d2.transfer.weights import RANDOM

    began = time.perf_counter()
    cfg = load_job(args, fine_tunes=True)
    cfg.MODEL.WEIGHTS = RANDOM
    findings = check_datasets(cfg)
    enforce(findings, force=False, logger=logging.getLogger(__name__))
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        plan = plan_run(LoadedRun(args.config_file, cfg, weights=None), comm.get_world_size())
        plan, _ = apply_changes(plan, findings)
        trainer = Trainer(plan.cfg)
        trainer.model.train()
        start_seconds = time.perf_counter() - began
        seconds: list[float] = []
        with EventStorage(0) as trainer.storage:
            for trainer.iter in range(WARM_UP + STEPS):
                start = time.perf_counter()
                trainer.run_step()
                if on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
                # All processes follow the first one, because they must stop at the same step.
                if comm.all_gather(sum(seconds))[0] > args.most_seconds and len(seconds) > 1:
                    break
        train_images = trainer.data_loader.images
        trainer._trainer.close()
        test_seconds, test_images = _test_seconds(trainer, args.most_seconds, on_gpu=on_gpu)
    timed = seconds[min(WARM_UP, len(seconds) - 1) :]
    if comm.is_main_process():
        content = {
            "seconds_per_iteration": statistics.median(timed),
            "steps": len(timed),
            "iterations": plan.schedule["max_iter"],
            "images_per_batch": plan.schedule["ims_per_batch"],
            "world_size": plan.schedule["world_size"],
            "on_gpu": on_gpu,
            "hardware": hardware(cfg.MODEL.DEVICE)["name"],
            "peak_memory_gib": peak_memory_gib(cfg.MODEL.DEVICE),
            "seconds_per_test_image": test_seconds,
            "train_images": train_images,
            "test_images": test_images,
            "start_seconds": start_seconds,
        }
        write_json(args.out, content)


def _test_seconds(trainer: Any, most_seconds: float, *, on_gpu: bool) -> tuple[float, int]:
    """Return the median seconds of a test image with a detector that has learned nothing, and the
    number of images of all test sets. Such a detector has as many proposals as a trained one.
    """
    import torch

    trainer.model.eval()
    seconds: list[float] = []
    images = 0
    for name in trainer.cfg.DATASETS.TEST:
        loader = trainer.build_test_loader(trainer.cfg, name)
        images += len(loader.dataset)
        start = time.perf_counter()
        with torch.no_grad():
            for index, batch in enumerate(loader):
                trainer.model(batch)
                if on_gpu:
                    torch.cuda.synchronize()
                if index >= _TEST_WARM_UP:
                    seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
                if index >= _TEST_WARM_UP + _TEST_IMAGES or sum(seconds) > most_seconds:
                    break
    return (statistics.median(seconds) if seconds else 0.0), images


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = argument_parser(
        "Time a few steps of fine-tuning.",
        "python -m moco_d2.transfer.timing --config-file voc_C4_random.yaml --out timing.json",
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE")
    command.add_argument(
        "--most-seconds",
        type=float,
        default=_ENOUGH_SECONDS,
        help="time for the steps, and for the test images (default: %(default)s)",
    )
    return command


if __name__ == "__main__":
    run_command(lambda: start_job("moco_d2.transfer.timing:measure", parser().parse_args()))
