"""The shards that a pattern with braces names, and which of them are files of this machine.

The same strings as webdataset's expand_urls (``::`` between patterns, ``${X}`` for the environment
variable WDS_X, braces as in bash), but counted before they are made.
"""

import os
import re

#: Pretraining's prefix of such a pattern in DATASETS.TRAIN.
SHARDS_PREFIX = "shards:"

MOST_SHARDS = 4_000_000  # a set of a million is in use
_MOST_CHARACTERS = 400_000_000
_LONGEST = 10_000  # characters of a pattern
_DEEPEST = 20  # braces within braces
_MOST_DIGITS = 18
_SUBSTITUTIONS = 10  # webdataset's: of variables in variables
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_INTEGERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\n?")
_CHARACTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?\n?")


def is_local(url: str) -> bool:
    """Whether a shard is opened as a file. What begins with a scheme is left to webdataset, which
    runs programs for most: ``pipe:``, ``http:``, ``s3:``, ``gs:``.
    """
    return not re.match(r"\w+:", url)


def expand(pattern: str) -> list[str]:
    """The shards that `pattern` names.

    Raises:
        ValueError: unbalanced braces, an environment variable that is not there, or more than 4
            million shards.
    """
    return [
        url
        for part in pattern.split("::")
        for url in _remove_escapes(_expand(_substitute(part), 0))
    ]


def first_command(pattern: str) -> str | None:
    """The first shard of `pattern` that is no file of this machine; None if all are.

    Raises:
        ValueError: as in expand.
    """
    # Expanding invents letters and digits, but no colon: a million files need not be named twice.
    for part in pattern.split("::"):
        text = _substitute(part)
        if ":" in text:
            for url in _remove_escapes(_expand(text, 0)):
                if not is_local(url):
                    return url
    return None


def _substitute(text: str) -> str:
    def lookup(found: re.Match[str]) -> str:
        name = f"WDS_{found[1]}"
        if name not in os.environ:
            raise ValueError(f"there is no environment variable {name}")
        return os.environ[name]

    for _ in range(_SUBSTITUTIONS):
        before, text = text, re.sub(r"\$\{(\w+)\}", lookup, text[: _LONGEST + 1])
        if text == before:
            break
    if len(text) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} characters")
    return text


def _remove_escapes(urls: list[str]) -> list[str]:
    if not any("\\" in url for url in urls):
        return urls
    return [re.sub(r"\\(.)", r"\1", url) for url in urls]


def _expand(text: str, deep: int) -> list[str]:
    """All that `text` stands for, escapes left in."""
    if deep > _DEEPEST:
        raise ValueError(f"its braces nest deeper than {_DEEPEST} levels")
    urls, start, depth, place = [""], 0, 0, 0
    while place < len(text):
        if text[place] == "\\":
            place += 2
            continue
        if text[place] == "{":
            if depth == 0:
                urls = _product(urls, [text[start:place]])
                start = place
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                urls = _product(urls, _choices(text[start + 1 : place], deep))
                start = place + 1
        place += 1
    if depth != 0:
        raise ValueError(f"unbalanced braces in {text[:100]!r}")
    return _product(urls, [text[start:]])


def _product(heads: list[str], tails: list[str]) -> list[str]:
    number = len(heads) * len(tails)
    _check_number(number, len(heads[0]) + len(tails[0]))
    return [head + tail for head in heads for tail in tails]


def _check_number(number: int, length: int) -> None:
    if number > MOST_SHARDS or number * length > _MOST_CHARACTERS:
        raise ValueError(f"it names more than {MOST_SHARDS} shards, or too long ones")


def _choices(inside: str, deep: int) -> list[str]:
    """What braces with `inside` between them stand for."""
    integers, characters = _INTEGERS.fullmatch(inside), _CHARACTERS.fullmatch(inside)
    if integers:
        return _integers(*integers.groups())
    if characters:
        return _characters(*characters.groups())
    parts = _split(inside)
    if len(parts) == 1:  # neither: the braces are meant as they stand
        return [f"{{{url}}}" for url in _remove_escapes(_expand(inside, deep + 1))]
    urls: list[str] = []
    for part in parts:
        urls += _remove_escapes(_expand(part, deep + 1))  # at each level, as braceexpand does
        _check_number(len(urls), len(urls[-1]))
    return urls


def _split(inside: str) -> list[str]:
    """At the commas that are in no inner braces."""
    parts, start, depth, place = [], 0, 0, 0
    while place < len(inside):
        if inside[place] == "\\":
            place += 2
            continue
        if inside[place] == "{":
            depth += 1
        elif inside[place] == "}":
            depth -= 1
        elif inside[place] == "," and depth == 0:
            parts.append(inside[start:place])
            start = place + 1
        place += 1
    return [*parts, inside[start:]]


def _integers(first: str, last: str, step: str | None) -> list[str]:
    if max(map(len, (first, last, step or ""))) > _MOST_DIGITS:
        raise ValueError(f"a number in it has more than {_MOST_DIGITS} digits")
    padded = any(n.lstrip("-").startswith("0") and n not in ("0", "-0") for n in (first, last))
    width = max(len(first), len(last)) if padded else 0
    stride = int(step or 1) or 1
    low, high = int(first), int(last)
    numbers = range(low, high + 1, stride) if low < high else range(low, high - 1, -stride)
    _check_number(len(numbers), max(len(first), len(last)))
    return [f"{number:0{width}d}" for number in numbers]


def _characters(first: str, last: str, step: str | None) -> list[str]:
    if len(step or "") > _MOST_DIGITS:
        raise ValueError(f"a number in it has more than {_MOST_DIGITS} digits")
    stride = int(step or 1) or 1
    low, high = _LETTERS.index(first), _LETTERS.index(last)
    if low < high:
        return list(_LETTERS[low : high + 1 : stride])
    return list(_LETTERS[low : (high or -len(_LETTERS)) - 1 : -stride])
