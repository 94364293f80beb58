"""The step of compiled_steps.py with a network that is compiled in seconds, for the tests."""

from pathlib import Path
from typing import Any
from unittest import mock

from support.rehearsal import compiled_steps
from support.rehearsal.pretraining import COMPILED_SMALL

from moco_d2.resnet import BASIC_DEPTHS


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the counts with all that is compiled: SplitBN, and augmentation.

    The network is an R18 with one block in each stage, where it has all kinds of layers.
    """
    with mock.patch.dict(BASIC_DEPTHS, {18: (1, 1, 1, 1)}):
        counts = compiled_steps.steps(
            folder / "compiled_small", [COMPILED_SMALL], "resnet18", side=64
        )
    return {f"{name}, a block a stage": one for name, one in counts.items()}
