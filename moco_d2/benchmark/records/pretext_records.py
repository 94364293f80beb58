"""Reading the ``result.json`` that every run of tools/linear_eval.py leaves: what a pretraining is
worth in classification.

Its form is moco_d2.records.pretext_schema.LinearEvalRecord.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.files import collect, read_json
from moco_d2.config.plain import flatten
from moco_d2.records.parsing import parse
from moco_d2.records.pretext_schema import (
    KIND,
    RESULT_FILE,
    SCHEMA_VERSION,
    LinearEvalRecord,
)

RANDOM = "random"  # the source of a network without pretraining


@dataclass(frozen=True)
class PretextRecord:
    """One evaluated network.

    Attributes:
        path: of the file.
        config: of its pretraining as it ran, ``{"MOCO.MOMENTUM": 0.999, ...}``; empty where there
            was none, or none of tools/pretrain.py.
        images: in the dataset that it was pretrained on; None where the checkpoint does not say.
        processes: of the pretraining.
        top1: percent.
        protocol: "linear", "linear-fast", "knn" or "finetune".
        evaluation: all that accuracies must have in common to be compared.
        seed: of the pretraining, or of the network's random weights.
        evaluation_seed: of the classifier.
        started: when the evaluation began, ISO 8601.
        content: the whole file.
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
        """Whether the network is an untrained one."""
        return self.content["checkpoint"]["family"] == RANDOM


def read_pretext_records(paths: Iterable[str | Path]) -> list[PretextRecord]:
    """All valid ones among files and, recursively, folders; there may be none.

    A damaged one is named in a warning and left out as a whole.

    Raises:
        UserError: a path does not exist.
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
    # --fast chooses its rate for every network.
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
            # Its name is another one on every machine.
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
        raise ValueError(f"the pretraining's SEED is no number: {seed!r:.40}")
    return seed


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """A version 1 result as one of version 2; it does not say how the pretraining was made."""
    if content.get("kind") != "linear_eval" or content.get("schema_version") != 1:
        return content
    content = {**content, "kind": KIND, "schema_version": SCHEMA_VERSION, "pretraining": None}
    content["hardware"] = {"device": content.pop("device", None)}
    if isinstance(content.get("data"), dict):
        content["data"] = {"name": None, **content["data"]}
    return content
