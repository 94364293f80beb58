"""Checks the values of an untrusted file against limits, whatever the file's format."""

import itertools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moco_d2.errors import printable
from moco_d2.records.names import invisible

_SHOWN = 40  # characters of a text in a message
_SHOWN_IF_ODD = 300  # the same for a text with a control character, which may be at any position


@dataclass(frozen=True)
class Limits:
    """The limits of a file's content.

    Attributes:
        values: Number of values. Every alias counts, since an alias takes only a few bytes.
        levels: Nesting depth, since code for configs and records is recursive.
        key: Characters of a key.
        text: Characters of a text.
        all_text: Characters of all texts together.
    """

    values: int
    levels: int
    key: int
    text: int
    all_text: int


def check_values(content: Any, limits: Limits) -> None:
    """Check that nested dicts, lists and tuples stay within limits and hold printable text.

    Raises:
        ValueError: If there are too many values, levels or characters; a control character, which a
            terminal would execute; half a surrogate pair, which cannot be encoded; or an invisible
            character, such as one that reverses the text beside it.
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
        # Counted before they are collected, since aliases can unfold to billions.
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
    _check_texts(set(map(str, keys)), limits.key)  # keys of yaml need not be text
    _check_texts(texts, limits.text)
    if sum(map(len, texts)) > limits.all_text:
        raise ValueError(f"damaged, more than {limits.all_text} characters")


def _check_texts(texts: Iterable[str], longest: int) -> None:
    if max(map(len, texts), default=0) > longest:
        raise ValueError(f"damaged, {printable(max(texts, key=len)[:_SHOWN])}... is too long")
    for text in itertools.filterfalse(str.isprintable, texts):
        categories = {unicodedata.category(c) for c in text if c not in "\t\n\r"}
        for category, name in (("Cc", "a control character"), ("Cs", "half a surrogate pair")):
            if category in categories:
                raise ValueError(f"damaged, {name} in {printable(text[:_SHOWN_IF_ODD])}")
        if "Cf" in categories:
            kept = (c for c in text if c.isprintable() or unicodedata.category(c) == "Cf")
            character = invisible("".join(kept))
            if character:
                raise ValueError(
                    f"damaged, the invisible character {character} in "
                    f"{printable(text[:_SHOWN_IF_ODD])}"
                )
