"""The shards that a pattern with braces names, and which of them are files of this machine.

The same strings as webdataset's expand_urls (``::`` between patterns, ``${X}`` for the environment
variable WDS_X, braces as in bash), but counted before they are made.
"""

import os
import re
from collections.abc import Iterator

#: Pretraining's prefix of such a pattern in DATASETS.TRAIN.
SHARDS_PREFIX = "shards:"

MOST_SHARDS = 4_000_000  # a set of a million is in use
_MOST_CHARACTERS = 400_000_000  # of all of them together
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
    return [url for text in _parts(pattern) for url in _remove_escapes(_expand(text))]


def first_command(pattern: str) -> str | None:
    """The first shard of `pattern` that is no file of this machine; None if all are.

    Raises:
        ValueError: as in expand.
    """
    # Expanding invents letters and digits, but no colon: a million files need not be named twice.
    for text in _parts(pattern):
        if ":" in text:
            for url in _remove_escapes(_expand(text)):
                if not is_local(url):
                    return url
    return None


def _parts(pattern: str) -> list[str]:
    """The patterns between ``::``, variables put in.

    Raises:
        ValueError: they name too many shards together, or as in expand.
    """
    parts = [_substitute(part) for part in pattern.split("::")]
    number = characters = 0
    for part in parts:
        more_shards, more_characters = _measure(part)
        number, characters = number + more_shards, characters + more_characters
        _check_size(number, characters)
    return parts


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


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Cut `text` at its outer braces; of each piece, whether it was between them.

    Raises:
        ValueError: the braces are not balanced.
    """
    start, depth, place = 0, 0, 0
    while place < len(text):
        if text[place] == "\\":
            place += 2
            continue
        if text[place] == "{":
            if depth == 0:
                yield text[start:place], False
                start = place
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                yield text[start + 1 : place], True
                start = place + 1
        place += 1
    if depth != 0:
        raise ValueError(f"unbalanced braces in {text[:100]!r}")
    yield text[start:], False


# ---- counting ------------------------------------------------------------------------------------


def _measure(text: str, deep: int = 0) -> tuple[int, int]:
    """How many shards `text` stands for, and their characters together at most.

    Whatever is built on the way to them is no larger: each brace stands for one text or more.

    Raises:
        ValueError: too many, or the braces nest too deep or are not balanced.
    """
    if deep > _DEEPEST:
        raise ValueError(f"its braces nest deeper than {_DEEPEST} levels")
    number, characters = 1, 0
    for piece, braced in _pieces(text):
        times, length = _measure_choices(piece, deep) if braced else (1, len(piece))
        number, characters = number * times, characters * times + length * number
        _check_size(number, characters)
    return number, characters


def _measure_choices(inside: str, deep: int) -> tuple[int, int]:
    integers, letters = _INTEGERS.fullmatch(inside), _CHARACTERS.fullmatch(inside)
    if integers:
        first, last, step = integers.groups()
        number = len(_range(first, last, step))
        return number, number * max(len(first), len(last))
    if letters:
        number = len(_letters(*letters.groups()))
        return number, number
    parts = _split(inside)
    if len(parts) == 1:
        number, characters = _measure(inside, deep + 1)
        return number, characters + 2 * number
    sizes = [_measure(part, deep + 1) for part in parts]
    return sum(number for number, _ in sizes), sum(characters for _, characters in sizes)


def _check_size(number: int, characters: int) -> None:
    if number > MOST_SHARDS or characters > _MOST_CHARACTERS:
        raise ValueError(f"it names more than {MOST_SHARDS} shards, or too long ones")


# ---- making --------------------------------------------------------------------------------------


def _expand(text: str) -> list[str]:
    """All that `text` stands for, escapes left in. It has been measured."""
    urls = [""]
    for piece, braced in _pieces(text):
        tails = _choices(piece) if braced else [piece]
        urls = [head + tail for head in urls for tail in tails]
    return urls


def _choices(inside: str) -> list[str]:
    """What braces with `inside` between them stand for."""
    integers, letters = _INTEGERS.fullmatch(inside), _CHARACTERS.fullmatch(inside)
    if integers:
        return _integers(*integers.groups())
    if letters:
        return _letters(*letters.groups())
    parts = _split(inside)
    # At each level, as braceexpand does.
    urls = [url for part in parts for url in _remove_escapes(_expand(part))]
    # Neither a list nor a range: the braces are meant as they stand.
    return [f"{{{url}}}" for url in urls] if len(parts) == 1 else urls


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
    padded = any(n.lstrip("-").startswith("0") and n not in ("0", "-0") for n in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}d}" for number in _range(first, last, step)]


def _range(first: str, last: str, step: str | None) -> range:
    if max(map(len, (first, last, step or ""))) > _MOST_DIGITS:
        raise ValueError(f"a number in it has more than {_MOST_DIGITS} digits")
    stride = int(step or 1) or 1
    low, high = int(first), int(last)
    return range(low, high + 1, stride) if low < high else range(low, high - 1, -stride)


def _letters(first: str, last: str, step: str | None) -> list[str]:
    if len(step or "") > _MOST_DIGITS:
        raise ValueError(f"a number in it has more than {_MOST_DIGITS} digits")
    stride = int(step or 1) or 1
    low, high = _LETTERS.index(first), _LETTERS.index(last)
    if low < high:
        return list(_LETTERS[low : high + 1 : stride])
    return list(_LETTERS[low : (high or -len(_LETTERS)) - 1 : -stride])
