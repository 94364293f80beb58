"""Random numbers that follow from a seed, a purpose and a position."""

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """What a seed is for; no two uses share a sequence of random numbers."""

    ORDER = 0
    VIEWS = 1
    SUBSTITUTE = 2
    DEVICE = 3


def derive_seed(purpose: Purpose, *words: int) -> int:
    """64 well mixed bits from non-negative integers, the same on every machine."""
    return int(np.random.SeedSequence((int(purpose), *words)).generate_state(1, np.uint64)[0])
