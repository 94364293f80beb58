"""Whatever a stranger's file holds is bounded before anything goes through it."""

import collections

import pytest

from moco_d2.records.plain_values import Limits, check_values

LIMITS = Limits(values=20, levels=4, key=5, text=10, all_text=25)


def aliases(depth: int) -> list:
    """Some 9 ** depth values in `depth` lists."""
    value: list = [1] * 9
    for _ in range(depth - 1):
        value = [value] * 9
    return value


@pytest.mark.parametrize(
    "content",
    [
        None,
        {"a": [1, 2.5, None, True, "a\tb\nc"]},
        {"a": {"b": {"c": 1}}},  # four levels
        {1: "a", None: "b"},  # yaml has such keys
        [0] * 20,
        {"a": "x" * 10, "b": "y" * 10},
        object(),  # not judged here
        "\u00e9\u202f",
        "\u0645\u06cc\u200c\u062e",  # Persian needs the joiner
    ],
)
def test_what_is_within_the_limits(content):
    check_values(content, LIMITS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([0] * 21, "more than 20 values"),
        ({"a": [0] * 10, "b": ([0] * 5, [0] * 5)}, "more than 20 values"),
        (aliases(3), "more than 20 values"),
        ({"a": {"b": {"c": {"d": 1}}}}, "deeper than 4 levels"),
        ([[[[]]], [[[[]]]]], "deeper than 4 levels"),
        ({"abcdef": 1}, "abcdef... is too long"),
        ({123456: 1}, "123456... is too long"),
        (["x" * 11], "is too long"),
        (["x" * 9] * 3, "more than 25 characters"),
        ({"a\x1b": 1}, r"control character in a\?"),
        (["\x1b]0;"], r"control character in \?]0;"),
        (["\x9b"], "control character"),
        (["\ud800"], "half a surrogate pair"),
        (["a\u202eb"], r"U\+202E RIGHT-TO-LEFT OVERRIDE in a\?b"),
        (["\n\u200b"], r"U\+200B ZERO WIDTH SPACE"),
        ({"a\u200d": 1}, r"U\+200D ZERO WIDTH JOINER"),
        (collections.OrderedDict(a="\x00"), "control character"),
        (collections.namedtuple("Pair", "a b")(1, "\x00"), "control character"),
    ],
)
def test_what_is_beyond_them(content, said):
    with pytest.raises(ValueError, match=said) as caught:
        check_values(content, LIMITS)
    assert str(caught.value).isprintable()


def test_aliases_cost_no_memory():
    """Nine to the tenth, 3 billion values."""
    with pytest.raises(ValueError, match="more than 1000000 values"):
        check_values(aliases(10), Limits(10**6, 32, 10, 10, 10))


def test_a_list_that_holds_itself():
    content: list = []
    content.append(content)
    with pytest.raises(ValueError, match="deeper than 4 levels"):
        check_values(content, LIMITS)
