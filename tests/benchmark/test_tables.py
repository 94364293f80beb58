import cProfile
import csv
import dataclasses
import datetime
import html
import io
import itertools
import math
import re

import pytest
from support.run_records import write_table_2b

from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.rendering import FORMATS, render, render_paper
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.benchmark.tables.from_paper import published_tables
from moco_d2.errors import UserError


def cells(table):
    return {row.label: {c.metric: c for c in row.cells} for row in table.rows}


def table_of(folder):
    (table,) = measured_tables(read_records([folder]))
    return table


def test_papers_own_values_with_known_noise(table_2b):
    table = table_of(table_2b)
    assert [row.label for row in table.rows] == ["random", "supervised", "moco"]
    assert table.columns == ("AP50", "AP", "AP75")
    assert [mark for mark, _ in table.footnotes] == ["msra_baseline"]
    cell = cells(table)["moco"]["bbox/AP"]
    assert (cell.mean, cell.n) == (pytest.approx(55.9), 5)
    assert cell.std == pytest.approx(0.1 * 2.5**0.5)
    assert cell.difference == pytest.approx(2.4)
    assert cell.comparison.supported and cell.highlighted
    assert (cell.published, cell.gap, cell.within) == (55.9, pytest.approx(0, abs=1e-9), True)
    ap50 = cells(table)["moco"]["bbox/AP50"]  # +0.2 ± 0.3
    assert not ap50.comparison.supported and not ap50.highlighted
    assert cells(table)["supervised"]["bbox/AP"].difference is None


def test_order_is_claimed_only_where_the_tests_support_it(table_2b):
    notes = table_of(table_2b).notes
    (claim,) = (note for note in notes if note.startswith("Orders"))
    assert claim == (
        "Orders that the tests support (corrected p < 0.05, 3 comparison(s) in AP): random below "
        "supervised in AP; moco above random in AP; moco above supervised in AP; of the other "
        "differences no order is claimed."
    )
    assert len(notes) == 3


def test_at_most_four_sentences_however_much_there_is_to_say(make_content, write):
    """Other seeds, other weights, another config, a metric that is missing, several machines."""
    for name, seeds in (("random", (1,)), ("supervised", (1, 2, 3)), ("moco", (1, 2, 3))):
        for seed in seeds:
            record = make_content(initialization=name, seed=seed)
            record["metrics"]["bbox"]["AP"] += seed * len(name)
            record["environment"]["torch"] = str(seed)
            if name == "moco":
                record["weights"]["sha256"] = str(seed) * 64
                record["metrics"]["bbox"]["AP50"] = None
            write(record)
            write({**record, "run": {**record["run"], "finished": "2025-02-02T03:04:05+00:00"}})
    for seed in (4, 5, 6):
        record = make_content(initialization="byol", seed=seed, max_iter=10, base_lr=seed / 10)
        record["metrics"]["bbox"]["AP"] += seed**2
        write(record)
    notes = table_of(write.folder).notes
    assert len(notes) == 4
    for said in ("Welch's t-test", "no spread to test against", "lack a metric", "weights files",
                 "the seeds differ", "torch (", "and 4 more"):  # fmt: skip
        assert said in str(notes), said


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (
            {"random": (1, 2, 3), "supervised": (1, 2, 3), "moco": (1, 3)},
            "The runs: the seeds differ (moco lacks seed 2), so a difference is over the seeds "
            "that both rows have.",
        ),
        (
            {"random": (1, 2), "supervised": (1, 2), "moco": range(1, 8)},
            "The runs: the seeds differ (random, supervised lack seeds 3, 4, 5, and 2 more), so "
            "a difference is over the seeds that both rows have.",
        ),
        (
            {"supervised": (1, 2), "moco": (3, 4)},
            "The runs: the seeds differ (supervised lacks seeds 3, 4; moco lacks seeds 1, 2), so a "
            "difference is over the seeds that both rows have, and over all their runs if they "
            "have none in common, or if their configs or processes differ.",
        ),
    ],
)
def test_the_note_names_the_seeds_that_rows_lack(make_content, write, seeds, said):
    for name, of_row in seeds.items():
        for seed in of_row:
            metrics = {"bbox": {"AP": seed**2 + len(name) * (1 + seed % 2)}}
            write(make_content(initialization=name, seed=seed, metrics=metrics))
    table = table_of(write.folder)
    assert said in table.notes
    (pairs,) = {pair.comparisons[0].test for pair in table.pairs}
    assert (pairs == "Welch") == ("over all their runs" in said)


