"""Converts a config to plain types for records, hashes and comparisons."""

import math
from collections.abc import Mapping
from typing import Any

from moco_d2.files import sha256_of_json

#: Matched runs of one task may differ in these keys.
FREE_KEYS = (
    *("MODEL.WEIGHTS", "SEED", "OUTPUT_DIR", "MOCO.TRACKERS"),
    *("MOCO.VAL_LOSS", "MOCO.VAL_LOSS_DATA", "MOCO.VAL_LOSS_IMAGES"),
)

#: If this key has a value, one rule chose the learning rate of each row, so it is free. The value
#: TRIAL belongs to the runs that the rule compares.
_RULE, TRIAL = "MOCO.TUNED", "trial"

#: Keys that older configs lack, and the values with which a run equals a run of an older version.
LATER_KEYS = {
    "MOCO.BACKBONE_ONLY": False,
    "MOCO.CHECKPOINT.MINUTES": 30,
    "MOCO.INPUT.RANGE": [],
    _RULE: "",
    "MOCO.LABEL_FRACTION": 1.0,
}


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


def free_keys(resolved: Mapping[str, Any]) -> tuple[str, ...]:
    """Return FREE_KEYS, and the learning rate if the rule that chose it is in the config."""
    moco = resolved.get("MOCO")
    tuned = isinstance(moco, Mapping) and moco.get(_RULE.removeprefix("MOCO."))
    return (*FREE_KEYS, *(("SOLVER.BASE_LR",) if tuned else ()))


def matched_sha256(resolved: Mapping[str, Any]) -> str:
    """Return the fingerprint of a plain config without its free keys, which matched runs share."""
    return sha256_of_json(without_free_keys(resolved))


def without_free_keys(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shallow copy of a plain config without its free keys, and without LATER_KEYS that
    have the value of an older version. The config stays unchanged.
    """
    rest = dict(resolved)
    for dotted in (*free_keys(resolved), *LATER_KEYS):
        *path, last = dotted.split(".")
        nodes: list[dict[str, Any]] = [rest]
        for part in path:
            node = nodes[-1].get(part)
            if not isinstance(node, Mapping):
                break
            nodes[-1][part] = dict(node)
            nodes.append(nodes[-1][part])
        else:
            later = dotted in LATER_KEYS
            if not later or nodes[-1].get(last) == LATER_KEYS[dotted]:
                nodes[-1].pop(last, None)
            if later and not nodes[-1] and path:  # the section is as late as its only key
                nodes[-2].pop(path[-1])
    return rest
