"""What a fine-tuning run will do, as the rows of its first screen."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moco_d2.engine.terminal import count, output
from moco_d2.records.environment import hardware
from moco_d2.transfer.plan import RunPlan
from moco_d2.transfer.weights import RANDOM, Coverage

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def describe_run(
    plan: RunPlan, *, images: Mapping[str, int], coverage: Coverage, start: int
) -> dict[str, str]:
    """Return the rows of the first screen of a training.

    Args:
        plan: The plan of the run.
        images: The numbers of images of DATASETS.TRAIN (all its sets together) and DATASETS.TEST.
        coverage: Which of the pretrained tensors arrived.
        start: The number of iterations that are already trained.
    """
    cfg, schedule = plan.cfg, plan.schedule
    solver, steps = cfg.SOLVER, schedule["max_iter"]
    epochs = steps * solver.IMS_PER_BATCH / max(images["DATASETS.TRAIN"], 1)
    lowered = ", ".join(f"{step:,}" for step in schedule["steps"]) or "none"
    passes = f" in {schedule['accumulation']} passes" if schedule["accumulation"] > 1 else ""
    continued = f", continued at {start:,}" if start else ""
    norm = f"BatchNorm over {schedule['batchnorm_images']}"
    if schedule["batchnorm_images"] is None:
        norm = "BatchNorm frozen"
    return {
        "task": f"{cfg.MOCO.TASK} ({plan.config_file}, seed {cfg.SEED})",
        "weights": _weights(cfg, coverage),
        "train": _data(cfg, "TRAIN", images),
        "test": _data(cfg, "TEST", images),
        "device": _device(plan),
        "batch": f"{count(solver.IMS_PER_BATCH, 'image')} a step{passes}, {norm}",
        "rate": f"{schedule['base_lr']:g} after {count(schedule['warmup_iters'], 'step')} of "
        f"warm-up, lowered at steps {lowered}",
        "steps": f"{steps:,} ({epochs:.1f} epochs){continued}",
        "evaluation": _evaluation(cfg, steps),
        "output": output(cfg.OUTPUT_DIR, schedule["checkpoint_period"]),
    }


def describe_evaluation(plan: RunPlan, *, images: Mapping[str, int]) -> dict[str, str]:
    """Return the rows of the first screen of --eval-only; the arguments are those above."""
    cfg = plan.cfg
    return {
        "task": f"{cfg.MOCO.TASK} ({plan.config_file})",
        "detector": cfg.MODEL.WEIGHTS,
        "test": _data(cfg, "TEST", images),
        "device": _device(plan),
        "output": f"{cfg.OUTPUT_DIR}; log.txt has all settings",
    }


def _weights(cfg: "CfgNode", coverage: Coverage) -> str:
    if cfg.MODEL.WEIGHTS == RANDOM:
        return "random initialization"
    return f"{cfg.MODEL.WEIGHTS} ({coverage.loaded} of {coverage.expected} tensors)"


def _data(cfg: "CfgNode", split: str, images: Mapping[str, int]) -> str:
    names = cfg.DATASETS[split]
    number = count(images.get(f"DATASETS.{split}", 0), "image")
    return f"{number} of {', '.join(names)}" if names else "none"


def _device(plan: RunPlan) -> str:
    device = hardware(plan.cfg.MODEL.DEVICE)
    return f"{device['device']} ({device['name']}), {count(plan.world_size, 'process')}"


def _evaluation(cfg: "CfgNode", steps: int) -> str:
    losses, period = "", cfg.TEST.EVAL_PERIOD
    if cfg.MOCO.VAL_LOSS:
        losses = f"; validation loss every {count(cfg.MOCO.VAL_LOSS, 'step')}"
    if not cfg.DATASETS.TEST:
        return f"none: DATASETS.TEST names no set, so the record has no metrics{losses}"
    periodic = f"every {period:,} steps and " if 0 < period < steps else ""
    return f"{periodic}at the end{losses}"
