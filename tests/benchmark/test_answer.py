"""The sentence of each task: its orders, sizes and what it does not claim."""

import pytest

from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.statistics import Blocks, Comparison, corrected
from moco_d2.benchmark.tables.answer import answers


def said(folder):
    (sentence,) = answers(read_records([folder]))
    return sentence


@pytest.fixture
def runs(write, make_content):
    """Write runs of one initialization; values are {metric: one value per seed}."""

    def runs(initialization, **values):
        groups = {"box": "bbox", "mask": "segm"}
        where = {"task": "voc_C4"}
        if "mask" in values:
            where = {"task": "coco_C4", "data": {"train": ["coco_a"], "test": ["coco_b"]}}
        for seed in range(len(next(iter(values.values())))):
            metrics = {groups[name]: {"AP": v[seed]} for name, v in values.items()}
            write(make_content(initialization=initialization, seed=seed, metrics=metrics, **where))

    return runs


def test_above_and_no_order(runs, write):
    """The numbers are those of the table, with Holm's correction over three pairs."""
    moco, random, supervised = (17.0, 18.0, 19.0), (8.0, 9.5, 10.0), (18.1, 16.9, 19.6)
    runs("random", box=random)
    runs("supervised", box=supervised)
    runs("moco", box=moco)
    rows = {"moco": moco, "random": random, "supervised": supervised}
    blocks = Blocks({name: dict(enumerate(values)) for name, values in rows.items()})
    pairs = [("moco", "random"), ("moco", "supervised"), ("random", "supervised")]
    to_random, to_supervised, _ = corrected(blocks.compare(*pair) for pair in pairs)
    assert to_random.supported and not to_supervised.supported
    assert said(write.folder) == (
        f"voc_C4: MoCo is above random in AP by 8.8 [{to_random.low:.1f}, {to_random.high:.1f}] "
        f"(3 seeds, p {to_random.p_holm:.2g}); no order between MoCo and supervised is supported "
        f"in AP (difference -0.2 [{to_supervised.low:+.1f}, {to_supervised.high:+.1f}], 3 seeds, "
        f"p {to_supervised.p_holm:.2g})."
    )


def test_detectors_that_found_nothing_are_no_comparison(runs, write):
    for name in ("moco", "random"):
        runs(name, box=(0.01, 0.02, 0.03) if name == "moco" else (0.04, 0.05, 0.06))
    assert said(write.folder) == (
        "voc_C4: no detector found anything (no row has 0.1 AP), so the schedule was too short."
    )
    runs("supervised", box=(5.0, 5.2, 5.4))
    assert "too short" not in said(write.folder)


def test_below_has_a_positive_size(runs, write):
    runs("supervised", box=(20.0, 21.0, 22.0))
    runs("moco", box=(10.0, 11.1, 12.0))
    sentence = said(write.folder)
    assert sentence.startswith("voc_C4: MoCo is below supervised in AP by 10.0 [9.8, 10.1] (3 ")


def test_boxes_and_masks_in_one_clause_where_they_agree(runs, write):
    runs("random", box=(20.0, 21.0, 22.0), mask=(10.0, 11.0, 12.0))
    runs("moco", box=(30.0, 31.1, 32.0), mask=(10.4, 10.6, 12.6))
    assert said(write.folder).startswith(
        "coco_C4: MoCo is above random in box AP by 10.0 [9.9, 10."
    )
    assert "; no order between MoCo and random is supported in mask AP (diff" in said(write.folder)


def test_both_metrics_above(runs, write):
    runs("random", box=(20.0, 21.0, 22.0), mask=(10.0, 11.0, 12.0))
    runs("moco", box=(30.0, 31.1, 32.0), mask=(20.0, 21.1, 22.0))
    assert " and in mask AP by 10.0 [9.9, 10.2] (3 seeds, p " in said(write.folder)


def test_rows_that_agree_within_half_a_point_are_equivalent(runs, write):
    runs("random", box=(20.0, 21.0, 22.0, 23.0))
    runs("moco", box=(20.1, 21.0, 22.1, 22.9))
    sentence = said(write.folder)
    assert sentence.startswith(
        "voc_C4: MoCo and random are equivalent within 0.5 in AP (difference 0.0 [-0.1, +0.2], 4 "
    )


def test_single_runs_claim_nothing(runs, write):
    runs("random", box=(9.0,))
    runs("moco", box=(30.0,))
    assert said(write.folder) == (
        "voc_C4: no order between MoCo and random can be tested in AP "
        "(difference +21.0, 1 seed: no spread to test against)."
    )


def test_two_checkpoints_are_also_compared_with_each_other(runs, write):
    for i, name in enumerate(("random", "mine", "theirs")):
        runs(name, box=(10.0 * i, 10.0 * i + 1.1 + 0.1 * i, 10.0 * i + 2.0))
    sentence = said(write.folder)
    orders = ("mine is above random", "theirs is above random", "theirs is above mine")
    assert [sentence.index(order) for order in orders] == sorted(map(sentence.index, orders))


def test_only_one_row_and_unknown_metrics(write, make_content):
    write(make_content(metrics={"mine": {"score": 3.0}}))
    assert said(write.folder) == "voc_C4: nothing is compared, there are runs from MoCo."
    write(make_content(metrics={"mine": {"score": 1.0}}, initialization="random"))
    assert "in mine/score (difference +2.0, 1 seed:" in said(write.folder)


def test_marked_rows_are_named(write, make_content):
    for name, lr in (("supervised", 0.02), ("moco", 0.01)):
        write(make_content(initialization=name, base_lr=lr))
    assert said(write.folder).endswith("; mind the footnotes on MoCo (mismatched).")


def test_more_pairs_than_a_sentence_holds(runs, write):
    """Each row is compared with the reference, and the largest differences are said."""
    for i in range(9):
        runs(f"init {i}", box=(10.0 + i,))
    assert said(write.folder).endswith("; the table has 30 more comparisons.")  # of all 36 pairs
    runs("supervised", box=(1.0,))
    sentence = said(write.folder)
    assert "init 8 and supervised" in sentence and "init 2 and" not in sentence
    assert sentence.endswith("; the table has 3 more comparisons.")


def test_nine_checkpoints_and_random_have_an_answer(runs, write):
    for i in range(9):
        runs(f"init {i}", box=(20.0 + i, 21.1 + i, 22.0 + i))
    runs("random", box=(10.0, 11.0, 12.1))
    assert said(write.folder).startswith("voc_C4: init 8 is above random in AP by 18.0 [")


def test_a_reversed_comparison_has_the_other_sign():
    c = Comparison(2.0, (3, 4), "Welch", 1.0, 3.5, 0.01, 0.02)
    assert c.reversed() == Comparison(-2.0, (4, 3), "Welch", -3.5, -1.0, 0.01, 0.02)
    assert c.reversed().reversed() == c
