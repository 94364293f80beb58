"""The kinds of values that a config key accepts.

A kind reads a value as it is written in a yaml file or on the command line. Its text completes the
sentence "KEY must be ...".
"""

import abc
import dataclasses
import functools
import math
import re
from typing import Any

from moco_d2.config.literals import decode
from moco_d2.errors import closest

_INTERVAL = re.compile(r"([\[(])(-?[\w.]+), ([\w.]+)([\])])")
_LONGEST_SHOWN = 80  # characters of a wrong value


class Kind(abc.ABC):
    """The values that a key accepts."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Complete the sentence "KEY must be ..."."""

    @abc.abstractmethod
    def read(self, raw: Any) -> Any:
        """Return the value for which `raw` stands.

        Args:
            raw: A value of a yaml file, or a word of the command line.

        Raises:
            ValueError: If the key does not accept `raw`. The message says what the value must be.
        """

    def _refuse(self, value: Any, advice: str = "") -> ValueError:
        advice = f"; {advice}" if advice else ""
        return ValueError(f"must be {self}, got {value!r:.{_LONGEST_SHOWN}}{advice}")


@dataclasses.dataclass(frozen=True)
class Number(Kind):
    """A finite number.

    Attributes:
        interval: The allowed numbers, written as in mathematics: ``(0, 1]``, ``[0, inf)``.
        integer: Whether only integers are allowed; otherwise the value is always a float.
    """

    interval: str
    integer: bool = False

    @functools.cached_property
    def _bounds(self) -> tuple[float, float, bool, bool]:
        parts = _INTERVAL.fullmatch(self.interval)
        if parts is None:
            raise ValueError(f"{self.interval!r} is not an interval")
        return float(parts[2]), float(parts[3]), parts[1] == "[", parts[4] == "]"

    def __str__(self) -> str:
        if math.isfinite(self._bounds[1]):
            return f"an integer in {self.interval}" if self.integer else f"in {self.interval}"
        noun = "an integer" if self.integer else "a finite number"
        return f"{noun}{self._limit()}"

    def plural(self) -> str:
        """Complete the sentence "KEY must be two ..."."""
        noun = "integers" if self.integer else "numbers"
        if math.isfinite(self._bounds[1]):
            return f"{noun} in {self.interval}"
        return f"{noun if self.integer else 'finite numbers'}{self._limit()}"

    def _limit(self) -> str:
        low, _, closed, _ = self._bounds
        if not math.isfinite(low):
            return ""
        return f" of at least {low:g}" if closed else f" above {low:g}"

    def contains(self, value: Any) -> bool:
        """Return whether `value` is such a number. True and False are not numbers."""
        if type(value) is not int and (self.integer or type(value) is not float):
            return False
        low, high, low_closed, high_closed = self._bounds
        return (
            math.isfinite(value)
            and (low < value or (low_closed and low == value))
            and (value < high or (high_closed and value == high))
        )

    def read(self, raw: Any) -> int | float:
        value = decode(raw)
        if isinstance(value, str) and value.strip().lower().lstrip("+-") in ("nan", "inf"):
            value = float(value)  # Python has no literals for these; yaml has
        if not self.contains(value):
            raise self._refuse(value)
        return int(value) if self.integer else float(value)


@dataclasses.dataclass(frozen=True)
class Numbers(Kind):
    """A tuple of numbers in increasing order.

    Attributes:
        each: The kind of each number.
        pair: Whether there are exactly two numbers, which may be equal. Otherwise there may be any
            count of numbers, all different.
        optional: Whether a pair may be left out, as ``()``.
        different: Whether the numbers of a pair must be different.
    """

    each: Number
    pair: bool = False
    optional: bool = False
    different: bool = False

    def __str__(self) -> str:
        if not self.pair:
            return f"a tuple of {self.each.plural()} in increasing order"
        different = "different " if self.different else ""
        optional = ", or ()" if self.optional else ""
        return f"two {different}{self.each.plural()}, the smaller first{optional}"

    def read(self, raw: Any) -> tuple[int | float, ...]:
        value = decode(raw)
        if not isinstance(value, list | tuple) or not all(map(self.each.contains, value)):
            raise self._refuse(value)
        numbers = tuple(value)
        if not numbers and (self.optional or not self.pair):
            return numbers
        good = (
            len(numbers) == 2 and numbers[0] <= numbers[1]
            if self.pair and not self.different
            else (not self.pair or len(numbers) == 2) and list(numbers) == sorted(set(numbers))
        )
        if not good:
            raise self._refuse(numbers)
        return numbers


@dataclasses.dataclass(frozen=True)
class Boolean(Kind):
    """True or False."""

    def __str__(self) -> str:
        return "True or False"

    def read(self, raw: Any) -> bool:
        value = decode(raw)
        if isinstance(value, str):  # the command line accepts yaml's words too
            value = {"true": True, "false": False}.get(value.lower(), value)
        if type(value) is not bool:
            raise self._refuse(value)
        return value


@dataclasses.dataclass(frozen=True)
class Switch(Boolean):
    """True, False, or None for what is best here, which is written as auto."""

    def __str__(self) -> str:
        return "auto (None), True or False"

    def read(self, raw: Any) -> bool | None:  # type: ignore[override] # a Boolean has no None
        value = decode(raw)
        return None if value is None or value in ("auto", "None") else super().read(raw)


@dataclasses.dataclass(frozen=True)
class Text(Kind):
    """Any text, even if it looks like a number."""

    def __str__(self) -> str:
        return "text"

    def read(self, raw: Any) -> str:
        value = _unquoted(raw)
        if not isinstance(value, str):
            raise self._refuse(value, "put it in quotes")
        return value


class Choice(Kind):
    """One of several words.

    Attributes:
        names: The words.
    """

    def __init__(self, *names: str):
        self.names = names

    def __str__(self) -> str:
        return _either(self.names)

    def read(self, raw: Any) -> str:
        value = _unquoted(raw)
        if value not in self.names:
            raise self._refuse(value, closest(str(value), self.names))
        return str(value)


class Names(Kind):
    """A tuple of names. One name needs no parentheses.

    Attributes:
        names: The allowed names; if there are none, any name is allowed.
    """

    def __init__(self, *names: str):
        self.names = names

    def __str__(self) -> str:
        if self.names:
            return f"a tuple of names, each of them {_either(self.names)}"
        return "a name or a tuple of names"

    def read(self, raw: Any) -> tuple[str, ...]:
        value = _unquoted(raw, "'\"([")
        if isinstance(raw, str) and not isinstance(value, list | tuple | str):
            value = raw  # "(7)" is a name, not a number
        if not isinstance(value, list | tuple | str):
            raise self._refuse(value, "put it in quotes")
        names = (value,) if isinstance(value, str) else tuple(value)
        for name in names:
            if not isinstance(name, str) or not name:
                raise self._refuse(value)
            if self.names and name not in self.names:
                raise self._refuse(name, closest(name, self.names))
        return names


def _unquoted(raw: Any, quotes: str = "'\"") -> Any:
    """Return the Python value of text that begins with one of `quotes`, and other text unchanged.

    For example the folder ``2007`` is not a number.
    """
    first = raw.lstrip()[:1] if isinstance(raw, str) else ""
    return decode(raw) if first and first in quotes else raw


def _either(names: tuple[str, ...]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
