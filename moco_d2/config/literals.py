"""Reads text that is a Python literal, as yacs does, within limits.

The values of configs come from such text: on the command line, in yaml files and in suites.
"""

import ast
from typing import Any

DEEPEST = 50
LONGEST = 10_000  # characters of a value; Linux has paths of up to 4096
_MOST_BITS = 63  # of an integer, as in torch and numpy


def decode(value: Any) -> Any:
    """Evaluate text that is a Python literal, as yacs does, and return other values unchanged.

    Raises:
        ValueError: If the text is too long, nests too deep for Python, or evaluates to a value that
            no config key holds.
    """
    if not isinstance(value, str):
        return value
    if len(value) > LONGEST:
        raise ValueError(f"{value[:40]!r}... has more than {LONGEST} characters")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    except (RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"{value[:40]!r} cannot be evaluated; write a plain value") from error
    check_value(literal)
    return literal


def check_value(value: Any, deep: int = 0) -> None:
    """Check that a value is text, a number, a truth value, or a list of these.

    Raises:
        ValueError: If it is another value, or an integer in it has more than 64 bits.
    """
    if isinstance(value, list | tuple):
        if deep > DEEPEST:
            raise ValueError(f"a value nests deeper than {DEEPEST} levels")
        for part in value:
            check_value(part, deep + 1)
    elif type(value) is int and value.bit_length() > _MOST_BITS:
        raise ValueError(f"{hex(value)[:20]}... has more than 64 bits")
    elif not (value is None or type(value) in (str, int, float, bool)):
        raise ValueError(f"{str(value)[:40]!r} is no text, number, truth value or list of these")
