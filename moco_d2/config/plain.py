"""A config as plain types: for records, hashes and comparisons."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moco_d2.files import sha256_of_json

#: What may differ between two runs of one task without making them unmatched.
FREE_KEYS = ("MODEL.WEIGHTS", "SEED", "OUTPUT_DIR")


def has_key(cfg: Any, dotted: str) -> bool:
    """Whether ``cfg`` has the key ``A.B.C``."""
    node = cfg
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """A config as ``{"MODEL.WEIGHTS": value, ...}``."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_plain(cfg: Any) -> dict[str, Any]:
    """A config as nested dicts of JSON types (tuples become lists, NaN and infinity become
    strings).
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
    """Fingerprint of a plain config (to_plain) without FREE_KEYS: equal for matched runs."""

    def without(node: Any, path: Sequence[str]) -> Any:
        if not isinstance(node, Mapping):
            return node
        return {
            key: without(value, path[1:]) if key == path[0] else value
            for key, value in node.items()
            if [key] != path
        }

    rest: Any = resolved
    for dotted in FREE_KEYS:
        rest = without(rest, dotted.split("."))
    return sha256_of_json(rest)
