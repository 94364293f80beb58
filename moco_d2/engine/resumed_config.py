"""Find the settings that differ between a run's config and the config of its resume."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from moco_d2.config.plain import flatten
from moco_d2.engine.resume_checks import (
    check_count,
    check_json,
    check_name,
    entry,
    require,
    shown,
)

#: Settings that may change at a resume without a word: where to write, on what to run, and when to
#: save.
FREE_TO_CHANGE = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "MOCO.CHECKPOINT.",
    "MOCO.TRACKERS",
)
_LONGEST = 200  # characters of a value in a record


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that changed when a run was resumed.

    Attributes:
        iteration: The number of iterations that had been trained.
        key: The config key.
        before: Its value until then, as text.
        after: Its value since then, as text.
    """

    iteration: int
    key: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.key} {self.after}, which was {self.before}"


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], *, iteration: int, free: Sequence[str]
) -> list[Change]:
    """Return the settings that both configs have with different values, ordered by key.

    Args:
        before: The plain config of the checkpoint, with sections.
        now: The plain config of this process, with sections.
        iteration: The number of iterations that have been trained.
        free: Keys, and beginnings of keys that end with a dot, that may change.
    """
    old, new = flatten(before), flatten(now)
    return [
        Change(iteration, key, _text(old[key]), _text(new[key]))
        for key in sorted(old.keys() & new.keys())
        if old[key] != new[key] and not key.startswith(tuple(free))
    ]


def _text(value: Any) -> str:
    text = str(value)
    return text[:_LONGEST] or "empty" if text.isprintable() else shown(text)


def check_config(state: Any, where: str) -> None:
    """Check a plain config that a checkpoint holds.

    Raises:
        UnusableError: If it is not a dict that can be written as JSON.
    """
    require(type(state) is dict, f"its {where} is {shown(state)}, not a dict")
    check_json(state, where)


def read_changes(state: Any, where: str) -> list[Change]:
    """Return the changes that a checkpoint holds as a list of dicts.

    Raises:
        UnusableError: If an entry cannot be used.
    """
    require(type(state) is list, f"its {where} is {shown(state)}, not a list")
    read = []
    for change in state:
        iteration = check_count(entry(change, "iteration", int, where), f"{where}.iteration")
        words = [
            check_name(entry(change, name, str, where), f"{where}.{name}")
            for name in ("key", "before", "after")
        ]
        require(len(change) == 4, f"its {where} have more than iteration, key, before and after")
        read.append(Change(iteration, *words))
    return read
