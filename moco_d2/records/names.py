"""Checks names that people read in tables: classes, datasets, runs.

A name with an invisible character, or with a letter of another alphabet that looks the same, is
another name to a program but not to a reader. A bidirectional control reverses the text beside it.
"""

import unicodedata
from collections.abc import Iterable

_JOINERS = "\u200c\u200d"  # words of Persian and of Indic languages need them
# Blank letters and marks, which Unicode does not call controls.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# Letters of Cyrillic and Greek that look like Latin ones in most fonts.
_LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТХаеѕіјорсхуһԁԛԝ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",
    "ABESIJKMHOPCTXaesijopcxyhdqw" + "ABEZHIKMNOPTYXo",
)


def invisible(text: str) -> str:
    """Return the name of the first character that cannot be seen, such as ``U+200F RIGHT-TO-LEFT
    MARK``, or "" if all can. A space between two words is visible.
    """
    for i, character in enumerate(text):
        if character.isprintable() and character not in _BLANK:
            continue
        beside = text[i - 1 : i] + text[i + 1 : i + 2]
        if character in _JOINERS and len(beside) == 2 and not any(map(str.isascii, beside)):
            continue
        name = unicodedata.name(character, "a control character")
        return f"U+{ord(character):04X} {name}"
    return ""


def appearance(name: str) -> str:
    """Return a text that is equal for names that look the same."""
    return unicodedata.normalize("NFC", " ".join(name.split())).translate(_LOOKALIKES)


def name_problem(names: Iterable[str], *, ignore_case: bool = False) -> str:
    """Return why a reader could not tell these names apart, as a clause, or "".

    Args:
        names: Different names.
        ignore_case: Whether names that differ only in upper and lower case are a problem, too.
    """
    seen: dict[str, str] = {}
    for name in names:
        character = invisible(name)
        if character:
            return f"the name {name!a} has the invisible character {character}: remove it"
        if any(map(_is_mixed, name.split())):
            return (
                f"the name {name!a} has Latin letters beside Cyrillic or Greek ones that look "
                "like Latin: write it in one alphabet"
            )
        key = appearance(name).casefold() if ignore_case else appearance(name)
        other = seen.setdefault(key, name)
        if other != name:
            alike = "differ only in case" if other.casefold() == name.casefold() else "look alike"
            return f"the names {other!a} and {name!a} {alike}: write one of them"
    return ""


def _is_mixed(word: str) -> bool:
    return word.translate(_LOOKALIKES) != word and any(
        character.isascii() and character.isalpha() for character in word
    )