@pytest.mark.parametrize("baseline", ["supervised", "byol"])
def test_the_note_says_that_p_is_corrected_and_the_bracket_is_not(make_content, write, baseline):
    for name in (baseline, "moco"):
        for seed in (1, 2, 3):
            metrics = {"bbox": {"AP": seed**2 + len(name) * seed}}
            write(make_content(initialization=name, seed=seed, metrics=metrics))
    notes = table_of(write.folder).notes
    assert sum("not corrected; p: corrected, and only where" in note for note in notes) == 1


def test_single_runs_support_no_order(make_content, write):
    for initialization, ap in (("supervised", 10.0), ("moco", 90.0)):
        write(make_content(initialization=initialization, metrics={"bbox": {"AP": ap}}))
    table = table_of(write.folder)
    assert not table.rows[1].cells[0].highlighted
    assert any(
        "none; no spread to test against for moco and supervised in AP" in note
        for note in table.notes
    )
    assert not any(" above " in note for note in table.notes)
    assert "| difference |" not in render(read_records([write.folder]))


def test_two_seeds_support_no_order_however_small_p_is(make_content, write):
    for initialization, values in (("supervised", (10.0, 11.0)), ("moco", (90.0, 91.001))):
        for seed, ap in enumerate(values):
            metrics = {"bbox": {"AP": ap}}
            write(make_content(initialization=initialization, seed=seed, metrics=metrics))
    table = table_of(write.folder)
    (comparison,) = table.pairs[0].comparisons
    assert comparison.p_holm < 1e-4 and not comparison.supported
    assert "none; no order is claimed with fewer than 3 seeds on both sides" in str(table.notes)


def test_a_supported_difference_below_half_a_point_is_not_bold(make_content, write):
    """And -0.04 is 0.0, not -0.0."""
    for initialization, ap50, ap in (("supervised", 80.0, 50.0), ("moco", 79.96, 50.4)):
        for seed in range(5):
            noise = {"supervised": 0.01, "moco": 0.012}[initialization] * seed
            metrics = {"bbox": {"AP50": ap50 + noise, "AP": ap + noise}}
            write(make_content(initialization=initialization, seed=seed, metrics=metrics))
    cell = table_of(write.folder).rows[1].cells[1]
    assert cell.comparison.supported and not cell.highlighted
    text = render(read_records([write.folder]))
    assert "| moco | 80.0 ± 0.0 (n=5) (0.0) | 50.4 ± 0.0 (n=5) (+0.4) |" in text
    assert "-0.0" not in text


def test_seeds_from_the_clock_are_no_pairs(make_content, write):
    for initialization in ("supervised", "moco"):
        for hour in range(3):
            record = make_content(
                initialization=initialization, seed=-1, finished=f"2025-01-02T0{hour}:00:00+00:00"
            )
            record["metrics"]["bbox"]["AP"] += hour * len(initialization)
            write(record)
    (pair,) = table_of(write.folder).pairs
    assert pair.comparisons[1].test == "Welch"


