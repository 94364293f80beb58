"""Records that somebody else wrote, or something damaged: named and left out, or harmless."""

import copy
import json
import logging
import math
import os
import random
import time

import jsonschema
import msgspec
import pytest

from moco_d2.benchmark.records.matching import Matching
from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.rendering import FORMATS, render
from moco_d2.config.plain import matched_sha256
from moco_d2.errors import UserError
from moco_d2.records.parsing import parse
from moco_d2.records.run_schema import ERROR_TYPES, RunRecord, upgrade


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("run", "seed", 10**4000, "$.run.seed"),
        ("run", "seed", True, "$.run.seed"),
        ("run", "task", "x" * 10_000_000, "is too long"),
        ("run", "task", "x" * 1000, "$.run.task"),
        ("run", "task", "a\nb", "$.run.task"),
        ("run", "initialisation", "", "$.run.initialisation"),
        ("run", "finished", "0" * 1000, "$.run.finished"),
        ("run", "seconds", 10**300, "$.run.seconds"),
        ("config", "resolved", {"DATASETS": {"TRAIN": "abc", "TEST": []}}, "DATASETS.TRAIN"),
        ("config", "resolved", {"DATASETS": {"TRAIN": [], "TEST": []}, "A": nested(40)}, "deeper"),
        ("hardware", "name", "\x1b]0;title\x07", "control character in ?]0;title?"),
        ("hardware", "name", "\ud800", "half a surrogate pair"),
        ("environment", "k" * 1000, "", "too long"),
        ("environment", "torch", ["2.11.0"], "$.environment.torch"),
        ("hardware", "name", {}, "$.hardware.name"),
        ("schedule", "max_iter", 10**30, "$.schedule.max_iter"),
        ("schedule", "steps", [-1], "$.schedule.steps"),
        ("metrics", "bbox", {"AP": 10**400}, "$.metrics.bbox.AP"),
        ("metrics", "bbox", {"AP": True}, "$.metrics.bbox.AP"),
        ("metrics", "bbox", {"a\x00b": 1.0}, "control character"),
    ],
)
def test_a_value_that_none_has(make_content, write, caplog, section, key, value, said):
    write(make_content(seed=1))
    bad = make_content(seed=2)
    bad[section][key] = value
    file = write(bad)
    with caplog.at_level(logging.WARNING):
        assert [record.seed for record in read_records([write.folder])] == [1]
    (message,) = caplog.messages
    assert str(file) in message and said in message
    assert message.isprintable() and len(message) < 1000 + len(str(file))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged, not JSON"),
        ("[" * 100_000, "damaged, not JSON"),
        ("[]", "not a JSON object"),
        ('{"seconds": 1' + "0" * 5000 + "}", "damaged, not JSON"),
        ("\ufeff{}", "damaged, not JSON"),
        (b"\xff\xfe{\x00}\x00", "damaged, not JSON"),
        (b"\x1f\x8b\x08\x00", "damaged, not JSON"),
        ('{"a": Infinity}', "Infinity is not JSON"),
    ],
)
def test_a_file_that_is_no_record(make_content, write, caplog, content, said):
    write(make_content())
    file = write({})
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    assert len(read_records([write.folder])) == 1
    (message,) = caplog.messages
    assert str(file) in message and said in message


def test_a_number_that_overflows_is_refused_where_it_counts(make_content, write, caplog):
    write(make_content())
    file = write(make_content())
    file.write_text(file.read_text().replace("81.5", "1e999"))
    assert len(read_records([write.folder])) == 1
    assert "$.metrics.bbox.AP50" in caplog.text


def test_a_number_that_overflows_is_no_other_config(make_content, write):
    """JSON that msgspec writes has null for infinity: two configs must not become one."""
    files = []
    for value in ("1e999", "null"):
        content = make_content(initialization=f"moco_{value}")
        content["config"]["resolved"]["SOLVER"]["BASE_LR"] = "HERE"
        files.append(write(content))
        files[-1].write_text(files[-1].read_text().replace('"HERE"', value))
    a, b = read_records(files)
    assert a.config["SOLVER"]["BASE_LR"] == "1e999" and b.config["SOLVER"]["BASE_LR"] is None
    assert Matching([a, b]).fingerprint(a) != Matching([a, b]).fingerprint(b)


def test_equal_parts_of_configs_are_kept_once(make_content, write):
    contents = [make_content(seed=seed, base_lr=lr) for seed, lr in ((1, 1), (2, 1), (3, 1.0))]
    a, b, c = read_records([write(content) for content in contents])
    assert a.config["SOLVER"] is b.config["SOLVER"] and a.config["SEED"] != b.config["SEED"]
    # An integer is another config than the same number with a point.
    assert type(c.config["SOLVER"]["BASE_LR"]) is float
    fingerprint = Matching([a, b, c]).fingerprint
    assert fingerprint(a) == fingerprint(b) == matched_sha256(a.config) != fingerprint(c)


