"""Bounds on what a stranger's file holds, whichever format it was read from."""

import itertools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moco_d2.errors import printable

_SHOWN = 40  # characters of a text in a message
_SHOWN_IF_ODD = 300  # of one with a character that is no text, which may stand anywhere


@dataclass(frozen=True)
class Limits:
    """The most that a file may hold.

    Attributes:
        values: number of values; aliases, which a few bytes suffice for, count each time.
        levels: nesting depth. What goes through a config or a record does so recursively.
        key: characters of a key.
        text: characters of a text.
        all_text: characters of all texts together.
    """

    values: int
    levels: int
    key: int
    text: int
    all_text: int


def check_values(content: Any, limits: Limits) -> None:
    """Check that nested dicts, lists and tuples stay within limits and hold printable text.

    Raises:
        ValueError: there are too many values, levels or characters, a control character, which a
            terminal would obey, or half a surrogate pair, which cannot be written.
    """
    level, seen = [content], 0
    keys: set[Any] = set()
    texts: list[str] = []
    for _ in range(limits.levels):
        kinds: dict[type, list[Any]] = {}
        for node in level:
            kinds.setdefault(type(node), []).append(node)
        dicts: list[dict[Any, Any]] = []
        lists: list[Any] = []
        for kind, nodes in kinds.items():
            if issubclass(kind, dict):
                dicts += nodes
            elif issubclass(kind, (list, tuple)):
                lists += nodes
            elif issubclass(kind, str):
                texts += nodes
        # Counted before they are gathered: aliases can stand for billions.
        seen += sum(map(len, dicts)) + sum(map(len, lists))
        if seen > limits.values:
            raise ValueError(f"damaged, more than {limits.values} values")
        keys.update(*dicts)
        level = [
            *itertools.chain.from_iterable(map(dict.values, dicts)),
            *itertools.chain.from_iterable(lists),
        ]
        if not level:
            break
    else:
        raise ValueError(f"damaged, nested deeper than {limits.levels} levels")
    _check_texts(set(map(str, keys)), limits.key)  # yaml has other keys, too
    _check_texts(texts, limits.text)
    if sum(map(len, texts)) > limits.all_text:
        raise ValueError(f"damaged, more than {limits.all_text} characters")


def _check_texts(texts: Iterable[str], longest: int) -> None:
    if max(map(len, texts), default=0) > longest:
        raise ValueError(f"damaged, {printable(max(texts, key=len)[:_SHOWN])}... is too long")
    for text in itertools.filterfalse(str.isprintable, texts):
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in text if c not in "\t\n\r"):
            raise ValueError(
                f"damaged, a character that is no text in {printable(text[:_SHOWN_IF_ODD])}"
            )
