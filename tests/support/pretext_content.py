"""Results of tools/linear_eval.py as they are written, with chosen settings and numbers."""

import copy
import functools
import json
from pathlib import Path

from moco_d2.config.load import load_config
from moco_d2.config.plain import to_plain

IMAGENET = {"name": "imagenet", "train_images": 1_281_167, "val_images": 50_000, "classes": 1000}
TOY = {"name": "toy", "train_images": 960, "val_images": 450, "classes": 9}


@functools.cache
def _config(name: str) -> dict:
    plain = to_plain(load_config(name))
    return {key: plain[key] for key in ("MOCO", "SOLVER", "DATASETS", "SEED")}


def result(
    top1: float,
    *,
    config: str = "moco_v1_R50_200ep.yaml",
    seed: int = 1,
    data: dict = TOY,
    protocol: str = "knn",
    architecture: str = "ResNet-50",
    images: int = 1_281_167,
    started: str = "2025-01-02T03:04:05+00:00",
    random: bool = False,
    **overrides,
) -> dict:
    """A result of a pretraining with `config` as it runs on 8 processes.

    Args:
        overrides: config keys with __ for the dots: ``MOCO__MOMENTUM=0.9``.
    """
    own = copy.deepcopy(_config(config))
    own["SEED"] = seed
    solver, moco = own["SOLVER"], own["MOCO"]
    # As schedule.scale_recipe leaves it.
    batch = overrides.get("SOLVER__IMS_PER_BATCH", solver["IMS_PER_BATCH"])
    solver["BASE_LR"] = solver["BASE_LR"] * batch / moco["REFERENCE_BATCH"]
    moco["REFERENCE_BATCH"], moco["BN_SPLITS"] = 0, 1
    moco["DICTIONARY"]["SIZE"] = moco["DICTIONARY"]["SIZE"] or 65536
    for key, value in overrides.items():
        *path, last = key.split("__")
        node = own
        for part in path:
            node = node[part]
        assert last in node, key
        node[last] = value
    pretraining = {
        "config": own,
        "config_sha256": "a" * 64,
        "iterations": 1000,
        "images": images,
        "processes": 8,
        "version": "0.1.0",
        "environment": {},
        "hardware": {},
        "seconds_per_iteration": 0.2,
        "peak_memory_gib": None,
    }
    return {
        "schema_version": 2,
        "kind": "pretext",
        "checkpoint": {
            "source": "random" if random else "checkpoint_final.pth.tar",
            "sha256": None if random else "b" * 64,
            "family": "random" if random else "moco",
            "branch": None if random else "query",
            "architecture": architecture,
        },
        "pretraining": None if random else pretraining,
        "protocol": protocol,
        "settings": {"size": 32},
        "effective_lr": None,
        "data": data,
        "accuracy": {"top1": top1},
        "backbone_images": 1410,
        "backbone_sha256": "c" * 64,
        "seed": seed,
        "processes": 1,
        "hardware": {"device": "cpu"},
        "versions": {"torch": "2.11.0"},
        "started": started,
        "seconds": 1.0,
    }


def write_results(folder: Path, results: list[dict]) -> Path:
    """A folder a result; returns `folder`."""
    for content in results:
        home = folder / f"{len(list(folder.glob('*'))) if folder.is_dir() else 0:03d}"
        home.mkdir(parents=True)
        (home / "result.json").write_text(json.dumps(content))
    return folder


MECHANISMS = {
    "end-to-end": {"MOCO__DICTIONARY__NAME": "EndToEnd"},
    "memory bank": {"MOCO__DICTIONARY__NAME": "MemoryBank"},
    "MoCo": {},
}


def dictionary_point(mechanism: str, size: int) -> dict:
    """Overrides of a point of Figure 3."""
    key = "SOLVER__IMS_PER_BATCH" if mechanism == "end-to-end" else "MOCO__DICTIONARY__SIZE"
    return {**MECHANISMS[mechanism], key: size}