def test_seeds_that_differ_are_no_pairs(make_content, write):
    for initialization, first in (("supervised", 1), ("moco", 1), ("moco_v2", 4)):
        for seed in range(3):
            record = make_content(initialization=initialization, seed=first + seed)
            record["metrics"]["bbox"]["AP"] += seed * len(initialization)
            write(record)
    table = table_of(write.folder)
    tests = {(p.label, p.against): p.comparisons[1].test for p in table.pairs}
    assert tests == {
        ("moco", "supervised"): "blocked",
        ("moco_v2", "supervised"): "Welch",
        ("moco_v2", "moco"): "Welch",
    }
    assert any(
        "Welch's t-test where seeds, configs or processes differ (moco_v2 and" in n
        for n in table.notes
    )


def test_configs_that_differ_are_no_pairs(make_content, write):
    for initialization, lr in (("supervised", 0.02), ("moco", 0.01)):
        for seed in range(3):
            record = make_content(initialization=initialization, seed=seed, base_lr=lr)
            record["metrics"]["bbox"]["AP"] += seed * lr
            write(record)
    (pair,) = table_of(write.folder).pairs
    assert pair.comparisons[1].test == "Welch"


def test_another_number_of_processes_is_no_pair(make_content, write):
    """It sees the images in another order."""
    for initialization, processes in (("supervised", 8), ("moco", 1)):
        for seed in range(3):
            record = make_content(initialization=initialization, seed=seed)
            record["schedule"]["world_size"] = processes
            record["metrics"]["bbox"]["AP"] += seed * processes
            write(record)
    (pair,) = table_of(write.folder).pairs
    assert pair.comparisons[1].test == "Welch"


def test_another_number_of_images_is_a_mismatch(make_content, write):
    for initialization, images in (("supervised", 16551), ("moco", 16000), ("moco_v2", None)):
        record = make_content(initialization=initialization)
        record["data"] = {"train_images": images, "test_images": {"voc_2007_test": 4952}}
        write(record)
    table = table_of(write.folder)
    assert [row.marks for row in table.rows] == [(), ("mismatched",), ()]
    assert dict(table.footnotes)["mismatched"].endswith("in the number of images")


def test_many_initializations_are_compared_with_the_baseline_only(make_content, write):
    for initialization in ("supervised", *(f"other{i}" for i in range(8))):
        write(make_content(initialization=initialization))
    assert {pair.against for pair in table_of(write.folder).pairs} == {"supervised"}
    assert len(table_of(write.folder).pairs) == 8


@pytest.mark.parametrize(
    "other",
    [{"max_iter": 12000}, {"data": {"train": ["voc_2007_trainval"], "test": ["voc_2007_test"]}}],
)
def test_no_paper_values_beside_another_setting(make_content, write, other):
    write(make_content(**other))
    table = table_of(write.folder)
    assert table.rows[0].paper is None and table.rows[0].cells[0].published is None
    assert any("whose data or schedule is not the paper's" in note for note in table.notes)


def test_weights_of_torchvision_have_no_verdict_beside_those_of_msra(make_content, write):
    """A right run of torchvision's weights would look outside the band."""
    for name in ("supervised", "supervised_msra"):
        for seed, ap in enumerate((54.4, 54.5, 54.6)):
            metrics = {"bbox": {"AP": ap + 1e-6 * len(name)}}
            write(make_content(initialization=name, seed=seed, metrics=metrics))
    torchvision, msra = table_of(write.folder).rows
    assert (torchvision.paper_marks, msra.paper_marks) == (("msra_baseline",), ())
    assert [row.cells[0].published for row in (torchvision, msra)] == [53.5, 53.5]
    assert [row.cells[0].within for row in (torchvision, msra)] == [None, False]
    records = read_records([write.folder])
    for format in FORMATS:
        text = render(records, format)
        assert ("msra_baseline" if format == "csv" else "starts from MSRA's weights") in (
            html.unescape(text)
        ), format
        assert format == "csv" or "outside" in text, format


