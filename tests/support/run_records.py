"""Run records as fine-tuning writes them, with chosen numbers."""

import copy
import hashlib
import json
from pathlib import Path

from moco_d2.config.plain import matched_sha256

VOC = {"train": ["voc_2007_trainval", "voc_2012_trainval"], "test": ["voc_2007_test"]}


def content(
    *,
    task="voc_C4",
    initialization="moco",
    seed=1,
    metrics=None,
    data=None,
    max_iter=24000,
    finished="2025-01-02T03:04:05+00:00",
    base_lr=0.02,
    config=None,
) -> dict:
    """Return a run record of schema version 1, which all later readers support too.

    Args:
        config: The resolved config without its weights and seed; by default a few keys of it.
    """
    data = data or VOC
    name = hashlib.sha256(f"{initialization} {seed}".encode())
    noise = 1e-9 * int(name.hexdigest()[:4], 16)  # no two runs end alike to the last bit
    some = {"AP": 55.9, "AP50": 81.5, "AP75": 62.6, "AP-cat": 60.0}
    metrics = metrics or {"bbox": {metric: value + noise for metric, value in some.items()}}
    config = config or {
        "DATASETS": {"TRAIN": data["train"], "TEST": data["test"]},
        "MODEL": {},
        "SOLVER": {"BASE_LR": base_lr, "IMS_PER_BATCH": 16},
    }
    weights = {**config["MODEL"], "WEIGHTS": f"{initialization}.pth"}
    resolved = {**config, "MODEL": weights, "SEED": seed}
    return {
        "schema_version": 1,
        "kind": "transfer",
        "run": {
            "config_name": f"{task}_{initialization}",
            "task": task,
            "initialisation": initialization,
            "seed": seed,
            "started": "2025-01-02T00:00:00+00:00",
            "finished": finished,
            "seconds": 11045.0,
        },
        "config": {
            "resolved": resolved,
            "sha256": "b" * 64,
            "matched_sha256": matched_sha256(resolved),
        },
        "weights": None
        if initialization == "random"
        else {
            "file": f"{initialization}.pth",
            "sha256": hashlib.sha256(initialization.encode()).hexdigest(),
            "provenance": {"source": "moco_v1_200ep_pretrain.pth.tar"},
        },
        "coverage": {"expected": 265, "loaded": 0 if initialization == "random" else 265},
        "schedule": {
            "world_size": 8,
            "ims_per_batch": 16,
            "base_lr": base_lr,
            "max_iter": max_iter,
            "steps": [18000, 22000],
            "norm": "SyncBN",
            "notes": [],
        },
        "preflight": {"forced": False, "findings": []},
        "environment": {"python": "3.12"},
        "hardware": {"device": "cpu", "name": "", "cpu_count": 2},
        "metrics": metrics,
        "history": [],
    }


def write_record(folder: Path, record: dict) -> Path:
    """Write a record into a folder of its own under `folder`, and return the file."""
    path = folder / f"{len(list(folder.glob('*'))):03d}" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(copy.deepcopy(record)))
    return path


# The paper's Table 2b plus noise of mean 0 and sample standard deviation 0.1 sqrt(2.5) = 0.158.
# moco - supervised, seed by seed: 0.3, -0.1, 0.2, -0.1, -0.3 around the mean.
NOISE = {
    "random": (0.2, 0.1, -0.2, -0.1, 0.0),
    "supervised": (-0.2, -0.1, 0.0, 0.1, 0.2),
    "moco": (0.1, -0.2, 0.2, 0.0, -0.1),
}
TABLE_2B = {
    "random": {"AP50": 60.2, "AP": 33.8, "AP75": 33.1},
    "supervised": {"AP50": 81.3, "AP": 53.5, "AP75": 58.8},
    "moco": {"AP50": 81.5, "AP": 55.9, "AP75": 62.6},
}


def write_table_2b(folder: Path, change=lambda record: record) -> None:
    """Write fifteen records: three initializations, five seeds, the paper's means."""
    for initialization, means in TABLE_2B.items():
        for seed, noise in enumerate(NOISE[initialization], start=1):
            metrics = {"bbox": {name: mean + noise for name, mean in means.items()}}
            record = content(initialization=initialization, seed=seed, metrics=metrics)
            write_record(folder, change(record))
