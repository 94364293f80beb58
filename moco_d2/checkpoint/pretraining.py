"""What a checkpoint says about its own making."""

import json
import statistics
from pathlib import Path
from typing import Any

from moco_d2.config import to_plain
from moco_d2.files import sha256_of_json

# Entries of our checkpoints' "moco_d2" that describe the pretraining, and the sections of its
# config that do; the rest is for resuming.
_OUR_METADATA = ("version", "pretext", "iteration", "config")
_CONFIG_SECTIONS = ("MOCO", "SOLVER", "DATASETS", "SEED")


def describe_pretraining(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    """For provenance, in JSON types: epoch, arch, and of ours, version, iteration and config."""
    about = {
        key: checkpoint[key]
        for key in ("epoch", "arch")
        if isinstance(checkpoint.get(key), int | float | str)
    }
    about.update({key: v for key, v in _ours(checkpoint).items() if key in _OUR_METADATA})
    if isinstance(about.get("config"), dict):
        about["config"] = {k: v for k, v in about["config"].items() if k in _CONFIG_SECTIONS}
    return _portable(json.loads(json.dumps(to_plain(about), default=str)))


def pretraining_run(checkpoint: dict[Any, Any]) -> dict[str, Any] | None:
    """The run that made one of our pretraining checkpoints, as a record has it; None for others.

    Returns:
        ``{"config", "config_sha256", "iterations", "images", "processes", "version",
        "environment", "hardware", "seconds_per_iteration", "peak_memory_gib"}``: the config as it
        ran (without what is neither MOCO, SOLVER, DATASETS nor SEED), the number of images of the
        dataset, the median of the last 20 iterations' seconds, and the memory of the main process's
        GPU. A checkpoint of an older version has None, or nothing, for what it does not know.
    """
    try:
        return _run(checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # an entry of this name that is not ours


def _run(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    ours, config = _ours(checkpoint), describe_pretraining(checkpoint)["config"]
    made_with = ours.get("made_with") or {}
    histories = (ours.get("metrics") or {}).get("histories") or {}
    seconds = [value for value, _ in histories.get("time", ())]
    return {
        "config": config,
        "config_sha256": sha256_of_json(config),
        "iterations": int(ours["iteration"]),
        "images": (ours.get("scaling") or {}).get("num_images"),
        "processes": len(ours.get("processes") or ()) or None,
        "version": str(ours.get("version")),
        "environment": made_with.get("environment") or {},
        "hardware": made_with.get("hardware") or {},
        "seconds_per_iteration": round(statistics.median(seconds), 4) if seconds else None,
        "peak_memory_gib": made_with.get("peak_memory_gib"),
    }


def _ours(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    ours = checkpoint.get("moco_d2")
    return ours if isinstance(ours, dict) else {}


def _portable(value: Any) -> Any:
    """`value` with the last part of every absolute path: weights travel, folders do not."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
