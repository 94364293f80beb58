"""Defines a kind of fault: a function that injects it and checks a promise of the package."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path


class BrokenPromiseError(AssertionError):
    """The package broke a promise. The message says which."""


def check(condition: object, message: str) -> None:
    """Check a promise.

    Raises:
        BrokenPromiseError: If `condition` is false, with `message`.
    """
    if not condition:
        raise BrokenPromiseError(message)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a fault, for the log and for docs/reliability.md.

    Attributes:
        what: The fault and its outcome, in one line.
        faults: The number of injected faults, since a run may be killed twice.
        figures: Numbers that the page adds up, e.g. ``{"resumed bit for bit": 1}``.
    """

    what: str
    faults: int = 1
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


#: (random generator of this fault, an empty folder, number of the fault) -> outcome.
Deal = Callable[[random.Random, Path, int], Outcome]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: For example ``kill pretraining``.
        promise: The promise that must hold afterwards, a sentence of docs/reliability.md.
        count: Faults of this kind in a whole campaign.
        deal: The function that injects one fault.
    """

    name: str
    promise: str
    count: int
    deal: Deal
