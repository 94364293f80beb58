"""A step of pretraining, through the project's own engine, on a CUDA device that is not there."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from PIL import Image
from support.rehearsal.device import Rehearsal, rehearsal

from moco_d2.config.load import load_config
from moco_d2.pretrain.pretrainer import Pretrainer

_V1, _V2 = "moco_v1_R50_200ep.yaml", "moco_v2_R50_200ep.yaml"
_BF16 = {"SOLVER.AMP.ENABLED": True}
_ON_DEVICE = {"MOCO.AUGMENTATION.WHERE": "device"}
# Counts hold for the recipe and its network. Where they are alike, the network is the smallest.
_SMALL = {"MOCO.ENCODER.ARCH": "resnet18", "MOCO.AUGMENTATION.SIZE": 64}
_V3 = {"MOCO.AMP_DTYPE": "bfloat16"}
COMPILED_SMALL = "v2 R18, bf16, SplitBN 8, augmentation on the device"
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "v2 R50, bf16": (_V2, _BF16 | {"MOCO.BN_SPLITS": 1}),
    "v2 R50, bf16, SplitBN 8": (_V2, _BF16 | {"MOCO.BN_SPLITS": 8}),
    "v2 R50, bf16, SplitBN 8, augmentation on the device": (
        _V2,
        _BF16 | _ON_DEVICE | {"MOCO.BN_SPLITS": 8},
    ),
    "v1 R18, augmentation on the device": (_V1, _SMALL | _ON_DEVICE),
    "v2 R18, fp32, SplitBN 8": (_V2, _SMALL | {"MOCO.BN_SPLITS": 8}),
    "v2 R18, fp16": (_V2, _SMALL | _BF16 | {"MOCO.AMP_DTYPE": "float16"}),
    "v2 R18, bf16, SplitBN 2, symmetric, 2 micro-batches": (
        _V2,
        _SMALL | _BF16 | {"MOCO.SYMMETRIC": True, "MOCO.ACCUMULATION": 2, "MOCO.BN_SPLITS": 2},
    ),
    "memory bank R18, bf16": (_V2, _SMALL | _BF16 | {"MOCO.DICTIONARY.NAME": "MemoryBank"}),
    "end-to-end R18, bf16": (_V2, _SMALL | _BF16 | {"MOCO.DICTIONARY.NAME": "EndToEnd"}),
    "supervised R18, bf16": ("supervised_R50_200ep.yaml", _SMALL | _BF16),
    COMPILED_SMALL: (_V2, _SMALL | _BF16 | _ON_DEVICE | {"MOCO.BN_SPLITS": 8}),
    "MoCo v3 R50, bf16": ("moco_v3_R50_100ep.yaml", _V3),
    "MoCo v3 R50, bf16, 4 micro-batches": (
        "moco_v3_R50_100ep.yaml",
        _V3 | {"MOCO.ACCUMULATION": 4},
    ),
    "MoCo v3 ViT-S, bf16": ("moco_v3_ViT_S_300ep.yaml", _V3),
}
_BATCH = 256


def step(
    folder: Path, recipe: str, prepare: Callable[[Pretrainer], None] | None = None
) -> Rehearsal:
    """Return what one step of a recipe of RECIPES counts, with 256 images.

    Args:
        folder: Where the images and the output are written.
        recipe: Name of the recipe.
        prepare: Changes the trainer before the step.
    """
    config, settings = RECIPES[recipe]
    images = folder / "images"
    for name in ("dark", "light"):
        (images / name).mkdir(parents=True, exist_ok=True)
    for i in range(_BATCH):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(images / ("dark", "light")[i % 2] / f"{i}.png")
    common = {
        "DATASETS.TRAIN": (str(images),),
        "OUTPUT_DIR": folder / "out",
        "MODEL.DEVICE": "cuda",
        "MOCO.COMPILE": False,  # compiled.py counts what is compiled
        "SEED": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": _BATCH,
        "MOCO.REFERENCE_BATCH": 0,
        "MOCO.MONITOR.EXPECTED_LOSS": (),
    }
    words = [str(word) for pair in (common | settings).items() for word in pair]
    cfg = load_config(config, words)
    with rehearsal() as counted:
        trainer = Pretrainer(cfg)
        if prepare:
            prepare(trainer)
        trainer.model.train()
        trainer.iter = trainer.start_iter = 0
        trainer._batches = _batches(trainer, cfg.MOCO.AUGMENTATION.SIZE)
        with EventStorage(0):
            for _ in range(2):  # the first one also makes the momentum of SGD
                counted.reset()
                trainer.run_step()
    del trainer
    gc.collect()  # a trainer and its hooks refer to each other, and hold the networks
    return counted


def _batches(trainer: Pretrainer, side: int) -> Iterator[Any]:
    """Yield batches as the loader does, in pinned memory, without the seconds of decoding."""
    dtype = torch.float32 if trainer.data.device_augmentation is None else torch.uint8
    size = (_BATCH, side, side, 3)
    views = {name: torch.zeros(size, dtype=dtype) for name in trainer.data.make_views.names}
    batch = {name: view.permute(0, 3, 1, 2).pin_memory() for name, view in views.items()}
    for name in ("index", "label"):
        batch[name] = (torch.arange(_BATCH) % (2 if name == "label" else _BATCH)).pin_memory()
    while True:
        yield {**batch, "unreadable": []}


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the counts of all recipes."""
    return {
        name: step(folder / "pretraining" / str(i), name).summary()
        for i, name in enumerate(RECIPES)
    }