def test_a_row_with_a_learning_rate_of_its_own_gives_no_verdict(make_content, write):
    for name in ("Barlow-Twins", "moco"):
        for seed, ap in enumerate((54.4, 54.5, 54.6)):
            metrics = {"bbox": {"AP": ap + 1e-6 * len(name)}}
            write(make_content(initialization=name, seed=seed, metrics=metrics))
    table = table_of(write.folder)
    cells = {row.label: (row.cells[0].published, row.cells[0].within) for row in table.rows}
    assert cells == {"Barlow-Twins": (56.8, None), "moco": (55.9, False)}
    assert [row.paper_marks for row in table.rows if row.label != "moco"] == [("own_rate",)]
    assert any("a learning rate of its own" in text for _, text in table.footnotes)


@pytest.mark.parametrize(("rate", "within"), [(0.02, False), (0.04, None)])
def test_a_run_with_another_rate_than_the_papers_gets_no_verdict(make_content, write, rate, within):
    for seed, ap in enumerate((54.4, 54.5, 54.6)):
        metrics = {"bbox": {"AP": ap}}
        write(make_content(initialization="moco", seed=seed, metrics=metrics, base_lr=rate))
    (row,) = table_of(write.folder).rows
    assert (row.cells[0].published, row.cells[0].within) == (55.9, within)
    assert row.paper_marks == (() if within is False else ("own_rate",))


def test_a_row_that_is_found_by_another_spelling_has_the_same_marks(make_content, write):
    write(make_content(initialization="Supervised"))
    (row,) = table_of(write.folder).rows
    assert (row.cells[0].published, row.paper_marks) == (81.3, ("msra_baseline",))


def test_small_batches_of_batchnorm_explain_a_gap(make_content, write):
    """One GPU with 2 images a pass: BatchNorm saw 2 of the paper's 16."""
    for name, images in (("random", None), ("moco", 2), ("moco_v2", 16)):
        record = make_content(initialization=name)
        record["schedule"]["batchnorm_images"] = images
        write(record)
    table = table_of(write.folder)
    marks = {row.label: row.paper_marks for row in table.rows}
    assert marks == {"random": (), "moco": ("small_batchnorm",), "moco_v2": ()}
    assert [row.cells[0].within is None for row in table.rows] == [False, True, False]
    ((_, footnote),) = table.footnotes
    assert "fewer images than a step of the paper" in footnote
    assert footnote.endswith("; images: moco 2, moco_v2 16")


def test_task_without_published_table(make_content, write):
    write(make_content(task="demo", data={"train": ["shapes_train"], "test": ["shapes_val"]}))
    assert any("the paper has no rows" in note for note in table_of(write.folder).notes)


def test_mismatched_run_is_marked_with_the_keys_that_differ(make_content, write):
    write(make_content(initialization="supervised"))
    write(make_content(initialization="moco", base_lr=0.01))
    table = table_of(write.folder)
    assert [row.marks for row in table.rows] == [(), ("mismatched",)]
    text = dict(table.footnotes)["mismatched"]
    assert "differs from supervised in SOLVER.BASE_LR" in text and "WEIGHTS" not in text
    assert "81.5† (n=1)" in render(read_records([write.folder]))


def test_a_run_that_was_resumed_with_other_settings_is_marked_and_matches_only_its_like(
    make_content, write
):
    change = {"iteration": 7, "key": "SOLVER.MAX_ITER", "before": "7", "after": "24000"}
    write(make_content(initialization="supervised"))
    for seed in (1, 2):
        record = make_content(initialization="moco", seed=seed)
        write(record | {"changes": [change] if seed == 2 else []})
    table = table_of(write.folder)
    assert [row.marks for row in table.rows] == [(), ("mismatched", "resumed")]
    differs, resumed = (dict(table.footnotes)[mark] for mark in ("mismatched", "resumed"))
    assert "differs from supervised in settings that changed at a resume" in differs
    assert resumed.endswith("settings: SOLVER.MAX_ITER 7 -> 24000 after 7 iterations")


