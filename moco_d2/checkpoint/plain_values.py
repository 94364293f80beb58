"""Judges values of a file that are written out again: into provenance, records and reports."""

import json
from typing import Any

from moco_d2.records.plain_values import Limits, check_values

# A whole config has under 1000 values, 5 deep. A record's reader takes no longer key.
_OF_A_CONFIG = Limits(values=10_000, levels=21, key=300, text=10_000, all_text=1_000_000)


def is_small(value: Any) -> bool:
    """Whether it unfolds to no more than a config could, with text that a terminal can print."""
    try:
        check_values(value, _OF_A_CONFIG)
    except ValueError:
        return False
    return True


def as_report(value: Any) -> dict[str, Any] | None:
    """A dict as JSON has it; None for anything else, and for more than a report could hold."""
    if not isinstance(value, dict) or not is_small(value):
        return None
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None
