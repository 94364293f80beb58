"""Patterns of shards: the strings of webdataset, counted before they are made."""

import random
import tracemalloc

import pytest
from webdataset.shardlists import expand_urls

from moco_d2.config.shard_patterns import MOST_SHARDS, expand, first_command, is_local
from moco_d2.errors import UserError
from moco_d2.pretrain.data.shards import list_shards

PIECES = ["{", "}", ",", "..", "a", "b", "Z", "1", "03", "-2", "\\", "x", "/", "pipe", ":", "::"]


def test_the_strings_are_those_of_webdataset():
    rng = random.Random(0)
    compared = 0
    for _ in range(20_000):
        pattern = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 12)))
        try:
            expected = expand_urls(pattern)
        except ValueError:
            with pytest.raises(ValueError, match="unbalanced"):
                expand(pattern)
            continue
        assert expand(pattern) == expected, pattern
        compared += 1
    assert compared > 5_000


def test_variables_are_those_of_webdataset(monkeypatch):
    monkeypatch.setenv("WDS_A", "data/{0..2}${B}")
    monkeypatch.setenv("WDS_B", ".tar")
    pattern = "${A}::x.tar"
    assert (
        expand(pattern) == expand_urls(pattern) == [*(f"data/{i}.tar" for i in range(3)), "x.tar"]
    )
    monkeypatch.setenv("WDS_C", "${C}${C}")
    with pytest.raises(ValueError, match="it has more than 10000 characters"):
        expand("${C}" * 100)


def test_a_command_is_found_exactly_where_one_is():
    rng = random.Random(1)
    commands = 0
    for _ in range(20_000):
        pattern = "".join(rng.choice([*PIECES, ":", "p", "ipe:"]) for _ in range(rng.randrange(9)))
        try:
            urls = expand(pattern)
        except ValueError:
            continue
        expected = next((url for url in urls if not is_local(url)), None)
        assert first_command(pattern) == expected, pattern
        commands += expected is not None
    assert commands > 1_000


def test_all_that_a_pattern_may_name_is_expanded():
    assert len(expand("::".join(["{1..2000000}"] * 2))) == MOST_SHARDS
    with pytest.raises(ValueError, match="names more than 4000000 shards"):
        expand("::".join(["{1..2000000}"] * 2) + "::a")
    with pytest.raises(ValueError, match="names more than 4000000 shards"):
        first_command("::".join(["a:{1..2000000}"] * 3))


def test_a_million_shards_are_expanded():
    urls = expand("data/train-{0000000..0999999}.tar")
    assert (len(urls), urls[0], urls[-1]) == (
        *(1_000_000, "data/train-0000000.tar"),
        "data/train-0999999.tar",
    )


@pytest.mark.parametrize(
    "pattern",
    [
        *("{0..99999999999}", "{0..99999}{0..99999}", "{a..z}" * 10, "{,}" * 40),
        *(
            "{{0..999999},{0..999999},{0..999999},{0..999999},{0..999999}}",
            "{0..999999}" + "x" * 900,
        ),
        *("::".join(["{1..3000000}"] * 12), "::".join(["a:{1..3000000}"] * 2)),
        *("{," + "x" * 9000 + "}{1..300000}", "{1..300000}{," + "x" * 9000 + "}"),
        *("x{y{1..300000},{," + "x" * 9000 + "}{1..300000}}", "::".join(["{1..9}" * 6] * 8)),
        "{1..3000000}{" * 15 + "}" * 15,
        *("{a,b" * 3000 + "}" * 3000, "{0..1" + "0" * 5000 + "}", "x{" + "{a,b}" * 60 + "}"),
    ],
    ids=lambda pattern: pattern[:12],
)
def test_patterns_without_end_are_refused_before_they_are_expanded(pattern):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="cannot be expanded"):
            list_shards(pattern)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 30
