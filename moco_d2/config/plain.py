"""Converts a config to plain types for records, hashes and comparisons."""

import math
from collections.abc import Mapping
from typing import Any

from moco_d2.files import sha256_of_json

#: Matched runs of one task may differ in these keys.
FREE_KEYS = ("MODEL.WEIGHTS", "SEED", "OUTPUT_DIR")


def has_key(cfg: Any, dotted: str) -> bool:
    """Return whether `cfg` has the key ``A.B.C``."""
    node = cfg
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return a config as ``{"MODEL.WEIGHTS": value, ...}``."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_plain(cfg: Any) -> dict[str, Any]:
    """Return a config as nested dicts of JSON types.

    Tuples become lists, and NaN and infinity become text.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value

    return plain(cfg)


def matched_sha256(resolved: Mapping[str, Any]) -> str:
    """Return the fingerprint of a plain config without FREE_KEYS, which matched runs share."""
    return sha256_of_json(without_free_keys(resolved))


def without_free_keys(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shallow copy of a plain config without FREE_KEYS. The config stays unchanged."""
    rest = dict(resolved)
    for dotted in FREE_KEYS:
        *path, last = dotted.split(".")
        node: dict[str, Any] = rest
        for part in path:
            if not isinstance(node.get(part), Mapping):
                break
            node[part] = node = dict(node[part])
        else:
            node.pop(last, None)
    return rest
