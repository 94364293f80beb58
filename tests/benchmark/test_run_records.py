import json
import logging

import pytest
from support.paths import SUPPORT

import moco_d2
from moco_d2.benchmark.records.run_records import read_content, read_records
from moco_d2.errors import UserError
from moco_d2.records.run_schema import SCHEMA_VERSION


def test_fields(make_content, write):
    record = make_content()
    record["metrics"]["bbox"]["AP75"] = None
    (read,) = read_records([write(record).parent])
    assert (read.task, read.initialization, read.seed) == ("voc_C4", "moco", 1)
    assert read.images == 24000 * 16
    assert read.datasets_test == ("voc_2007_test",)
    assert read.metrics["bbox/AP50"] == record["metrics"]["bbox"]["AP50"]
    assert read.metrics["bbox/AP75"] is None
    assert read.has_provenance and read.expected == read.loaded == 265


def version_2(content: dict) -> dict:
    return {
        **content,
        "schema_version": 2,
        "origin": {"how": "imported", "source": "elsewhere/run"},
        "cost": {"seconds_per_iteration": 0.4, "peak_memory_gib": 5.5, "evaluation_seconds": None},
        "errors": {"voc_2007_test": dict.fromkeys(("AP50", *"ABC"), 1.0)},
    }


def test_a_version_1_record_as_it_was_written_still_reads():
    """Of a run of two iterations with moco_d2 0.1.0 as it was before version 2."""
    file = SUPPORT / "record_v1.json"
    (record,) = read_records([file])
    assert json.loads(file.read_text())["schema_version"] == 1
    assert (record.task, record.initialization, record.seed) == ("voc_C4", "random", 1)
    assert record.metrics["bbox/AP50"] == pytest.approx(0.603, abs=1e-3)
    assert record.environment["moco_d2"] == "0.1.0"
    assert record.origin == {"how": "trained", "source": None}
    assert set(record.cost.values()) == {None} and record.errors is None
    content = read_content(file)
    assert content["schema_version"] == SCHEMA_VERSION


def test_what_version_2_adds(make_content, write):
    content = version_2(make_content())
    content["errors"] = {
        "voc_2007_test": dict.fromkeys(("AP50", "Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), 1.5)
    }
    (record,) = read_records([write(content)])
    assert record.origin == {"how": "imported", "source": "elsewhere/run"}
    assert record.cost["peak_memory_gib"] == 5.5
    assert record.errors["voc_2007_test"]["Loc"] == 1.5


def test_what_a_version_1_record_says_of_version_2_does_not_count(make_content, write):
    (record,) = read_records([write({**make_content(), "errors": "none", "origin": 7})])
    assert record.errors is None and record.origin["how"] == "trained"


@pytest.mark.parametrize("environment", [{"moco_d2": "7.5"}, {"moco_d2": 3}, None])
def test_a_future_version_says_what_reads_it(make_content, write, caplog, environment):
    write(make_content())
    write({"kind": "transfer", "schema_version": 9, "environment": environment, "new": []})
    assert len(read_records([write.folder])) == 1
    (message,) = caplog.messages
    wrote = " 7.5" if environment == {"moco_d2": "7.5"} else ""
    assert f"version 9, but moco_d2 {moco_d2.__version__} reads versions 1 to 2; " in message
    assert f"read it with the moco_d2{wrote} that wrote it" in message


def test_found_at_any_depth_and_once(make_content, write):
    file = write(make_content())
    assert len(read_records([write.folder, file, file.parent])) == 1


def _without(record, *keys):
    for key in keys[:-1]:
        record = record[key]
    del record[keys[-1]]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda r: _without(r, "metrics"), '$: the field "metrics" is missing'),
        (lambda r: _without(r, "run", "seed"), '$.run: the field "seed" is missing'),
        (lambda r: r.update(schema_version="2"), "positive integer, got '2'"),
        (lambda r: r.update(schema_version=3), "version 3"),
        (lambda r: r["metrics"]["bbox"].update(AP="55.9"), "$.metrics.bbox.AP"),
        (lambda r: r["run"].update(finished="yesterday"), "yesterday"),
        (lambda r: r["config"].update(matched_sha256="abc"), "$.config.matched_sha256"),
        (lambda r: r["weights"].update(sha256="C" * 64), "$.weights"),
        (
            lambda r: r["history"].append({"bbox/AP": 1.0}),
            '$.history[0]: the integer field "iteration" is missing',
        ),
        (lambda r: r["history"].append({"iteration": 1, "bbox/AP": [1]}), "$.history[0]"),
        (lambda r: r.update(version_2(r)), "$.errors.voc_2007_test"),
        (lambda r: r.update({**version_2(r), "origin": None}), "$.origin"),
        (lambda r: r.update({**version_2(r), "errors": None, "cost": {}}), "$.cost"),
        (lambda r: r["metrics"]["bbox"].update(AP=float("nan")), "NaN is not JSON"),
        (
            lambda r: r["metrics"]["bbox"].update(AP=100.5),
            "$.metrics.bbox.AP: Expected `float` <= 100.0, got 100.5",
        ),
        (lambda r: r["metrics"]["bbox"].update(AP=-1), "$.metrics.bbox.AP: Expected `float` >= 0"),
        (
            lambda r: r["history"].extend(({"iteration": 1}, {"iteration": 2, "bbox/AP": 101})),
            "$.history[1].bbox/AP: Expected `float` <= 100.0, got 101",
        ),
        (lambda r: r["history"].append({"iteration": 1.5}), "$.history[0]"),
        (lambda r: r["config"]["resolved"].pop("DATASETS"), "$.config.resolved.DATASETS.TRAIN"),
        (
            lambda r: r.update(environment={**dict.fromkeys(map(str, range(5000)), ""), "4711": 3}),
            "$.environment.4711: Expected `str`, got `int`",
        ),
    ],
)
def test_invalid_record_is_named_and_left_out(make_content, write, caplog, damage, said):
    good, bad = make_content(), make_content(seed=2)
    damage(bad)
    write(good)
    file = write(bad)
    with caplog.at_level(logging.WARNING):
        records = read_records([write.folder])
    assert [r.seed for r in records] == [1]
    (message,) = caplog.messages
    assert str(file) in message and said in message
    assert message.endswith("; make it again or remove the file")


def test_truncated_and_binary_records_are_named(make_content, write, caplog):
    write(make_content())
    truncated, binary = write(make_content()), write(make_content())
    truncated.write_text(json.dumps(make_content())[:-100])
    binary.write_bytes(b"\x80\xff\x00")
    assert len(read_records([write.folder])) == 1
    assert all(str(f) in m for f, m in zip((truncated, binary), caplog.messages, strict=True))
    assert all("damaged" in m for m in caplog.messages)


def test_other_kinds_are_passed_over(make_content, write, caplog):
    write(make_content())
    write({"kind": "pretrain"})
    assert len(read_records([write.folder])) == 1
    assert not caplog.messages


def test_no_record_names_the_fix(tmp_path):
    with pytest.raises(UserError, match=r"tools/train_net\.py"):
        read_records([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        read_records([tmp_path / "nowhere"])


def test_times_with_and_without_zone_compare(make_content, write):
    for finished in ("2025-01-02T03:04:05Z", "2025-01-02T03:04:06", "2025-01-02T05:04:07+02:00"):
        write(make_content(finished=finished))
    times = [r.finished for r in read_records([write.folder])]
    assert times == sorted(times) and len(set(times)) == 3