def test_a_run_without_weights_under_the_name_of_weights_is_marked(make_content, write):
    record = make_content(initialization="moco")
    record["weights"], record["coverage"] = None, {"expected": 265, "loaded": 0}
    write(record)
    table = table_of(write.folder)
    assert table.rows[0].marks[0] == "weights"
    assert dict(table.footnotes)["weights"] == "moco started from random initialization"


def test_runs_that_were_lengthened_alike_are_matched(make_content, write):
    change = {"iteration": 7, "key": "SOLVER.MAX_ITER", "before": "7", "after": "24000"}
    for name in ("supervised", "moco"):
        write(make_content(initialization=name) | {"changes": [change]})
    assert [row.marks for row in table_of(write.folder).rows] == [("resumed",)] * 2


def test_the_config_counts_and_not_the_fingerprint_beside_it(make_content, write):
    write(make_content(initialization="supervised"))
    record = make_content(initialization="moco")
    record["config"]["resolved"]["SOLVER"]["BASE_LR"] = 0.01  # its matched_sha256 is now stale
    write(record)
    table = table_of(write.folder)
    assert [row.marks for row in table.rows] == [(), ("mismatched", "altered")]
    assert "81.5†# (n=1)" in render(read_records([write.folder]))


def test_reservations_are_marked(make_content, write):
    names = ("a", "b", "c", "d", "e", "random")
    records = {name: make_content(initialization=name) for name in names}
    records["a"]["weights"]["provenance"] = None
    records["b"]["coverage"]["loaded"] = 264
    records["c"]["preflight"]["forced"] = True
    records["d"]["weights"] = None  # pretrained by name, but nothing says from what
    cost = dict.fromkeys(("seconds_per_iteration", "peak_memory_gib", "evaluation_seconds"))
    records["e"] |= {"schema_version": 2, "cost": cost, "errors": None}
    records["e"]["origin"] = {"how": "imported", "source": "elsewhere"}
    for record in records.values():
        write(record)
    table = table_of(write.folder)
    marks = {row.label: row.marks for row in table.rows}
    assert marks == {
        "random": (),
        "a": ("provenance",),
        "b": ("coverage",),
        "c": ("forced",),
        "d": ("provenance",),
        "e": ("imported",),
    }
    assert [mark for mark, _ in table.footnotes] == [
        *("provenance", "coverage", "forced", "imported"),
    ]
    records = read_records([write.folder])
    for format in FORMATS:
        text = render(records, format)
        assert "forced" in text and "imported" in text, format


def test_differences_are_to_what_the_paper_takes_them_to(make_content, write):
    """LVIS: to supervised weights with frozen BatchNorm; without those, to supervised."""
    data = {"train": ["lvis_v0.5_train"], "test": ["lvis_v0.5_val"]}
    task, metrics = "lvis_v0.5_FPN_2x", {"segm": {"AP": 24.0}}

    def add(initialization):
        record = {"task": task, "initialization": initialization, "metrics": metrics, "data": data}
        write(make_content(**record, max_iter=180000))

    add("supervised")
    add("moco")
    assert table_of(write.folder).baseline == "supervised"
    add("supervised_frozen_bn")
    assert table_of(write.folder).baseline == "supervised_frozen_bn"


@pytest.mark.parametrize("more", ["seeds", "tasks", "initializations", "configs", "repeats"])
def test_cost_grows_linearly(make_content, write, more):
    """Counted in calls of functions, which no other process disturbs."""
    write(make_content())
    (template,) = read_records([write.folder])

    def calls(n):
        counts = {**dict.fromkeys(("seeds", "tasks", "initializations"), 3), more: n}
        records = [
            dataclasses.replace(
                template,
                task=f"task{task}",
                initialization="supervised" if name == 0 else f"name{name}",
                seed=seed,
                finished=template.finished + datetime.timedelta(repeat),
                config={**template.config, "key": i * (more == "configs")},
                metrics={"bbox/AP": math.sin(i)},
            )
            for i, (task, name, seed, repeat) in enumerate(
                itertools.product(
                    range(counts["tasks"]),
                    range(counts["initializations"]),
                    range(counts["seeds"]),
                    range(counts.get("repeats", 1)),
                )
            )
            if more != "configs" or i < n
        ]
        profile = cProfile.Profile()
        profile.runcall(render, records)
        return len(records), sum(row.callcount for row in profile.getstats())

    calls(10)  # the YAML file is read once
    (small, before), (large, after) = calls(12), calls(24)
    # Only the newest of repeated records are compared.
    assert (1.1 if more == "repeats" else 1.3) < after / before < 1.1 * large / small


