"""A reader of ``result.json``, the result of a run of tools/linear_eval.py.

The form of the file is moco_d2.records.pretext_schema.LinearEvalRecord.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.files import collect, read_json
from moco_d2.config.plain import flatten
from moco_d2.records.parsing import parse
from moco_d2.records.pretext_schema import KIND, RESULT_FILE, SCHEMA_VERSION, LinearEvalRecord

RANDOM = "random"  # the source of a network without pretraining


@dataclass(frozen=True)
class PretextRecord:
    """One evaluated network.

    Attributes:
        path: The file.
        config: Resolved config of the pretraining, ``{"MOCO.MOMENTUM": 0.999, ...}``; empty if the
            network was not pretrained by tools/pretrain.py.
        images: Number of images of the pretraining; None if the checkpoint does not say it.
        processes: Number of processes of the pretraining.
        top1: Top-1 accuracy, percent.
        protocol: "linear", "linear-fast", "knn" or "finetune".
        evaluation: Settings that must be equal for two accuracies to be compared.
        seed: Seed of the pretraining, or of the random weights of an untrained network.
        evaluation_seed: Seed of the classifier.
        started: Start of the evaluation, ISO 8601.
        content: Content of the file.
    """

    path: Path
    config: Mapping[str, Any]
    images: int | None
    processes: int | None
    top1: float
    protocol: str
    evaluation: Mapping[str, Any]
    seed: int
    evaluation_seed: int
    started: str
    content: Mapping[str, Any]

    @property
    def is_random(self) -> bool:
        """Whether the network is untrained."""
        return self.content["checkpoint"]["family"] == RANDOM


def read_pretext_records(paths: Iterable[str | Path]) -> list[PretextRecord]:
    """Read all valid records among files and, recursively, folders; there may be none.

    A damaged record is named in a warning and left out.

    Raises:
        UserError: If a path does not exist.
    """
    records, _ = collect(paths, RESULT_FILE, _read)
    return records


def _read(path: Path) -> PretextRecord | None:
    content = _upgrade(read_json(path))
    if content.get("kind") != KIND:
        return None
    record = parse(
        content, LinearEvalRecord, f"version {SCHEMA_VERSION} result of linear evaluation"
    )
    run = record.pretraining
    # --fast chooses the learning rate separately for each network.
    chosen = ("base_lr",) if record.protocol == "linear-fast" else ()
    return PretextRecord(
        path=path,
        config=flatten(run.config) if run else {},
        images=run.images if run else None,
        processes=run.processes if run else None,
        top1=record.accuracy.top1,
        protocol=record.protocol,
        evaluation={
            "protocol": record.protocol,
            "settings": {k: v for k, v in record.settings.items() if k not in chosen},
            # The name is a path, which differs between machines.
            "data": {key: value for key, value in content["data"].items() if key != "name"},
            "architecture": record.checkpoint.architecture,
        },
        seed=_seed(run.config) if run else record.seed,
        evaluation_seed=record.seed,
        started=record.started,
        content=content,
    )


def _seed(config: Mapping[str, Any]) -> int:
    seed = config["SEED"]
    if type(seed) is not int:
        raise ValueError(f"SEED of the pretraining must be an integer, got {seed!r:.40}")
    return seed


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Return a result of version 1 as one of version 2, without the pretraining."""
    if content.get("kind") != "linear_eval" or content.get("schema_version") != 1:
        return content
    content = {**content, "kind": KIND, "schema_version": SCHEMA_VERSION, "pretraining": None}
    content["hardware"] = {"device": content.pop("device", None)}
    if isinstance(content.get("data"), dict):
        content["data"] = {"name": None, **content["data"]}
    return content
