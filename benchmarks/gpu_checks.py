"""The first steps of gpu.py: the card, losses against the CPU's, and waits of the host."""

import collections
import contextlib
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import torch
from detectron2.utils.events import EventStorage
from gpu_common import ROOT, V1, V2, V3, V3_VIT, Run, graphs, pretrainer, release
from gpu_wheels import missing
from harness import RESULTS, machine
from torch.amp.grad_scaler import GradScaler

_SHARP = 0.2 / 0.07  # the temperatures of v2 and v1, by which a similarity's error is divided
_COMPILING_S = 25  # seconds that a first step may take
_FP16_SCALE = 128.0
_OF_V3 = {"MOCO.WARMUP_EPOCHS": 0, "SOLVER.AMP.ENABLED": False, "MOCO.AMP_DTYPE": "bfloat16"}
_STEPS = 3  # losses that are compared: of the start, and after one and two updates
_WAIT = "called a synchronizing CUDA operation"


def environment(run: Run) -> None:
    """Report the card and the packages."""
    if run.on_gpu and not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU here: give --cpu for a rehearsal on the CPU")
    for name, value in machine(run.device).items():
        run.note(f"{name}: {value}")
    run.note(f"system: {platform.platform()}")
    run.check("packages that are missing", len(missing()), unit="packages", at_most=0)
    if run.on_gpu:
        card = torch.cuda.get_device_properties(0)
        run.note(f"capability {card.major}.{card.minor}, {card.multi_processor_count} SMs")
        run.note(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        run.goal("memory of the card", card.total_memory / 2**30, unit="GiB")
        run.goal("GPUs", torch.cuda.device_count(), unit="GPUs")
        run.holds("bf16 is supported", torch.cuda.is_bf16_supported())
    side = 8192 if run.on_gpu else 64
    a = torch.randn(side, side, device=run.device, dtype=torch.bfloat16)
    exact = a[:8].float() @ a.float()
    error = ((a @ a)[:8].float() - exact).abs().max() / exact.abs().max()
    # bf16 keeps 8 bits, and rounds the result once.
    run.check("a bf16 product against fp32, relative error", error.item(), at_most=2**-7)


def mechanisms(run: Run) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name of each pretraining mechanism -> its config and settings."""
    split = {"MOCO.BN_SPLITS": run.size.splits}
    return {
        "queue": (V2, {"MOCO.BN_SPLITS": 1}),
        "queue, SplitBN": (V2, split),
        "queue, v1": (V1, split),
        "queue, symmetric, 2 micro-batches": (
            V2,
            {"MOCO.BN_SPLITS": 2, "MOCO.SYMMETRIC": True, "MOCO.ACCUMULATION": 2},
        ),
        "memory bank": (V2, {"MOCO.DICTIONARY.NAME": "MemoryBank"}),
        "end-to-end": (V2, split | {"MOCO.DICTIONARY.NAME": "EndToEnd"}),
        "supervised": ("supervised_R50_200ep.yaml", {}),
        # LARS scales its steps by 0.001, and the losses have to move.
        "MoCo v3": (V3, _OF_V3 | {"SOLVER.BASE_LR": 2.0}),
        "MoCo v3, ViT": (
            V3_VIT,
            _OF_V3
            | {"MOCO.ENCODER.ARCH": "vit_small", "MOCO.ENCODER.WIDTH_FACTOR": run.size.vit_width}
            | {"MOCO.ENCODER.MLP_DIM": run.size.vit_hidden}
            | {"SOLVER.BASE_LR": 0.001},
        ),
        # Last and smaller, because compiling takes longer than all the others.
        "queue, SplitBN, compiled R18": (
            V2,
            split | {"MOCO.COMPILE": True, "MOCO.ENCODER.ARCH": "resnet18"},
        ),
    }


# Name of the precision -> settings, largest differences (relative above 1) of the first loss
# and of those after updates, reason.
PRECISIONS: dict[str, tuple[dict[str, Any], tuple[float, float], str]] = {
    "fp32": (
        {},
        (1e-4, 1e-2),
        "the order of sums differs, which updates through BatchNorm of few images amplify",
    ),
    "bf16": (
        {"SOLVER.AMP.ENABLED": True},
        (0.05, 0.1),
        "a value keeps 8 bits",
    ),
    "fp16": (
        {"SOLVER.AMP.ENABLED": True, "MOCO.AMP_DTYPE": "float16"},
        (0.01, 0.03),
        "a value keeps 11 bits",
    ),
}


def losses(run: Run) -> None:
    """Compare the first losses of each mechanism in each precision with fp32 on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for precision, (_, (first, later), reason) in PRECISIONS.items():
        run.note(
            f"{precision} may differ by {first:g} of the first loss (above 1) and {later:g} of "
            f"those after updates, with T = 0.07 by {_SHARP:.2g} times as much: {reason}."
        )
    for name, (config, settings) in mechanisms(run).items():
        # In another memory layout, so that on a CPU, too, other kernels are compared.
        plain = {"MOCO.CHANNELS_LAST": False, "MOCO.COMPILE": False}
        reference = first_losses(run, config, settings | plain, device="cpu")
        for precision, (more, limits, _) in PRECISIONS.items():
            if "MOCO.COMPILE" in settings and run.seconds_left < _COMPILING_S:
                run.note(f"There was no time for: {name}, {precision}.")
                continue
            try:
                found = first_losses(run, config, settings | more)
            except Exception as error:
                run.note(f"{name}, {precision}: {type(error).__name__}: {str(error)[:500]}")
                run.holds(f"{name}, {precision}: the steps end", False)
                continue
            differences = [
                abs(a - b) / max(b, 1) if math.isfinite(a) else math.inf
                for a, b in zip(found, reference, strict=True)
            ]
            passes = settings.get("MOCO.ACCUMULATION", 1)  # each has a loss
            parts = differences[:passes], differences[passes:]
            for when, part, limit in zip(("at first", "later"), parts, limits, strict=True):
                run.check(
                    f"{name}, {precision}: largest difference {when}",
                    max(part),
                    at_most=limit * (_SHARP if config == V1 else 1),
                )
        change = abs(reference[-1] - reference[0]) / reference[0]
        run.goal(f"{name}: change of the loss by the updates", change)
        release(run)


def first_losses(
    run: Run, config: str, settings: dict[str, Any], *, device: str | None = None
) -> list[float]:
    """Return the losses of the first passes, on the same images and weights on every device."""
    with graphs(run), _draws_of_the_cpu():
        trainer = pretrainer(run, config, settings, batch=run.size.batch, device=device)
        if trainer.scaler.is_enabled():  # the usual scale is lowered by skipping the first steps
            trainer.scaler = GradScaler(trainer.device.type, init_scale=_FP16_SCALE)
        trainer._batches = _batches(trainer)
        kept: list[Any] = []
        trainer.model.register_forward_hook(
            lambda _, __, out: kept.append(
                sum(v.detach() for name, v in out.items() if name.startswith("loss"))
            )
        )
        with EventStorage(0):
            for _ in range(_STEPS):
                trainer.run_step()
                trainer.iter += 1
    return [float(loss) for loss in kept]


@contextlib.contextmanager
def _draws_of_the_cpu() -> Iterator[None]:
    """Draw the memory bank's negatives on the CPU: a GPU's generator has other numbers."""
    draw = torch.randint

    def drawn(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return draw(*args, **kwargs).to(device or "cpu")

    with mock.patch.object(torch, "randint", drawn):
        yield


def _batches(trainer: Any) -> Iterator[Any]:
    """Yield one random batch again and again, as the loader does."""
    augmentation, batch = trainer.cfg.MOCO.AUGMENTATION, trainer.cfg.SOLVER.IMS_PER_BATCH
    shape = (batch, augmentation.SIZE, augmentation.SIZE, 3)
    generator = torch.Generator().manual_seed(2)
    made = {}
    for name in trainer.data.make_views.names:
        view = torch.randn(shape, generator=generator)
        if augmentation.WHERE == "device":
            view = (128 + 50 * view).clamp(0, 255).byte()
        made[name] = view.permute(0, 3, 1, 2)
    made["index"] = torch.arange(batch)
    made["label"] = torch.arange(batch) % 2
    if trainer.device.type == "cuda":
        made = {name: value.pin_memory() for name, value in made.items()}
    while True:
        yield {**made, "unreadable": []}


def waits(run: Run) -> None:
    """Compare the waits of a step with those of the rehearsal, which tests/rehearsal counts."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.rehearsal.pretraining import RECIPES

    table = json.loads((RESULTS / "rehearsal.json").read_text())["tables"][0]
    column = table["columns"].index("waits")
    expected = {row[0]: row[column] for row in table["rows"]}
    if not run.on_gpu:
        run.note("Waits of the host need CUDA: here the steps run, and nothing is counted.")
    recipes = RECIPES if run.on_gpu else {name: RECIPES[name] for name in list(RECIPES)[2:4]}
    for name, (config, settings) in recipes.items():
        tiny = {} if run.on_gpu else {"MOCO.ENCODER.ARCH": "resnet18", "MOCO.BN_SPLITS": 2}
        used = {"MOCO.AUGMENTATION.SIZE": run.size.side} | settings | tiny
        trainer = pretrainer(run, config, used, batch=run.size.batch)
        trainer._batches = _batches(trainer)
        with EventStorage(0):
            for _ in range(2):  # the first one also makes the momentum of SGD
                trainer.run_step()
                trainer.iter += 1
            with counted_waits(run.on_gpu) as places:
                trainer.run_step()
        if run.on_gpu:
            for place, number in places.items():
                run.note(f"{name}: {number} at {place}")
            limit = expected[name]
            run.check(f"{name}: waits", places.total(), unit="waits", at_most=limit)
        else:
            run.holds(f"{name}: the step ends", True)
        del trainer
        release(run)


@contextlib.contextmanager
def counted_waits(on_gpu: bool) -> Iterator["collections.Counter[str]"]:
    """Count the lines of code at which torch warns that the host waits for the device."""
    places: collections.Counter[str] = collections.Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if _WAIT in str(warning.message):
            places[f"{os.path.relpath(warning.filename, ROOT)}:{warning.lineno}"] += 1
