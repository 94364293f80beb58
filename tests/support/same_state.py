"""Where the states that two runs have left differ in a bit."""

from collections.abc import Container
from typing import Any

import torch

#: What the clock and the folder of a run decide.
OF_CLOCK = (
    *("time", "data_time", "rank_data_time", "eta_seconds", "started", "seconds"),
    *("smoothed", "OUTPUT_DIR"),
)


def differences(a: Any, b: Any, *, but: Container[object] = (), where: str = "") -> list[str]:
    """Return the places where nested dicts, lists, tensors and plain values differ.

    Args:
        but: Keys that do not count, at any depth.
    """
    if isinstance(a, dict) and type(a) is type(b):
        keys = [key for key in {**a, **b} if key not in but]
        entries = [(key, a.get(key, ...), b.get(key, ...)) for key in keys]
    elif isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        entries = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            same = a.dtype == b.dtype and torch.equal(a, b)
        else:  # through text: NaN, of a class without detections, is the same
            same = repr(a) == repr(b)
        return [] if same else [f"{where}: {a!r:.50}, {b!r:.50}"]
    return [d for key, x, y in entries for d in differences(x, y, but=but, where=f"{where}/{key}")]
