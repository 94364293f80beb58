"""What a checkpoint says about its own making."""

import json
import statistics
from pathlib import Path
from typing import Any

import msgspec

from moco_d2.checkpoint.plain_values import is_small
from moco_d2.config.plain import to_plain
from moco_d2.files import sha256_of_json
from moco_d2.records.pretext_schema import Pretraining

# Entries of our checkpoints' "moco_d2" that describe the pretraining, and the sections of its
# config that do; the rest is for resuming.
_OUR_METADATA = ("version", "pretext", "iteration", "config")
_CONFIG_SECTIONS = ("MOCO", "SOLVER", "DATASETS", "SEED")
# Those that a record of a run is made from.
_OF_THE_RUN = (*_OUR_METADATA, "made_with", "scaling")


def describe_pretraining(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    """For provenance, in JSON types: epoch, arch, and of ours, version, iteration and config."""
    about = {
        key: checkpoint[key]
        for key in ("epoch", "arch")
        if isinstance(checkpoint.get(key), int | float | str) and is_small(checkpoint[key])
    }
    ours = _ours(checkpoint)
    about = {**_as_json(about), **{key: v for key, v in ours.items() if key in _OUR_METADATA}}
    if isinstance(about.get("config"), dict):
        about["config"] = {k: v for k, v in about["config"].items() if k in _CONFIG_SECTIONS}
    return _portable(about)


def pretraining_run(checkpoint: dict[Any, Any]) -> dict[str, Any] | None:
    """The run that made one of our pretraining checkpoints, as a record has it; None for others.

    Returns:
        a `Pretraining` as plain values. Its config is that of the run, without what is neither
        MOCO, SOLVER, DATASETS nor SEED. A checkpoint of an older version has None, or nothing, for
        what it does not know.
    """
    try:
        return _run(checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return None  # an entry of this name that is not ours


def _run(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    ours, config = _ours(checkpoint), describe_pretraining(checkpoint)["config"]
    made_with = _section(ours, "made_with")
    entry = checkpoint["moco_d2"]
    histories = _section(_section(entry, "metrics"), "histories")
    processes = entry.get("processes")
    seconds = [float(value) for value, _ in histories.get("time", ())]
    run = Pretraining(
        config=config,
        config_sha256=sha256_of_json(config),
        iterations=int(ours["iteration"]),
        images=_section(ours, "scaling").get("num_images"),
        processes=(len(processes) or None) if isinstance(processes, list) else None,
        version=str(ours.get("version")),
        environment=_section(made_with, "environment"),
        hardware=_section(made_with, "hardware"),
        seconds_per_iteration=round(statistics.median(seconds), 4) if seconds else None,
        peak_memory_gib=made_with.get("peak_memory_gib"),
    )
    plain = msgspec.to_builtins(run)
    msgspec.convert(plain, Pretraining)  # values of a stranger's checkpoint are checked
    return plain


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def _ours(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    """Our entry's parts about the run, in JSON types; what is too large to be one is left out."""
    ours = _section(checkpoint, "moco_d2")
    return _as_json({key: ours[key] for key in _OF_THE_RUN if key in ours and is_small(ours[key])})


def _as_json(content: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(to_plain(content), default=lambda value: type(value).__name__))


def _portable(value: Any) -> Any:
    """`value` with the last part of every absolute path: weights travel, folders do not."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
