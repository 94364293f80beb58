"""The step of compiled_steps.py with a network that is compiled in seconds, for the tests."""

from pathlib import Path
from typing import Any

from support.rehearsal import compiled_steps
from support.rehearsal.pretraining import COMPILED_SMALL


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the counts of R18 with all that is compiled: SplitBN, and augmentation."""
    out = folder / "compiled_small"
    return compiled_steps.steps(out, [COMPILED_SMALL], "resnet18", side=64)
