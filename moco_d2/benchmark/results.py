"""Reading the ``record.json`` that every fine-tuning run leaves in its output folder."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jsonschema

from moco_d2.errors import UserError

RECORD_NAME = "record.json"
SCHEMA_VERSION = 1

_logger = logging.getLogger(__name__)

_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_POSITIVE = {"type": "integer", "minimum": 1}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_NUMBER_OR_NULL = {"type": ["number", "null"]}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object that needs all of `properties` and may have others, so that a version can grow."""
    return {"type": "object", "properties": properties, "required": list(properties), **more}


#: JSON schema of a run record. A change that old readers would misread raises SCHEMA_VERSION.
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Record of one fine-tuning run",
    **_object(
        {
            "schema_version": {"const": SCHEMA_VERSION},
            "kind": {"const": "transfer"},
            "run": _object(
                {
                    "config_name": {"type": "string"},
                    "task": _TEXT,
                    "initialisation": _TEXT,
                    "seed": {"type": "integer"},
                    "started": _TEXT,
                    "finished": _TEXT,
                    "seconds": {"type": "number", "minimum": 0},
                }
            ),
            "config": _object(
                {
                    "resolved": _object(
                        {
                            "DATASETS": _object(
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
                    _object(
                        {
                            "file": _TEXT,
                            "sha256": _SHA256,
                            "provenance": {"type": ["object", "null"]},
                        }
                    ),
                ]
            },
            "coverage": _object({"expected": _COUNT, "loaded": _COUNT}),
            "schedule": _object(
                {
                    "world_size": _POSITIVE,
                    "ims_per_batch": _POSITIVE,
                    "base_lr": {"type": "number"},
                    "max_iter": _POSITIVE,
                    "steps": {"type": "array", "items": _COUNT},
                    "norm": {"type": "string"},
                    "notes": {"type": "array", "items": {"type": "string"}},
                }
            ),
            "preflight": _object({"forced": {"type": "boolean"}, "findings": {"type": "array"}}),
            "environment": {"type": "object"},
            "hardware": {"type": "object"},
            "metrics": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": _NUMBER_OR_NULL,
                },
            },
            "history": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"iteration": _COUNT},
                    "required": ["iteration"],
                    "additionalProperties": _NUMBER_OR_NULL,
                },
            },
        }
    ),
}

_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@dataclass(frozen=True)
class Record:
    """One finished fine-tuning run.

    Metrics are in percent and keyed as in Detectron2's ``metrics.json``, e.g. ``bbox/AP50``; None
    where the run gave NaN. `images` is what the schedule sees: iterations x images a batch.
    """

    path: Path
    task: str
    initialisation: str
    seed: int
    finished: datetime
    config: Mapping[str, Any]
    matched_sha256: str
    weights_sha256: str | None
    has_provenance: bool
    expected: int
    loaded: int
    max_iter: int
    ims_per_batch: int
    forced: bool
    metrics: Mapping[str, float | None]
    history: tuple[Mapping[str, float | None], ...]
    environment: Mapping[str, str]
    hardware: Mapping[str, Any]

    @property
    def images(self) -> int:
        return self.max_iter * self.ims_per_batch

    @property
    def datasets_train(self) -> tuple[str, ...]:
        return tuple(self.config["DATASETS"]["TRAIN"])

    @property
    def datasets_test(self) -> tuple[str, ...]:
        return tuple(self.config["DATASETS"]["TEST"])


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """All valid run records among files and, recursively, folders; each file once.

    A record that is damaged or does not follow the schema is named in a warning and left out as a
    whole. Records of another ``kind`` belong to other tools and are passed over.

    Raises:
        UserError: a path does not exist, or there is no valid record at all.
    """
    paths = [Path(path) for path in paths]
    files: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; give the output folders of tools/train_net.py")
        for file in sorted(path.rglob(RECORD_NAME)) if path.is_dir() else [path]:
            files.setdefault(file.resolve(), file)

    records, left_out = [], 0
    for file in files.values():
        try:
            record = _read_record(file)
        except (OSError, ValueError, RecursionError) as error:
            _logger.warning("left out %s: %s", file, error)
            left_out += 1
            continue
        if record is not None:
            records.append(record)
    if not records:
        raise UserError(
            f"no {'valid ' if left_out else ''}{RECORD_NAME} under {', '.join(map(str, paths))}; "
            "fine-tune first: tools/train_net.py --config-file ... leaves one in its OUTPUT_DIR"
        )
    return records


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _read_record(path: Path) -> Record | None:
    """The record in `path`, or None if it is of another kind. ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"damaged, not JSON ({error})") from error
    if isinstance(content, dict) and content.get("kind", "transfer") != "transfer":
        return None
    error = jsonschema.exceptions.best_match(_VALIDATOR.iter_errors(content))
    if error is not None:
        raise ValueError(
            f"not a version {SCHEMA_VERSION} record: {error.json_path}: {error.message:.200}"
        )

    run, weights = content["run"], content["weights"]
    return Record(
        path=path,
        task=run["task"],
        initialisation=run["initialisation"],
        seed=run["seed"],
        finished=_time(run["finished"]),
        config=content["config"]["resolved"],
        matched_sha256=content["config"]["matched_sha256"],
        weights_sha256=weights["sha256"] if weights else None,
        has_provenance=bool(weights and weights["provenance"]),
        expected=content["coverage"]["expected"],
        loaded=content["coverage"]["loaded"],
        max_iter=content["schedule"]["max_iter"],
        ims_per_batch=content["schedule"]["ims_per_batch"],
        forced=content["preflight"]["forced"],
        metrics={
            f"{group}/{name}": value
            for group, values in content["metrics"].items()
            for name, value in values.items()
        },
        history=tuple(content["history"]),
        environment=content["environment"],
        hardware=content["hardware"],
    )


def _time(text: str) -> datetime:
    """ISO 8601 to an aware time; without a zone it counts as UTC, so that any two compare."""
    if text.endswith("Z"):  # Python 3.10 does not read it
        text = text[:-1] + "+00:00"
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
