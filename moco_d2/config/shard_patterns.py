"""Expands a pattern with braces to names of shards, and tells which are files of this machine.

The result equals that of webdataset's expand_urls (``::`` between patterns, ``${X}`` for the
environment variable WDS_X, braces as in bash), but the names are counted before they are made.
"""

import os
import re
from collections.abc import Iterator

#: The prefix of such a pattern in DATASETS.TRAIN of a pretraining.
SHARDS_PREFIX = "shards:"

MOST_SHARDS = 4_000_000  # datasets with a million shards exist
_MOST_CHARACTERS = 400_000_000  # of all names together
_LONGEST = 10_000  # characters of a pattern
_DEEPEST = 20  # levels of nested braces
_MOST_DIGITS = 18
_SUBSTITUTIONS = 10  # levels of variables in variables, as in webdataset
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_INTEGERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\n?")
_CHARACTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?\n?")


def is_local(url: str) -> bool:
    """Return whether a shard is opened as a file.

    webdataset opens names with a scheme, and runs programs for most of them: ``pipe:``, ``http:``,
    ``s3:``, ``gs:``.
    """
    return not re.match(r"\w+:", url)


def expand(pattern: str) -> list[str]:
    """Return the names of the shards in `pattern`.

    Raises:
        ValueError: If braces are unbalanced, an environment variable is not set, there is a zero
            byte, or there are more than 4 million shards.
    """
    return [url for text in _parts(pattern) for url in _expand_wholly(text)]


def first_command(pattern: str) -> str | None:
    """Return the first shard of `pattern` that is no file of this machine, or None.

    Raises:
        ValueError: If `expand` raises it.
    """
    # Expanding adds letters and digits but no colon, so a part without a colon is not expanded.
    for text in _parts(pattern):
        if ":" in text:
            for url in _expand_wholly(text):
                if not is_local(url):
                    return url
    return None


def _parts(pattern: str) -> list[str]:
    """Return the patterns between ``::`` with variables replaced.

    Raises:
        ValueError: If they name too many shards together, or if `expand` raises it.
    """
    parts = [_substitute(part) for part in pattern.split("::")]
    if any("\0" in part for part in parts):
        raise ValueError("it has a zero byte")
    number = characters = 0
    for part in parts:
        more_shards, more_characters = _measure(part)
        number, characters = number + more_shards, characters + more_characters
        _check_size(number, characters)
    return parts


def _substitute(text: str) -> str:
    def lookup(match: re.Match[str]) -> str:
        name = f"WDS_{match[1]}"
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]

    for _ in range(_SUBSTITUTIONS):
        before, text = text, re.sub(r"\$\{(\w+)\}", lookup, text[: _LONGEST + 1])
        if text == before:
            break
    if len(text) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} characters")
    return text


def _expand_wholly(text: str) -> list[str]:
    urls = _expand(text)
    return _remove_escapes(urls) if "\\" in text else urls


def _remove_escapes(urls: list[str]) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", url) for url in urls]


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Cut `text` at its outer braces. Yield each piece, and whether it was between braces.

    Raises:
        ValueError: If the braces are not balanced.
    """
    start, depth, position = 0, 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        if text[position] == "{":
            if depth == 0:
                yield text[start:position], False
                start = position
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                yield text[start + 1 : position], True
                start = position + 1
        position += 1
    if depth != 0:
        raise ValueError(f"unbalanced braces in {text[:100]!r}")
    yield text[start:], False


# ---- counting ------------------------------------------------------------------------------------


def _measure(text: str, deep: int = 0) -> tuple[int, int]:
    """Return the number of shards in `text`, and an upper bound of all their characters.

    Intermediate results of the expansion are no larger, since each brace gives at least one text.

    Raises:
        ValueError: If there are too many, or the braces nest too deep or are not balanced.
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
    """Return all expansions of `text` with its escapes. The caller has measured the text."""
    urls = [""]
    for piece, braced in _pieces(text):
        if piece or braced:
            tails = _choices(piece) if braced else [piece]
            urls = tails if urls == [""] else [head + tail for head in urls for tail in tails]
    return urls


def _choices(inside: str) -> list[str]:
    """Return the texts that braces with the content `inside` expand to."""
    integers, letters = _INTEGERS.fullmatch(inside), _CHARACTERS.fullmatch(inside)
    if integers:
        return _integers(*integers.groups())
    if letters:
        return _letters(*letters.groups())
    parts = _split(inside)
    # Escapes are removed at each level, as in braceexpand.
    urls = [url for part in parts for url in _expand_wholly(part)]
    # Braces around neither a list nor a range are kept.
    return [f"{{{url}}}" for url in urls] if len(parts) == 1 else urls


def _split(inside: str) -> list[str]:
    """Split at the commas outside of inner braces."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(inside):
        if inside[position] == "\\":
            position += 2
            continue
        if inside[position] == "{":
            depth += 1
        elif inside[position] == "}":
            depth -= 1
        elif inside[position] == "," and depth == 0:
            parts.append(inside[start:position])
            start = position + 1
        position += 1
    return [*parts, inside[start:]]


def _integers(first: str, last: str, step: str | None) -> list[str]:
    padded = any(n.lstrip("-").startswith("0") and n not in ("0", "-0") for n in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [str(number).zfill(width) for number in _range(first, last, step)]


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
