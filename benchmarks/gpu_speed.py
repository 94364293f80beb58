"""Steps of gpu.py that measure: the pretraining step, feeding, and fine-tuning."""

import argparse
import io
import itertools
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import feeding as files
import fine_tuning as detectors
import numpy as np
import torch
import torchvision
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage
from gpu_common import ROOT, V2, Run, graphs, pretrainer, release
from harness import ratio, take_turns
from PIL import Image
from pretraining_step import IMAGES_PER_SECOND_WANTED, InMemory, supervised

from moco_d2.config.load import load_config
from moco_d2.demo import scenes
from moco_d2.pretrain.augmentation.views import build_augmentation, build_crop
from moco_d2.pretrain.data.listed_stream import ListedData
from moco_d2.pretrain.data.sources import list_images
from moco_d2.pretrain.data.stream import ViewMaker
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.trainer import Trainer

_SIDE = 224  # pixels of a view, on a GPU
_QUEUE = 65536
# (compiled, groups of BatchNorm > 1, augmentation on the device), the most important ones first.
_FORMS = sorted(
    itertools.product((False, True), (False, True), (False, True)),
    key=lambda form: (form not in ((False, False, False), (True, True, True)), form),
)


def step(run: Run) -> None:
    """Measure our step beside the supervised one, as long as there is time for a next form."""
    size = run.size
    longest, left_out = {False: 0.0, True: 0.0}, []  # seconds of an eager and a compiled form
    # On a CPU, each compiled form would take its seconds, and show no more than the first one.
    forms = _FORMS if run.on_gpu else _FORMS[:5]
    planned = [(batch, form, None) for batch in size.batches for form in forms]
    # The host queues a small batch more slowly than a GPU computes it, but for CUDA graphs.
    planned.append((min(size.batches), (run.on_gpu, True, True), "reduce-overhead"))
    for batch, (compiled, split, on_device), mode in planned:
        splits = size.splits if split else 1
        name = (
            f"batch {batch}, {'compiled' if compiled else 'eager'}"
            f"{' with CUDA graphs' if mode else ''}, SplitBN {splits}, "
            f"augmentation {'on the device' if on_device else 'none'}"
        )
        if run.seconds_left < 1.2 * longest[compiled]:
            left_out.append(name)
            continue
        start = time.monotonic()
        settings = {
            "MOCO.BN_SPLITS": splits,
            "MOCO.COMPILE": compiled,
            "SOLVER.AMP.ENABLED": True,
            "MOCO.AUGMENTATION.WHERE": "device" if on_device else "workers",
            "MOCO.AUGMENTATION.SIZE": _SIDE if run.on_gpu else size.side,
            "MOCO.DICTIONARY.SIZE": _QUEUE if run.on_gpu else size.queue,
        }
        try:
            with graphs(run, mode):
                _measure(run, name, settings, batch=batch)
        except RuntimeError as error:
            if not mode:
                raise
            run.note(f"{name}: {str(error)[:500]}")  # no recipe has them
        release(run)
        longest[compiled] = max(longest[compiled], time.monotonic() - start)
    for name in left_out:
        run.note(f"There was no time for: {name}.")


def _measure(run: Run, name: str, settings: dict[str, Any], *, batch: int) -> None:
    """Measure one form of the step."""
    before = torch.cuda.memory_allocated() if run.on_gpu else 0
    trainer = pretrainer(run, V2, settings, batch=batch, kind=InMemory)
    side, augmented = settings["MOCO.AUGMENTATION.SIZE"], settings["MOCO.AUGMENTATION.WHERE"]
    views = {}
    for view in ("query", "key"):
        made = torch.randn(batch, 3, side, side, device=run.device)
        if augmented == "device":
            made = (128 + 50 * made).clamp(0, 255).byte()
        views[view] = made.contiguous(memory_format=trainer.layout)
    trainer.batch = views | {"index": torch.arange(batch, device=run.device)}
    storage = EventStorage(0)

    def ours() -> None:
        with storage:
            for _ in range(run.size.steps):
                trainer.run_step()
                trainer.iter += 1
                storage.step()
        _synchronize(run)

    start = time.perf_counter()
    ours()
    run.goal(f"{name}: the first {run.size.steps} steps", time.perf_counter() - start, unit="s")
    if run.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        ours()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        run.goal(f"{name}: peak memory", peak, unit="GiB")
    args = argparse.Namespace(
        **{"arch": run.size.supervised, "device": run.device, "compile": settings["MOCO.COMPILE"]},
        **{"batch": batch, "size": side, "bf16": True},
    )
    one = _supervised(run, args)

    def theirs() -> None:
        for _ in range(run.size.steps):
            one()
        _synchronize(run)

    seconds = take_turns({"ours": ours, "supervised": theirs}, run.size.turns)
    speed = batch * run.size.steps / statistics.median(seconds["ours"])
    is_goal = batch == 256 and settings["MOCO.COMPILE"] and settings["MOCO.BN_SPLITS"] == 8
    run.goal(f"{name}: ours", speed, unit="img/s", **_wanted(run) if is_goal else {})
    limit = {"at_most": 1.40} if is_goal else {}
    run.goal(f"{name}: ours / supervised", ratio(seconds["ours"], seconds["supervised"]), **limit)
    last = storage.latest()["total_loss"][0]
    run.holds(f"{name}: the loss is finite", bool(np.isfinite(last)))


def _supervised(run: Run, args: argparse.Namespace) -> Callable[[], Any]:
    if run.on_gpu or not args.compile:
        return supervised(args)
    args.compile = False  # on a CPU, C++ code would take minutes
    return supervised(args)


