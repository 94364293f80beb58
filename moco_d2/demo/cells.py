"""The demo's runs as cells of a suite: images, pretraining with conversion, fine-tuning.

Suites of kind ``demo`` have the fields of settings.Settings as keys. They run on any machine,
because their images are generated.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs.suite_values import (
    arguments_of,
    check_grid,
    check_keys,
    check_seeds,
    file_settings,
    unknown,
)
from moco_d2.benchmark.runs.suites import CELL_FOLDER, FOLDER, Cell
from moco_d2.benchmark.runs.transfer_suites import transfer_cell
from moco_d2.config.load import config_root, task_configs
from moco_d2.demo.networks import NETWORKS, PRETRAIN_BATCH, SAME_CLASSES
from moco_d2.demo.settings import Settings
from moco_d2.errors import UserError

IMAGES = "images"  # the name of the cell that draws the images, and its folder
IMAGES_SEED = 0
_MOST = 10**9  # upper limit of numbers of images or steps
_CHECKPOINTS = 4  # checkpoints of a pretraining; a fine-tuning is short, and has only its last


def build_cells(content: dict[str, Any], source: Path) -> tuple[list[Cell], dict[str, str]]:
    """Return the cells of a suite of kind ``demo``; see benchmark.runs.suites.load_suite.

    Raises:
        UserError: If Settings has no such key, or a value is not valid for its key.
    """
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    check_keys(content, fields, source)
    network = str(content.get("network", Settings.network))
    if network not in NETWORKS:
        raise unknown("network", network, NETWORKS, source)
    default = dict(Settings.finetune_steps) if network == Settings.network else None
    steps = content.get("finetune_steps", default)
    if not isinstance(steps, dict) or not steps:
        task = next(iter(NETWORKS[network].tasks))
        raise UserError(f"{source}: finetune_steps must be a mapping, as in {{{task}: 80}}")
    if "queue" in content and not NETWORKS[network].has_queue:
        raise UserError(f"{source}: {network} has no queue: remove the key queue")
    for task in steps:
        if task not in NETWORKS[network].tasks:
            raise unknown("task", str(task), NETWORKS[network].tasks, source)
    others = ("network", "finetune_steps", "seeds", "same_classes")
    numbers = {key: content[key] for key in content if key not in others}
    for key, value in {**numbers, **steps}.items():
        kinds = (int, float) if key == "momentum" else (int,)
        if type(value) not in kinds or not 0 < value < _MOST:
            raise UserError(f"{source}: {key} must be a number above 0, got {value!r:.80}")
    same = content.get("same_classes", Settings.same_classes)
    if type(same) is not bool:
        raise UserError(f"{source}: same_classes must be true or false, got {same!r:.80}")
    if same and SAME_CLASSES not in NETWORKS[network].rows:
        raise UserError(f"{source}: same_classes needs network: {Settings.network}")
    seeds = check_seeds(content.get("seeds", list(Settings.seeds)), source)
    settings = Settings(
        **numbers,
        network=network,
        finetune_steps=tuple(steps.items()),
        seeds=tuple(seeds),
        same_classes=same,
    )
    return demo_cells(settings, source=source), demo_files(settings)


def initializations(settings: Settings) -> tuple[str, ...]:
    """Return the rows of the tables."""
    pretrained = pretrainings(settings)
    return ("random", pretrained[1], pretrained[0], *pretrained[2:])


def pretrainings(settings: Settings) -> tuple[str, ...]:
    """Return the names of the pretrainings, the self-supervised one first."""
    rows = NETWORKS[settings.network].rows
    return tuple(name for name in rows if name != SAME_CLASSES or settings.same_classes)


def demo_files(settings: Settings) -> dict[str, str]:
    """Return the config files of the row that no packaged initialization has; see Suite.files."""
    if not settings.same_classes:
        return {}
    files = {f"configs/{SAME_CLASSES}.yaml": "MODEL:\n  WEIGHTS: ''  # the run names its weights\n"}
    for task, _ in settings.finetune_steps:
        base = [str(config_root() / "task" / f"{task}.yaml"), f"{SAME_CLASSES}.yaml"]
        files[f"configs/{task}_{SAME_CLASSES}.yaml"] = f"_BASE_: {json.dumps(base)}\n"
    return files


def demo_cells(settings: Settings, *, source: Path = Path("the demo")) -> list[Cell]:
    """Return all cells, each after the cells that it needs.

    Args:
        settings: Sizes of the demo.
        source: The file of the settings, for errors.
    """
    rows = initializations(settings)
    check_grid(len(settings.finetune_steps), len(settings.seeds), len(rows), source=source)
    trained = [_pretrain(name, settings) for name in pretrainings(settings)]
    cells = [_images(settings), *trained]
    for (task, _), seed, initialization in itertools.product(
        settings.finetune_steps, settings.seeds, rows
    ):
        cells.append(_finetune(settings, task, initialization, seed, source))
    return cells


def _images(settings: Settings) -> Cell:
    sizes = (
        settings.pretrain_images,
        settings.knn_test_images,
        settings.detection_train,
        settings.detection_test,
    )
    return Cell(
        name=IMAGES,
        task=IMAGES,
        initialization="",
        seed=0,
        commands=(("demo.py", ("--out", CELL_FOLDER, "--images", *map(str, sizes))),),
        record="images.json",
        kind=None,
    )


def _pretrain(name: str, settings: Settings) -> Cell:
    images, steps = f"{FOLDER}/{IMAGES}", settings.pretrain_steps
    network = NETWORKS[settings.network]
    pretext, labels = network.rows[name]
    overrides = {
        "DATASETS.TRAIN": f"('list:{images}/pretrain_{labels}.txt',)",
        "MOCO.PRETEXT": pretext,
        **network.pretraining,
        "MOCO.EPOCHS": 0,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.IMS_PER_BATCH": PRETRAIN_BATCH,
        "MOCO.REFERENCE_BATCH": 0,
        "MOCO.MOMENTUM": settings.momentum,
        **({"MOCO.DICTIONARY.SIZE": settings.queue} if network.has_queue else {}),
        "MOCO.KNN.TRAIN": f"{images}/pretrain",
        "MOCO.KNN.TEST": f"{images}/pretrain_test",
        "MOCO.KNN.PERIOD": steps,  # before the first step and after the last
        "DATALOADER.NUM_WORKERS": 1,
        "SOLVER.CHECKPOINT_PERIOD": max(1, steps // _CHECKPOINTS),
        "SEED": 1,
    }
    words = arguments_of({**overrides, "OUTPUT_DIR": CELL_FOLDER})
    checkpoint, report = f"{CELL_FOLDER}/checkpoint_final.pth.tar", "weights.json"
    weights = weights_file(name)
    return Cell(
        name=f"pretrain_{name}",
        task="pretrain",
        initialization=name,
        seed=1,
        commands=(
            ("pretrain.py", ("--config-file", network.recipe, "--resume", *words)),
            ("convert.py", (checkpoint, weights, "--report", f"{CELL_FOLDER}/{report}")),
        ),
        record=report,
        kind=None,
        needs=(IMAGES,),
        settings=overrides,
        iterations=steps,
    )


def _finetune(settings: Settings, task: str, initialization: str, seed: int, source: Path) -> Cell:
    network, steps = NETWORKS[settings.network], dict(settings.finetune_steps)[task]
    overrides = {
        **_datasets(task),
        **network.detector,
        **network.tasks[task],
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": f"({steps * 3 // 4},)",
        "SOLVER.WARMUP_ITERS": steps // 8,
        "SOLVER.CHECKPOINT_PERIOD": steps,
        "TEST.EVAL_PERIOD": 0,
    }
    needs: tuple[str, ...] = (IMAGES,)
    if initialization in network.rows:
        overrides["MODEL.WEIGHTS"] = weights_file(initialization)
        needs = (IMAGES, f"pretrain_{initialization}")
    config = f"{task}_{initialization}.yaml"
    files: tuple[Path, ...]
    if initialization == SAME_CLASSES:
        files = (config_root() / "task" / f"{task}.yaml",)
        config = f"{FOLDER}/configs/{config}"
    else:
        files = task_configs()[config]
    return transfer_cell(
        name=f"{task}/{initialization}/seed{seed}",
        task=task,
        initialization=initialization,
        seed=seed,
        config=config,
        overrides=overrides,
        settings=file_settings(*files),
        source=source,
        needs=needs,
    )


def weights_file(name: str) -> str:
    """Return the file of the converted weights of a pretraining."""
    return f"{FOLDER}/pretrain_{name}/weights.pth"


def _datasets(task: str) -> dict[str, Any]:
    from moco_d2.demo import scenes

    kind = task.partition("_")[0]
    if kind == "voc":
        train, test = (f"voc:{FOLDER}/{IMAGES}/VOC2007:{s}" for s in ("trainval", "test"))
    else:
        coco = f"{FOLDER}/{IMAGES}/coco"
        train, test = (
            f"coco:{coco}/annotations/{s}.json:{coco}/images/{s}" for s in ("train", "test")
        )
    return {
        "DATASETS.TRAIN": f"('{train}',)",
        "DATASETS.TEST": f"('{test}',)",
        "MODEL.ROI_HEADS.NUM_CLASSES": len(scenes.CLASSES),
    }


def write_images(folder: Path, sizes: list[int]) -> None:
    """Draw the demo's images below `folder`, and write images.json when all are complete.

    Args:
        folder: The output folder.
        sizes: The four sizes of scenes.write_dataset, in its order.
    """
    from moco_d2.demo import scenes
    from moco_d2.files import write_json

    names = ("pretrain_images", "knn_test_images", "detection_train", "detection_test")
    numbers = dict(zip(names, sizes, strict=True))
    scenes.write_dataset(folder, seed=IMAGES_SEED, **numbers)
    write_json(folder / "images.json", {"seed": IMAGES_SEED, **numbers})
