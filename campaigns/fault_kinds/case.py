"""What a fault is to the campaign: a function that does it and says what is wrong afterwards."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path


class BrokenPromiseError(AssertionError):
    """What the package promised did not hold; the message says what."""


def check(condition: object, message: str) -> None:
    """
    Raises:
        BrokenPromiseError: with `message`, if `condition` does not hold.
    """
    if not condition:
        raise BrokenPromiseError(message)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a fault came to, for the log and for docs/reliability.md.

    Attributes:
        what: was done, and what came of it; a line.
        faults: that were dealt: a run may be killed twice.
        figures: numbers that the page adds up, ``{"resumed bit for bit": 1}``.
    """

    what: str
    faults: int = 1
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


#: (random choices of this fault, an empty folder, number of the fault) -> what it came to.
Deal = Callable[[random.Random, Path, int], Outcome]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: ``kill pretraining``.
        promise: what has to hold afterwards; a sentence of docs/reliability.md.
        count: faults of this kind in a whole campaign.
        deal: does one.
    """

    name: str
    promise: str
    count: int
    deal: Deal