def test_what_else_was_not_the_same_is_said(make_content, write):
    for seed, torch in enumerate(("2.11.0", "2.13.0")):
        record = make_content(seed=seed)
        record["environment"]["torch"] = torch
        write(record)
    assert "The runs: not the same for all: torch (2.11.0, 2.13.0)." in table_of(write.folder).notes


def _footnote(folder):
    table = table_of(folder)
    return {row.label: row.marks for row in table.rows}, dict(table.footnotes)


def test_one_weights_file_under_two_names(make_content, write):
    moco = make_content(initialization="moco")
    supervised = make_content(initialization="supervised")
    supervised["weights"]["sha256"] = moco["weights"]["sha256"]
    write(make_content(initialization="random"))
    for record in (moco, supervised):
        write(record)
    marks, said = _footnote(write.folder)
    assert marks == {"random": (), "supervised": ("weights",), "moco": ("weights",)}
    assert said["weights"] == "moco and supervised started from the same weights file"


def test_one_weights_file_in_networks_that_differ_is_no_doubt(make_content, write):
    """Supervised weights with tuned and with frozen BatchNorm."""
    tuned, frozen = (make_content(initialization=f"supervised{x}") for x in ("", "_frozen_bn"))
    frozen["weights"]["sha256"] = tuned["weights"]["sha256"]
    frozen["config"]["resolved"]["MODEL"]["NORM"] = "FrozenBN"
    for record in (tuned, frozen):
        write(record)
    marks, _ = _footnote(write.folder)
    assert not any("weights" in found for found in marks.values())


@pytest.mark.parametrize(
    ("initialization", "pretext", "said"),
    [
        ("supervised", "moco", "supervised started from weights that were pretrained by moco"),
        ("moco_v2", "supervised", "moco_v2 started from weights that were pretrained by superv"),
        ("supervised", "supervised", None),
        ("moco_v2", "moco", None),
        ("memory_bank", "moco", None),
    ],
)
def test_weights_of_another_pretext_than_the_name(
    make_content, write, initialization, pretext, said
):
    record = make_content(initialization=initialization)
    record["weights"]["provenance"]["pretraining"] = {"pretext": pretext}
    write(record)
    marks, footnotes = _footnote(write.folder)
    assert marks[initialization] == (("weights",) if said else ())
    assert not said or footnotes["weights"].startswith(said)


def test_a_random_row_that_started_from_weights(make_content, write):
    record = make_content(initialization="random")
    record["weights"] = make_content()["weights"]
    write(record)
    marks, footnotes = _footnote(write.folder)
    assert marks["random"] == ("weights",)
    assert footnotes["weights"] == "random started from weights"


def test_results_that_are_there_twice_to_the_last_bit(make_content, write):
    """A folder that was copied, or a SEED that nothing has read."""
    first = make_content(initialization="supervised", seed=1)
    again = make_content(initialization="supervised", seed=2)
    again["metrics"] = first["metrics"]
    for record in (first, again, make_content(seed=1), make_content(seed=2)):
        write(record)
    marks, footnotes = _footnote(write.folder)
    assert marks == {"supervised": ("repeated",), "moco": ()}
    assert "the same numbers to the last bit" in footnotes["repeated"]


