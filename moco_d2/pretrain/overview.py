"""What a pretraining will do, as the rows of its first screen."""

from typing import TYPE_CHECKING

from detectron2.utils import comm

from moco_d2.engine.terminal import count, output
from moco_d2.records.environment import hardware

if TYPE_CHECKING:
    from moco_d2.pretrain.pretrainer import Pretrainer


def describe_pretraining(trainer: "Pretrainer", config_file: str) -> dict[str, str]:
    """Return the rows of the first screen.

    Args:
        trainer: The trainer, ready to train.
        config_file: The file, or its name.
    """
    cfg, data = trainer.cfg, trainer.data
    solver, moco = cfg.SOLVER, cfg.MOCO
    epochs = trainer.max_iter / data.iterations_per_epoch
    device = hardware(cfg.MODEL.DEVICE)
    start = f", continued at {trainer.start_iter:,}" if trainer.start_iter else ""
    warm_up = f" after a warm-up of {moco.WARMUP_EPOCHS:g} epochs" if moco.WARMUP_EPOCHS else ""
    rows = {
        "task": f"{moco.PRETEXT} pretraining ({config_file}, seed {cfg.SEED})",
        "network": moco.ENCODER.ARCH,
        "images": f"{data.num_images:,} of {', '.join(cfg.DATASETS.TRAIN)}",
        "device": f"{device['device']} ({device['name']}), "
        f"{count(comm.get_world_size(), 'process')}",
        "batch": f"{count(solver.IMS_PER_BATCH, 'image')} a step, "
        f"views of {moco.AUGMENTATION.SIZE} pixels",
        "rate": f"{solver.BASE_LR:g}, {moco.LR_SCHEDULE} schedule{warm_up}",
        "steps": f"{trainer.max_iter:,} ({epochs:g} epochs){start}",
        "evaluation": _evaluation(trainer),
        "output": output(cfg.OUTPUT_DIR, solver.CHECKPOINT_PERIOD),
    }
    if moco.PRETEXT == "moco":
        keys = "" if moco.DICTIONARY.NAME == "EndToEnd" else f" of {moco.DICTIONARY.SIZE:,} keys"
        rows["network"] += f", {moco.DICTIONARY.NAME}{keys}"
    if moco.PRETEXT == "mocov3":
        rows["network"] += ", negatives from the batch"
    return rows


def _evaluation(trainer: "Pretrainer") -> str:
    knn = trainer.cfg.MOCO.KNN
    if not knn.TRAIN:
        return "none: MOCO.KNN.TRAIN names no labeled images for the kNN accuracy"
    when = f"every {knn.PERIOD:,} steps" if knn.PERIOD else "at the start and at the end"
    return f"kNN accuracy on {knn.TEST} {when}, protocol {knn.PROTOCOL}"
