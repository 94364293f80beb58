"""Reads how a checkpoint was made, from the checkpoint itself."""

import json
import statistics
from pathlib import Path
from typing import Any

import msgspec

from moco_d2.checkpoint.report_values import is_small
from moco_d2.config.plain import to_plain
from moco_d2.files import sha256_of_json
from moco_d2.records.pretext_schema import Pretraining

# These entries of "moco_d2" in our checkpoints, and these sections of its config, describe the
# pretraining. The rest is for resuming.
_METADATA = ("version", "pretext", "iteration", "config", "changes")
_CONFIG_SECTIONS = ("MOCO", "SOLVER", "DATASETS", "SEED")
# A run record is made from these entries.
_RUN_METADATA = (*_METADATA, "made_with", "scaling")


def describe_pretraining(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    """Return how a checkpoint was made, as JSON types for provenance.

    They are epoch and arch, and for our checkpoints version, iteration, config, and the settings
    that changed at a resume.
    """
    about = {
        key: checkpoint[key]
        for key in ("epoch", "arch")
        if isinstance(checkpoint.get(key), int | float | str) and is_small(checkpoint[key])
    }
    entry = _run_metadata(checkpoint)
    about = {**_as_json(about), **{key: v for key, v in entry.items() if key in _METADATA}}
    if isinstance(about.get("config"), dict):
        about["config"] = {k: v for k, v in about["config"].items() if k in _CONFIG_SECTIONS}
    return _portable(about)


def pretraining_run(checkpoint: dict[Any, Any]) -> dict[str, Any] | None:
    """Return the run that made one of our pretraining checkpoints; None for another checkpoint.

    Returns:
        A `Pretraining` as plain values. Its config has the run's sections MOCO, SOLVER, DATASETS
        and SEED. Values that a checkpoint of an older version lacks are None or absent.
    """
    try:
        return _run(checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return None  # another project's entry with the same name


def _run(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    metadata, config = _run_metadata(checkpoint), describe_pretraining(checkpoint)["config"]
    made_with = _section(metadata, "made_with")
    entry = checkpoint["moco_d2"]
    histories = _section(_section(entry, "metrics"), "histories")
    processes = entry.get("processes")
    seconds = [float(value) for value, _ in histories.get("time", ())]
    run = Pretraining(
        config=config,
        config_sha256=sha256_of_json(config),
        iterations=int(metadata["iteration"]),
        images=_section(metadata, "scaling").get("num_images"),
        processes=(len(processes) or None) if isinstance(processes, list) else None,
        version=str(metadata.get("version")),
        environment=_section(made_with, "environment"),
        hardware=_section(made_with, "hardware"),
        seconds_per_iteration=round(statistics.median(seconds), 4) if seconds else None,
        peak_memory_gib=made_with.get("peak_memory_gib"),
    )
    plain = msgspec.to_builtins(run)
    msgspec.convert(plain, Pretraining)  # checks the types, since anyone may write a checkpoint
    return plain


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def _run_metadata(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    """Return the run's entries of "moco_d2" as JSON types, without entries that are too large."""
    entry = _section(checkpoint, "moco_d2")
    keys = [key for key in _RUN_METADATA if key in entry and is_small(entry[key])]
    return _as_json({key: entry[key] for key in keys})


def _as_json(content: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(to_plain(content), default=lambda value: type(value).__name__))


def _portable(value: Any) -> Any:
    """Shorten absolute paths to their last part, because weights are used on other machines."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
