"""The form of ``record.json``, version by version.

SCHEMA is that of the newest version. A record of an older one is brought up to it by `upgrade`
before it is checked, so that the rest of the package knows one form only.
"""

from typing import Any

from moco_d2.version import __version__

SCHEMA_VERSION = 2

#: Beyond any metric, time or size that a run can have; and finite, as JSON's 1e999 is not.
_LARGEST = 1e12
_LONGEST_NAME = 300  # characters

_TEXT = {"type": "string", "minLength": 1}
_NAME = {**_TEXT, "maxLength": _LONGEST_NAME, "pattern": r"^[^\x00-\x1f\x7f]+$"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": _LARGEST}
_POSITIVE = {"type": "integer", "minimum": 1, "maximum": _LARGEST}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_NUMBER = {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST}
_AMOUNT = {"type": "number", "minimum": 0, "maximum": _LARGEST}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


#: Percent; null where the run gave NaN.
NUMBER_OR_NULL = _or_null(_NUMBER)


def object_of(properties: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object that needs all of `properties` and may have others, so that a version can grow."""
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
    }


def _map_of(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values, **more}


#: Where the detections of a test set lose AP50: TIDE's types (Bolya et al., 2020, section 2).
ERROR_TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")

#: JSON schema of a run record. A change that old readers would misread raises SCHEMA_VERSION; so
#: does a new required key. Each field is explained in docs/benchmark.md.
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Record of one fine-tuning run",
    **object_of(
        {
            "schema_version": {"const": SCHEMA_VERSION},
            "kind": {"const": "transfer"},
            "origin": object_of(
                {"how": {"enum": ["trained", "imported"]}, "source": _or_null(_TEXT)}
            ),
            "run": object_of(
                {
                    "config_name": {"type": "string"},
                    "task": _NAME,
                    "initialisation": _NAME,
                    "seed": {"type": "integer", "minimum": -_LARGEST, "maximum": _LARGEST},
                    "started": _or_null(_TEXT),
                    "finished": _TEXT,
                    "seconds": _or_null(_AMOUNT),
                },
                optional={"command": _or_null(_TEXT)},
            ),
            "config": object_of(
                {
                    # Of Detectron2's some 300 keys only those that the tables need: checking all
                    # of them, record by record, costs more than all the rest.
                    "resolved": object_of(
                        {
                            "DATASETS": object_of(
                                {
                                    "TRAIN": {"type": "array", "items": _TEXT},
                                    "TEST": {"type": "array", "items": _TEXT},
                                }
                            )
                        }
                    ),
                    "sha256": _SHA256,
                    "matched_sha256": _SHA256,
                }
            ),
            "weights": {
                "anyOf": [
                    {"type": "null"},
                    object_of(
                        {
                            "file": _TEXT,
                            "sha256": _or_null(_SHA256),
                            "provenance": {"type": ["object", "null"]},
                        }
                    ),
                ]
            },
            "coverage": object_of({"expected": _COUNT, "loaded": _COUNT}),
            "schedule": object_of(
                {
                    "world_size": _or_null(_POSITIVE),
                    "ims_per_batch": _POSITIVE,
                    "base_lr": _NUMBER,
                    "max_iter": _POSITIVE,
                    "steps": {"type": "array", "items": _COUNT},
                    "norm": {"type": "string"},
                    "notes": {"type": "array", "items": {"type": "string"}},
                }
            ),
            "preflight": object_of({"forced": {"type": "boolean"}, "findings": {"type": "array"}}),
            "environment": _map_of({"type": "string"}),
            "hardware": object_of(
                {},
                optional={
                    "device": {"type": "string"},
                    "name": {"type": "string"},
                    "cpu_count": {"type": ["integer", "null"]},
                },
            ),
            "cost": object_of(
                {
                    "seconds_per_iteration": _or_null(_AMOUNT),
                    "peak_memory_gib": _or_null(_AMOUNT),
                    "evaluation_seconds": _or_null(_AMOUNT),
                },
                optional={"peak_memory_of": {"enum": ["gpu", "process", None]}},
            ),
            "metrics": _map_of(_map_of(NUMBER_OR_NULL), minProperties=1),
            "history": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"iteration": _COUNT},
                    "required": ["iteration"],
                    "additionalProperties": NUMBER_OR_NULL,
                },
            },
            "errors": {
                "type": ["object", "null"],
                "additionalProperties": object_of(
                    dict.fromkeys(("AP50", *ERROR_TYPES), NUMBER_OR_NULL)
                ),
            },
        },
        optional={
            "data": object_of({"train_images": _or_null(_COUNT), "test_images": _map_of(_COUNT)})
        },
    ),
}


def _to_version_2(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew no other runs than its own, and measured no cost."""
    return {
        **content,
        "schema_version": 2,
        "origin": {"how": "trained", "source": None},
        "cost": {
            "seconds_per_iteration": None,
            "peak_memory_gib": None,
            "evaluation_seconds": None,
        },
        "errors": None,
    }


# From each older version to the next.
_UPGRADES = {1: _to_version_2}


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """A record of any version as one of SCHEMA_VERSION; its parts are not checked here.

    Raises:
        ValueError: the version is none, or is newer than this package.
    """
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"$.schema_version is {version!r:.40}, no version of a run record")
    if version > SCHEMA_VERSION:
        environment = content.get("environment")
        writer = environment.get("moco_d2") if isinstance(environment, dict) else None
        named = f" {writer}" if isinstance(writer, str) and len(writer) < _LONGEST_NAME else ""
        raise ValueError(
            f"its schema has version {version} and moco_d2 {__version__} reads 1 to "
            f"{SCHEMA_VERSION}; read it with the moco_d2{named} that wrote it, or a newer one"
        )
    while version < SCHEMA_VERSION:
        content = _UPGRADES[version](content)
        version += 1
    return content
