#!/usr/bin/env python3
"""Compare our fine-tuning step with stock Detectron2's on the same config and images.

Possible speed-ups are compared with our step one by one: bf16, a compiled backbone, and evaluation
in two processes. The detector is Mask R-CNN R50-FPN on generated scenes, made smaller by config
keys only.

    python benchmarks/fine_tuning.py
"""

import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import torch
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage
from harness import check, finish, parser, ratio, take_turns

from moco_d2.config.load import load_config
from moco_d2.demo import scenes
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.trainer import Trainer

ROOT = Path(__file__).parents[1]
TASK = "coco_FPN_1x_random.yaml"


def overrides(data: Path, out: Path, *, side: int, images: int, depth: int) -> list[str]:
    """Return the config overrides of both trainers."""
    coco = data / "coco"
    train, test = (
        f"('coco:{coco / 'annotations' / f'{split}.json'}:{coco / 'images' / split}',)"
        for split in ("train", "test")
    )
    stem = ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"] if depth < 50 else []
    return [
        *("DATASETS.TRAIN", train, "DATASETS.TEST", test, "MODEL.DEVICE", "cpu"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", str(len(scenes.CLASSES))),
        *("SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", str(images)),
        *("SOLVER.BASE_LR", "0.001", "INPUT.MIN_SIZE_TRAIN", f"({side},)"),
        *("INPUT.MIN_SIZE_TEST", str(side), "MODEL.RESNETS.DEPTH", str(depth), *stem),
        *("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "DATALOADER.NUM_WORKERS", "1"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64", "SEED", "1"),
        *("SOLVER.CHECKPOINT_PERIOD", "100000", "TEST.EVAL_PERIOD", "0"),
        *("OUTPUT_DIR", str(out)),
    ]


def stepper(trainer: DefaultTrainer, steps: int) -> Callable[[], None]:
    """Return an action that calls a trainer's run_step `steps` times, without hooks."""
    storage = EventStorage(0)
    trainer.model.train()

    def run() -> None:
        with storage:
            for _ in range(steps):
                trainer._trainer.iter = trainer.iter = storage.iter
                trainer.run_step()
                storage.step()

    run.storage = storage
    return run


def evaluation_seconds(words: list[str], weights: Path, processes: int) -> float:
    """Return the wall-clock time of --eval-only, including the start of the processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        *launcher,
        str(ROOT / "tools" / "train_net.py"),
        *("--config", TASK, "--eval-only", "--force"),
        *words,
        *("MODEL.WEIGHTS", str(weights)),
    ]
    start = time.perf_counter()
    done = subprocess.run(
        command,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, repeats=9)
    options.add_argument("--compile", action="store_true", help="also try a compiled backbone")
    args = options.parse_args()
    logging.disable(logging.WARNING)
    sizes: dict[str, Any] = {"side": 192, "images": 2, "depth": 50}
    steps, test_images = 2, 50
    if args.small:
        sizes, steps, test_images = {"side": 64, "images": 2, "depth": 18}, 1, 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes.write_dataset(
            folder / "data",
            seed=0,
            pretrain_images=9,
            knn_test_images=9,
            detection_train=40,
            detection_test=test_images,
        )
        words = overrides(folder / "data", folder / "out", **sizes)
        (folder / "out").mkdir()

        def built(kind: type, *more: str) -> DefaultTrainer:
            cfg = load_config(TASK, [*words, *more])
            check_datasets(cfg)
            torch.manual_seed(1)
            return kind(cfg)

        trainers = {
            "stock": built(DefaultTrainer),
            "ours": built(Trainer),
            "ours, bf16": built(Trainer, "SOLVER.AMP.ENABLED", "True"),
        }
        if args.compile:
            compiled = trainers["ours, compiled backbone"] = built(Trainer)
            compiled.model.backbone.compile(dynamic=True)
        runs = {label: stepper(trainer, steps) for label, trainer in trainers.items()}
        seconds = take_turns(runs, args.repeats, warmup=3)
        waited = runs["ours"].storage.history("data_time").global_avg()
        weights = folder / "weights.pth"
        torch.save({"model": trainers["ours"].model.state_dict()}, weights)
        evaluation = {n: evaluation_seconds(words, weights, n) for n in (1, 2)}
    median = {label: statistics.median(values) / steps for label, values in seconds.items()}
    checks = [
        check("ours / stock Detectron2", ratio(seconds["ours"], seconds["stock"]), at_most=1.03),
        check("stock, per step", median["stock"], unit="s"),
        check("ours, per step", median["ours"], unit="s"),
        check("waiting for images in our step", 100 * waited / median["ours"], unit="%"),
    ]
    for label in seconds.keys() - {"stock", "ours"}:
        checks.append(check(f"{label} / ours", ratio(seconds[label], seconds["ours"])))
    checks.append(
        check("evaluation in 2 processes of one thread / in 1", evaluation[2] / evaluation[1])
    )
    finish(
        args,
        title=f"Fine-tuning: Mask R-CNN R{sizes['depth']}-FPN, {sizes['images']} images of "
        f"{sizes['side']} pixels per step",
        checks=checks,
        notes=[
            f"The limit of 1.03 is 1.00 plus the noise of the machine. A turn has {steps} steps. "
            f"The evaluation has {test_images} images, and its time includes the start of the "
            "processes."
        ],
    )


if __name__ == "__main__":
    main()
