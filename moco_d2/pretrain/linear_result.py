"""The form of result.json, which every run of tools/linear_eval.py leaves."""

import platform
from importlib import metadata
from typing import Any

import moco_d2

RESULT_FILE = "result.json"
SCHEMA_VERSION = 1

_TEXT, _NUMBER, _COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
_PERCENT = {"type": "number", "minimum": 0, "maximum": 100}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "required": sorted(required),
        "properties": {**required, **(optional or {})},
        "additionalProperties": False,
    }


# JSON Schema of result.json. Accuracies are percent; backbone_images counts the images that went
# through the backbone, training and evaluation together.
SCHEMA = _object(
    {
        "schema_version": {"const": SCHEMA_VERSION},
        "kind": {"const": "linear_eval"},
        "checkpoint": _object(
            {
                "source": _TEXT,
                "sha256": {"type": ["string", "null"]},
                "family": _TEXT,
                "branch": {"type": ["string", "null"]},
                "architecture": _TEXT,
            }
        ),
        "protocol": {"enum": ["linear", "linear-fast", "knn", "finetune"]},
        "settings": {"type": "object"},
        "effective_lr": {"type": ["number", "null"]},
        "data": _object({"train_images": _COUNT, "val_images": _COUNT, "classes": _COUNT}),
        "accuracy": _object({"top1": _PERCENT}, {"top5": _PERCENT}),
        "backbone_images": _COUNT,
        "backbone_sha256": {"type": ["string", "null"]},
        "seed": {"type": "integer"},
        "processes": _COUNT,
        "device": _TEXT,
        "versions": {"type": "object", "additionalProperties": _TEXT},
        "started": _TEXT,
        "seconds": _NUMBER,
    },
    {"learning_rates": {"type": "array"}},
)


def versions() -> dict[str, str]:
    """Of what computed the result."""
    packages = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    return {"python": platform.python_version(), "moco_d2": moco_d2.__version__, **packages}