def test_runs_that_found_nothing_are_not_taken_for_one(make_content, write):
    for seed in (1, 2):
        write(make_content(seed=seed, metrics={"bbox": {"AP": 0.0, "AP50": 0.0, "AP75": None}}))
    assert table_of(write.folder).rows[0].marks == ()


def test_a_spreadsheet_takes_no_name_for_a_formula(make_content, write):
    for number, name in enumerate(("=1+1", "+1", "-1", "@SUM(A1)", "moco")):
        write(make_content(task="=2+2", initialization=name, seed=number))
    lines = list(csv.DictReader(io.StringIO(render(read_records([write.folder]), "csv"))))
    names = {line["initialization"] for line in lines}
    assert names == {"'=1+1", "'+1", "'-1", "'@SUM(A1)", "moco"}
    assert {line["task"] for line in lines} == {"'=2+2"}


def test_newest_of_duplicates_counts(make_content, write):
    for hour, ap in ((5, 50.0), (9, 56.0), (7, 52.0)):
        finished = f"2025-01-02T0{hour}:00:00+00:00"
        write(make_content(finished=finished, metrics={"bbox": {"AP": ap}}))
    table = table_of(write.folder)
    assert (table.rows[0].cells[0].mean, table.rows[0].cells[0].n) == (56.0, 1)
    assert sum(note.count("the newest") for note in table.notes) == 2


def test_runs_seeded_from_the_clock_are_different_runs(make_content, write):
    for hour in (5, 7):
        write(make_content(seed=-1, finished=f"2025-01-02T0{hour}:00:00+00:00"))
    assert table_of(write.folder).rows[0].cells[0].n == 2


def test_rows_in_paper_order_then_alphabetical(make_content, write):
    names = ["zebra", "moco", "moco_v2", "supervised_msra", "random", "supervised"]
    for name in names:
        write(make_content(initialization=name))
    assert [row.label for row in table_of(write.folder).rows] == [
        *("random", "supervised", "supervised_msra", "moco", "moco_v2", "zebra"),
    ]


def test_nan_counts_as_missing(make_content, write):
    write(make_content(seed=1, metrics={"bbox": {"AP": 55.0, "AP50": None}}))
    write(make_content(seed=2, metrics={"bbox": {"AP": None, "AP50": None}}))
    table = table_of(write.folder)
    assert cells(table)["moco"]["bbox/AP"].n == 1
    assert cells(table)["moco"]["bbox/AP50"].mean is None
    assert any("2 of 2 runs of moco lack a metric" in note for note in table.notes)
    assert "| – |" in render(read_records([write.folder]))


def test_coco_columns(make_content, write):
    metrics = {group: {"AP50": 2.0, "AP": 1.0, "AP75": 0.5} for group in ("segm", "bbox")}
    data = {"train": ["coco_2017_train"], "test": ["coco_2017_val"]}
    for initialization in ("random", "supervised"):
        write(
            make_content(
                task="coco_FPN_1x",
                initialization=initialization,
                metrics=metrics,
                data=data,
                max_iter=90000,
            )
        )
    table = table_of(write.folder)
    assert table.columns == ("APbb", "APbb50", "APbb75", "APmk", "APmk50", "APmk75")
    assert [c.published for c in table.rows[0].cells] == [31.0, 49.5, 33.2, 28.5, 46.8, 30.4]
    assert any("no spread to test against" in note for note in table.notes)


def test_csv_has_the_numbers(table_2b):
    lines = list(csv.DictReader(io.StringIO(render(read_records([table_2b]), "csv"))))
    assert len(lines) == 12 and sum(bool(line["mean"]) for line in lines) == 9
    line, other = (x for x in lines if x["initialization"] == "moco" and x["metric"] == "bbox/AP75")
    assert float(line["difference"]) == pytest.approx(3.8)
    assert (line["against"], other["against"]) == ("supervised", "random")
    assert float(other["difference"]) == pytest.approx(62.6 - 33.1)
    assert (line["test"], line["supported"]) == ("blocked", "")  # AP75 claims no order
    ap = next(x for x in lines if x["initialization"] == "moco" and x["metric"] == "bbox/AP")
    assert (ap["supported"], ap["p_flip"]) == ("True", "0.0625")
    assert (line["published"], line["within"], line["n"]) == ("62.6", "True", "5")


