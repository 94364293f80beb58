"""Derive seeds from the seed of a run, a purpose and a position."""

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """The purposes of seeds. Each has its own sequence of random numbers."""

    ORDER = 0
    VIEWS = 1
    SUBSTITUTE = 2
    DEVICE = 3
    VALIDATION = 4


def derive_seed(purpose: Purpose, *words: int) -> int:
    """Return a seed of 64 bits from non-negative integers, which is equal on every machine."""
    return int(np.random.SeedSequence((int(purpose), *words)).generate_state(1, np.uint64)[0])
