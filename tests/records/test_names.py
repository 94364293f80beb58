"""Names that a reader would take for others do not reach a table."""

import pytest

from moco_d2.records.names import name_problem

CYRILLIC_A = "\u0430"


@pytest.mark.parametrize(
    "names",
    [
        ["dark", "light"],
        ["traffic light", "Traffic cone"],
        ["Co", "CO", "co"],  # chemistry: the file lists them
        ["\u03b2-cell", "5 \u03bcm", "m\u00b2", "m2"],  # Greek letters that look like no Latin ones
        ["\u043a\u043e\u0442", "\u0441\u043e\u0431\u0430\u043a\u0430"],  # Russian
        ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"],  # Persian, with a joiner
        ["\u72d7", "\u5e0c", "caf\u00e9"],
    ],
)
def test_names_of_every_language_are_kept(names):
    assert name_problem(names) == ""


@pytest.mark.parametrize(
    "names, problem",
    [
        (["a\u202eb"], r"'a\u202eb' has the invisible character U+202E RIGHT-TO-LEFT OVERRIDE"),
        (["\u200fdark"], "U+200F RIGHT-TO-LEFT MARK"),
        (["dark\u200b"], "U+200B ZERO WIDTH SPACE"),
        (["da\u200drk"], "U+200D ZERO WIDTH JOINER"),
        (["\ufeffdark"], "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        (["da\u00adrk"], "U+00AD SOFT HYPHEN"),
        (["dark\n"], "U+000A a control character"),
        (["dark\u3164"], "U+3164 HANGUL FILLER"),
        ([f"d{CYRILLIC_A}rk"], r"'d\u0430rk' has Latin letters beside Cyrillic or Greek"),
        (["cop", "\u0441\u043e\u0440"], r"'cop' and '\u0441\u043e\u0440' look alike"),
        (["caf\u00e9", "cafe\u0301"], r"'caf\xe9' and 'cafe\u0301' look alike"),
        (["dark", "dark "], "'dark' and 'dark ' look alike"),
    ],
)
def test_names_that_deceive_a_reader_are_refused(names, problem):
    found = name_problem(["other", *names])
    assert problem in found and found.isascii()


def test_case_alone_may_be_a_problem():
    assert "'Dark' and 'dark' differ only in case" in name_problem(
        ["Dark", "dark"], ignore_case=True
    )
