"""Checks values of a file before they are copied into provenance, records and reports."""

import json
from typing import Any

from moco_d2.records.plain_values import Limits, check_values

# A whole config has under 1000 values and 5 levels. The reader of records accepts no longer key.
_OF_A_CONFIG = Limits(values=10_000, levels=21, key=300, text=10_000, all_text=1_000_000)


def is_small(value: Any) -> bool:
    """Return whether a value is at most as large as a config, with printable text."""
    try:
        check_values(value, _OF_A_CONFIG)
    except ValueError:
        return False
    return True


def as_report(value: Any) -> dict[str, Any] | None:
    """Return a dict in JSON types; None for another value or a dict too large for a report."""
    if not isinstance(value, dict) or not is_small(value):
        return None
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None