def test_markdown_cells(table_2b):
    text = render(read_records([table_2b]), "markdown")
    assert "| moco | 81.5 ± 0.2 (n=5) (+0.2) | 55.9 ± 0.2 (n=5) **(+2.4)** |" in text
    assert "| paper: MoCo IN-1M | 81.5, gap 0.0 (within ±0.27) |" in text
    difference = r"+0.2 \[-0.1, +0.5\] | **+2.4** \[+2.1, +2.7\] p \<0.0001 |"
    assert f"| moco − supervised | {difference}" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_names_are_escaped(make_content, write):
    name = "<script>alert(1)</script>|a_b&"
    write(make_content(task=name, initialization=name))
    records = read_records([write.folder])
    page = render(records, "html")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert r"\textless{}script" in render(records, "latex")
    assert r"\|a\_b" in render(records, "markdown")


def test_latex_balances(table_2b):
    text = render(read_records([table_2b]), "latex")
    for kind in ("table", "tabular"):
        assert text.count(rf"\begin{{{kind}}}") == text.count(rf"\end{{{kind}}}") == 1
    assert r"55.9 $\pm$ 0.2 (n=5) \textbf{(+2.4)}" in text
    assert text.count("{") == text.count("}") and text.isascii()
    assert text.startswith("% needs \\usepackage{booktabs}\n")
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}\n") == 1
    # Whoever takes the table out of its file finds nothing but the table.
    table, notes = text.split(r"\end{table}")
    assert "footnotesize" not in table and "Orders that the tests support" in notes


def test_a_name_is_no_option_of_a_line_break_of_latex(make_content, write):
    write(make_content(initialization="[1cm]"))
    write(make_content(initialization="*"))
    text = render(read_records([write.folder]), "latex")
    assert "\n{}[1cm] & " in text and "\n{}* & " in text


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match="markdown"):
        render([], "markdwn")
    with pytest.raises(UserError, match="did you mean 'voc_C4'"):
        render_paper("voc_c4")


def test_differences_are_to_the_row_that_the_table_names():
    """LVIS compares with supervised weights whose BatchNorm is frozen."""
    assert "| MoCo IN-1M | 24.1 (-0.3) |" in render_paper("lvis_v0.5_FPN_2x").split("###")[1]


def test_unconfirmed_values_say_so():
    (table,) = published_tables("voc_C4_v2")
    assert table.footnotes[0][0] == "unconfirmed"
    assert r"| 82.0\* **(+0.7)** |" in render_paper("voc_C4_v2")


def test_odd_row_is_kept_as_printed():
    assert "| random init. | 26.4 (-11.8) |" in render_paper("coco_C4_1x")
    assert "29.3 (-4.0)" in render_paper("coco_C4_1x") and "odd" in render_paper("coco_C4_1x")


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_renders_every_paper_table(format):
    text = render_paper(format=format)
    assert "81.5" in text and "42.7" in text


def test_the_baseline_of_vits_is_their_supervised_row(tmp_path):
    """Its name differs, so that no ResNet is taken for it."""
    names = {"moco": "mocov3_vit", "supervised": "supervised_vit", "random": "random"}

    def of_vits(record):
        run = record["run"]
        return {**record, "run": {**run, "initialisation": names[run["initialisation"]]}}

    write_table_2b(tmp_path, of_vits)
    (table,) = measured_tables(read_records([tmp_path]))
    assert table.baseline == "supervised_vit"
    assert [row.label for row in table.rows] == ["random", "supervised_vit", "mocov3_vit"]
    assert table.rows[2].cells[0].difference is not None
