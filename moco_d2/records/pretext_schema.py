"""The form of result.json, which every run of tools/linear_eval.py leaves: what a pretraining is
worth in classification, and how it was made.

moco_d2/benchmark/runs/pretext.py reads it.
"""

from typing import Any

RESULT_FILE = "result.json"
KIND = "pretext"
# 2: the pretraining run, hardware, and the name of the data. 1 had the kind "linear_eval".
SCHEMA_VERSION = 2

_TEXT, _COUNT = {"type": "string", "maxLength": 300}, {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number", "minimum": -1e12, "maximum": 1e12}  # and finite, as 1e999 is not
_PERCENT = {"type": "number", "minimum": 0, "maximum": 100}
_TEXT_OR_NULL, _NUMBER_OR_NULL, _COUNT_OR_NULL = (
    {**schema, "type": [schema["type"], "null"]} for schema in (_TEXT, _NUMBER, _COUNT)
)


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """It may have other keys, so that a version can grow."""
    return {
        "type": "object",
        "required": sorted(required),
        "properties": {**required, **(optional or {})},
    }


# See moco_d2.checkpoint.pretraining.pretraining_run.
_PRETRAINING = _object(
    {
        "config": {"type": "object", "required": ["MOCO", "SOLVER", "SEED"]},
        "config_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "iterations": _COUNT,
        "images": _COUNT_OR_NULL,
        "processes": _COUNT_OR_NULL,
        "version": _TEXT,
        "environment": {"type": "object"},
        "hardware": {"type": "object"},
        "seconds_per_iteration": _NUMBER_OR_NULL,
        "peak_memory_gib": _NUMBER_OR_NULL,
    }
)

# JSON Schema of result.json. Accuracies are percent; backbone_images counts the images that went
# through the backbone, training and evaluation together; pretraining is null where the checkpoint
# is not one of tools/pretrain.py.
SCHEMA = _object(
    {
        "schema_version": {"const": SCHEMA_VERSION},
        "kind": {"const": KIND},
        "checkpoint": _object(
            {
                "source": _TEXT,
                "sha256": _TEXT_OR_NULL,
                "family": _TEXT,
                "branch": _TEXT_OR_NULL,
                "architecture": _TEXT,
            }
        ),
        "pretraining": {"anyOf": [{"type": "null"}, _PRETRAINING]},
        "protocol": {"enum": ["linear", "linear-fast", "knn", "finetune"]},
        "settings": {"type": "object"},
        "effective_lr": _NUMBER_OR_NULL,
        "data": _object(
            {"name": _TEXT_OR_NULL, "train_images": _COUNT, "val_images": _COUNT, "classes": _COUNT}
        ),
        "accuracy": _object({"top1": _PERCENT}, {"top5": _PERCENT}),
        "backbone_images": _COUNT,
        "backbone_sha256": _TEXT_OR_NULL,
        "seed": {"type": "integer"},
        "processes": _COUNT,
        "hardware": {"type": "object"},
        "versions": {"type": "object", "additionalProperties": _TEXT},
        "started": _TEXT,
        "seconds": _NUMBER,
    },
    {"learning_rates": {"type": "array"}},
)