def test_what_is_no_file_is_not_waited_for(make_content, write, caplog):
    write(make_content())
    for name, make in {
        "loop": lambda path: path.symlink_to(path),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "folder": lambda path: path.mkdir(),
        "fifo": os.mkfifo,
    }.items():
        (write.folder / name).mkdir()
        make(write.folder / name / "record.json")
    (write.folder / "up").symlink_to("..")  # a folder that holds itself
    assert len(read_records([write.folder])) == 1
    assert len(caplog.messages) == 4
    assert all("not a regular file" in message for message in caplog.messages)


def test_a_link_to_a_record_is_the_same_record(make_content, write):
    file = write(make_content())
    (write.folder / "again").mkdir()
    (write.folder / "again" / "record.json").symlink_to(file)
    assert len(read_records([write.folder])) == 1


def test_a_huge_file_is_not_read(make_content, write, caplog):
    write(make_content())
    with write({}).open("wb") as f:
        f.truncate(1 << 40)  # a hole: it takes no room
    assert len(read_records([write.folder])) == 1
    assert "at most 64 MiB" in caplog.text


def test_any_byte_may_be_wrong(make_content, write, caplog):
    """A record with random damage is read whole or left out; nothing else happens."""
    generator = random.Random(0)
    good = json.dumps(make_content(seed=7)).encode()
    file = write(make_content())
    read = 0
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(generator.choice([1, 1, 1, 5])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        file.write_bytes(damaged[: generator.choice([None, None, len(damaged) // 2])])
        try:
            records = read_records([file])
        except UserError as error:
            assert "no valid record.json" in str(error) or "no record.json" in str(error)
        else:
            render(records)
            read += 1
    assert 0 < read < 200


@pytest.mark.parametrize("format", FORMATS)
def test_a_name_is_text_in_every_format(make_content, write, format):
    hostile = "<script>alert(1)</script>|`\\input{/etc/passwd}"
    content = make_content(initialization=hostile, task=hostile)
    content["hardware"]["name"] = hostile
    text = render(read_records([write(content)]), format)
    assert "alert" in text
    if format == "html":
        assert "<script" not in text
    if format == "latex":
        assert "\\input" not in text
    if format == "markdown":
        assert "| <script" not in text and "</script>|" not in text


def test_every_class_of_every_evaluation_costs_little(make_content, write):
    """20 evaluations of LVIS, boxes and masks, cost a few times what json needs to parse them."""
    content = make_content()
    names = [f"{group}/AP-{i}" for group in ("bbox", "segm") for i in range(1203)]
    content["history"] = [{"iteration": i, **dict.fromkeys(names, 12.345678)} for i in range(20)]
    file = write(content)
    started = time.process_time()
    json.loads(file.read_text())
    parsed = time.process_time()
    read_records([file])
    # 5 times when this was written, 50 times with jsonschema looking at each number.
    assert time.process_time() - parsed < 20 * (parsed - started)


PLAIN = (None, True, False, 0, -1, 1, 1.0, 0.5, 10**13, -(10**13), 10**30, math.inf, "", "x")
VALUES = (*PLAIN, [], [""], [1], {}, {"a": "b"}, {"a": 1})


def places(node, path=()):
    """Every place in a record, as a path of keys."""
    yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


def is_valid(content) -> bool:
    try:
        parse(content, RunRecord, "record")
    except ValueError:
        return False
    return True


def test_the_structs_judge_as_their_json_schema_does(make_content):
    """Whoever checks a record by the schema alone comes to the same end."""
    content = upgrade(make_content())
    content["history"] = [{"iteration": 1, "bbox/AP": 1.0}]
    content["environment"] = {"python": "3.12"}
    content["errors"] = {"test": dict.fromkeys(("AP50", *ERROR_TYPES), 1.0)}
    content["data"] = {"train_images": 5, "test_images": {"test": 1}}
    content["preflight"]["findings"] = [{"key": "SEED", "value": "-1", "message": "set it"}]
    theirs = jsonschema.Draft202012Validator(msgspec.json.schema(RunRecord))
    assert is_valid(content) and theirs.is_valid(content)
    valid = 0
    for path in places(content):
        for value in VALUES:
            changed = copy.deepcopy(content)
            node = changed
            for key in path[:-1]:
                node = node[key]
            if path:
                node[path[-1]] = value
            else:
                changed = value
            expected = theirs.is_valid(changed)
            if type(value) is float and value == 1 and not is_valid(changed):
                continue  # for JSON schema it is an integer
            assert is_valid(changed) == expected, (path, value)
            valid += expected
    assert valid > 100