def _wanted(run: Run) -> dict[str, float]:
    """Return the goal of this card in images per second, if it has one."""
    goal = IMAGES_PER_SECOND_WANTED.get(torch.cuda.get_device_name()) if run.on_gpu else None
    return {} if goal is None else {"at_least": goal}


def _synchronize(run: Run) -> None:
    if run.on_gpu:
        torch.cuda.synchronize()


def feeding(run: Run) -> None:
    """Measure what workers read and prepare, and JPEGs decoded on the device."""
    size = run.size
    torch.set_num_threads(1)
    unique = min(size.jpegs, 128)
    files.write_images(run.folder, unique)
    flat = run.folder / "flat"
    for number in range(unique, size.jpegs):
        os.link(flat / f"{number % unique:05d}.jpg", flat / f"{number:05d}.jpg")
    batch = max(size.batches)
    side = _SIDE if run.on_gpu else size.side
    for workers in size.workers:
        for where, transform in (
            ("the device", build_crop(size=side)),
            ("the workers", build_augmentation("v2", size=side)),
        ):
            data = ListedData(
                list_images(flat),
                make_views=ViewMaker(transform, names=("query", "key"), seed=0),
                total_batch=batch,
                num_workers=workers,
            )
            speed = _fed(run, data.batches(), batch, workers)
            run.goal(
                f"{workers} workers, augmentation on {where}",
                speed,
                unit="img/s",
                **_wanted(run) if where == "the device" else {},
            )
    _decode(run, sorted(flat.iterdir())[: max(batch, 8)])


def _fed(run: Run, batches: Any, batch: int, workers: int) -> float:
    """Return the images per second that arrive on the device, after the workers have started."""
    for _ in range(workers + 1):  # until then, some were made before the clock starts
        next(batches)
    start = time.perf_counter()
    for _ in range(run.size.fed):
        for value in next(batches).values():
            if isinstance(value, torch.Tensor):
                value.to(run.device, non_blocking=True)
    _synchronize(run)
    seconds = time.perf_counter() - start
    batches.close()
    return batch * run.size.fed / seconds


def _decode(run: Run, paths: list[Path]) -> None:
    """Decode JPEGs on the device with torchvision, and compare the pixels with Pillow's."""
    encoded = [torch.from_numpy(np.frombuffer(p.read_bytes(), np.uint8).copy()) for p in paths]
    try:
        decoded = torchvision.io.decode_jpeg(encoded, device=run.device)
    except Exception as error:
        run.note(f"torchvision decodes no JPEG on the device here: {str(error)[:300]}")
        return
    seconds = take_turns(
        {
            "decode": lambda: (
                torchvision.io.decode_jpeg(encoded, device=run.device),
                _synchronize(run),
            )
        },
        run.size.turns,
    )["decode"]
    run.goal(
        "decoding on the device, whole images",
        len(paths) / statistics.median(seconds),
        unit="img/s",
    )
    differences = [
        np.abs(
            image.permute(1, 2, 0).cpu().numpy().astype(int)
            - np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
        ).mean()
        for path, image in zip(paths[:8], decoded, strict=False)
    ]
    # Libraries scale the chroma up in different ways; an error of the colors would be tens.
    run.check(
        "mean difference of a decoded pixel to Pillow's", max(differences), unit="levels", at_most=4
    )


def fine_tuning(run: Run) -> None:
    """Compare C4 and FPN fine-tuning with Detectron2's own trainer: losses, then seconds."""
    logging.disable(logging.WARNING)
    scenes.write_dataset(
        run.folder / "data",
        seed=0,
        pretrain_images=9,
        knn_test_images=9,
        detection_train=8,
        detection_test=2,
    )
    words = detectors.overrides(
        run.folder / "data",
        run.folder / "out",
        side=run.size.detector_side,
        images=4 if run.on_gpu else 2,
        depth=50,
    )
    slim = [] if run.on_gpu else slim_detector()
    (run.folder / "out").mkdir()
    for name, task in (("C4", "coco_C4_1x_random.yaml"), ("FPN", "coco_FPN_1x_random.yaml")):
        workers = str(run.size.workers[0] if run.on_gpu else 0)
        more = ["MODEL.DEVICE", run.device, "DATALOADER.NUM_WORKERS", workers]
        cfg = load_config(task, [*slim, *words, *more])
        check_datasets(cfg)
        trainers = {}
        for label, kind in (("stock", DefaultTrainer), ("ours", Trainer)):
            torch.manual_seed(1)
            trainers[label] = kind(cfg)
        batch = next(trainers["stock"]._trainer._data_loader_iter)
        totals = {}
        for label, trainer in trainers.items():
            trainer.model.train()
            torch.manual_seed(2)
            with EventStorage(0), torch.no_grad():
                totals[label] = float(sum(trainer.model(batch).values()))
        difference = abs(totals["ours"] - totals["stock"]) / totals["stock"]
        run.check(f"{name}: relative difference of the losses", difference, at_most=1e-4)
        steps = 3 if run.on_gpu else 1
        runs = {
            label: _then(run, detectors.stepper(trainer, steps))
            for label, trainer in trainers.items()
        }
        seconds = take_turns(runs, run.size.turns)
        run.goal(
            f"{name}: ours / stock Detectron2",
            ratio(seconds["ours"], seconds["stock"]),
            at_most=1.03,
        )
        for label, values in seconds.items():
            run.goal(f"{name}: {label}", statistics.median(values) / steps, unit="s/step")
        del trainers, runs
        release(run)


def slim_detector() -> list[str]:
    """Return the words with which the tests make a detector of megabytes."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.toy_data import SLIM_DETECTOR

    return SLIM_DETECTOR


def _then(run: Run, action: Callable[[], None]) -> Callable[[], None]:
    def done() -> None:
        action()
        _synchronize(run)

    return done
