"""Against scipy.stats, which the package does not use: importing it takes longer than a table."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from moco_d2.benchmark.multiplicity import holm, possible_equal
from moco_d2.benchmark.statistics import (
    Blocks,
    Comparison,
    Summary,
    agreement_band,
    corrected,
    paired,
    sign_flip,
    summarize,
    welch,
)

# Linear top-1 of MoCo v1 and v2 after 200 epochs, five trials each, official README.
V1 = [60.6, 60.6, 60.7, 60.9, 61.1]
V2 = [67.7, 67.6, 67.4, 67.6, 67.3]


def test_summary():
    summary = summarize(V1)
    assert summary.mean == pytest.approx(np.mean(V1))
    assert summary.std == pytest.approx(np.std(V1, ddof=1))
    assert summary.n == 5
    assert (round(summary.mean, 1), round(summary.std, 1)) == (60.8, 0.2)  # as printed there


def test_one_value_has_no_spread():
    assert summarize([3.0]) == Summary(3.0, None, 1)
    with pytest.raises(ValueError, match="no value"):
        summarize([])


@pytest.mark.parametrize(("ours", "scipys"), [(paired, stats.ttest_rel), (welch, None)])
def test_tests_against_scipy(ours, scipys):
    scipys = scipys or (lambda a, b: stats.ttest_ind(a, b, equal_var=False))
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 20):
        a, b = rng.normal(0, 1, n), rng.normal(0.5, 3, n)
        comparison, expected = ours(list(a), list(b)), scipys(a, b)
        assert comparison.difference == pytest.approx(a.mean() - b.mean())
        assert comparison.p == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval(0.95)
        assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))


def test_welch_of_unequal_numbers():
    comparison, expected = welch(V2, V1[1:3]), stats.ttest_ind(V2, V1[1:3], equal_var=False)
    assert comparison.p == pytest.approx(expected.pvalue)
    assert comparison.n == (5, 2) and comparison.test == "Welch"


@pytest.mark.parametrize("test", [paired, welch])
def test_nothing_is_tested_without_spread(test):
    assert test([3.0], [1.0]) == Comparison(2.0, (1, 1))
    same = test([3.1, 3.1, 3.1], [0.3, 0.3, 0.3])  # 3.1 - 0.3 is not exactly 2.8
    assert (same.test, same.p) == (None, None) and not same.supported


def test_a_constant_difference_is_no_spread_either():
    """Rounding in the last digit would otherwise look like a tiny spread, and p like 1e-60."""
    assert paired([1.1, 2.2, 3.3], [1.0, 2.1, 3.2]).p is None


def test_holm():
    # Worked by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, none below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    # Of six, six can be none, or three, two, one: 0.001 x 6, 0.01 x 3, 0.02 x 3, 0.03 x 3, ...
    found = holm([0.001, 0.01, 0.02, 0.03, 0.04, 0.5], [0, 1, 2, 3, 6])
    assert found == pytest.approx([0.006, 0.03, 0.06, 0.09, 0.09, 0.5])


def test_what_can_be_equal_at_the_same_time():
    """All pairs of four rows (Shaffer's table), and two references with four more rows by hand."""
    four = list(itertools.combinations("abcd", 2))
    assert possible_equal(four) == (0, 1, 2, 3, 6)
    assert possible_equal(four, metrics=2) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12)
    # All nine; or one of the four others differs, and 9 - 2 = 7 are left; never eight.
    references = [pair for pair in itertools.combinations("abcdef", 2) if set(pair) & set("ab")]
    assert len(references) == 9 and possible_equal(references)[-2:] == (7, 9)
    assert (
        possible_equal(four[:1])
        == ()
        == possible_equal(list(itertools.combinations("abcdefgh", 2)))
    )


def test_correction_counts_only_what_was_tested():
    tested = Comparison(1.0, (5, 5), "paired", 0.5, 1.5, p=0.03)
    first, untested, second = corrected([tested, Comparison(9.0, (1, 5)), tested])
    assert first.p_holm == second.p_holm == pytest.approx(0.06) and not first.supported
    assert untested.p_holm is None and not untested.supported
    assert corrected([tested])[0].supported


def test_a_comparison_that_cannot_be_tested_makes_it_no_easier_for_the_others():
    tested = Comparison(1.0, (5, 5), "paired", 0.5, 1.5, p=0.03, p_margin=0.02)
    for family in ([tested, Comparison(9.0, (1, 5))], [tested]):
        found = corrected(family, planned=2)
        assert (found[0].p_holm, found[0].p_margin_holm) == pytest.approx((0.06, 0.04))
        assert len(found) == len(family)


def test_holm_keeps_the_rate_of_false_claims():
    """Ten true null hypotheses a table: one or more called significant in at most 5 % of tables."""
    p_values = np.random.default_rng(1).uniform(size=(2000, 10))
    false = np.mean([min(holm(list(row))) < 0.05 for row in p_values])
    assert 0.035 < false < 0.065  # three standard errors of 0.05 over 2000: 0.015


def test_band_against_the_formulas():
    rounding = 1.959964 * 0.1 / math.sqrt(12)
    # Both spreads known: Welch and Satterthwaite.
    ours, theirs = 0.3**2 / 5, 0.2**2 / 5
    freedom = (ours + theirs) ** 2 / (ours**2 / 4 + theirs**2 / 4)
    expected = math.hypot(stats.t.ppf(0.975, freedom) * math.sqrt(ours + theirs), rounding)
    assert agreement_band(Summary(55.9, 0.3, 5), 0.2, 5) == pytest.approx(expected)
    # Only ours: the published number as a mean of as many runs of our spread, or one.
    for trials, runs in ((5, 5), (None, 1)):
        half = stats.t.ppf(0.975, 2) * 0.3 * math.sqrt(1 / 3 + 1 / runs)
        expected = math.hypot(half, rounding)
        assert agreement_band(Summary(38.5, 0.3, 3), None, trials) == pytest.approx(expected)
    # Only theirs, a single run of ours.
    expected = math.hypot(stats.t.ppf(0.975, 4) * 0.2 * math.sqrt(1 + 1 / 5), rounding)
    assert agreement_band(Summary(55.9, None, 1), 0.2, 5) == pytest.approx(expected)
    assert agreement_band(Summary(38.5, None, 1)) is None


def test_band_is_no_narrower_than_the_rounding_of_the_published_number():
    assert agreement_band(Summary(38.5, 0.0, 3)) > 0.05


# ---- seeds as blocks -----------------------------------------------------------------------------


def rows_of(values):
    return {f"row{i}": dict(enumerate(row)) for i, row in enumerate(values)}


def test_two_rows_are_the_paired_test():
    a, b = [3.1, 2.9, 3.6, 3.3], [2.0, 2.2, 2.1, 2.6]
    comparison, expected = Blocks(rows_of([a, b])).compare("row0", "row1"), paired(a, b)
    assert (comparison.difference, comparison.p) == pytest.approx((expected.difference, expected.p))
    assert (comparison.low, comparison.high) == pytest.approx((expected.low, expected.high))
    assert (comparison.test, comparison.n) == ("blocked", (4, 4))


def test_equal_spreads_are_pooled():
    """Rows of one spread: the residual of all, with the degrees of freedom of all."""
    rng = np.random.default_rng(3)
    halves = []
    for _ in range(400):
        values = rng.normal(0, 1, (5, 4)) + rng.normal(0, 3, 4)
        both = Blocks(rows_of(values)).compare("row0", "row1"), paired(values[0], values[1])
        halves.append([(c.high - c.low) / 2 for c in both])
    blocked, alone = np.mean(halves, axis=0)
    assert blocked < 0.9 * alone


def test_a_row_that_spreads_more_is_compared_with_its_own_spread():
    rng = np.random.default_rng(4)
    quiet = rng.normal(0, 0.01, (6, 5))
    loud = rng.normal(0, 1, (1, 5))
    blocks = Blocks(rows_of(np.concatenate([loud, quiet])))
    own = np.var(loud[0] - quiet[0], ddof=1)
    comparison = blocks.compare("row0", "row1")
    half = (comparison.high - comparison.low) / 2
    assert half >= 0.99 * stats.t.ppf(0.975, 20) * math.sqrt(own / 5)


def test_a_declared_pair_with_a_noisy_row_keeps_its_rate():
    """No correction for other pairs makes up for what the quiet rows know too well."""
    draws = (
        np.random.default_rng(8).normal(0, 1, (800, 6, 3)) * np.array([10, 1, 1, 1, 1, 1])[:, None]
    )
    rates = [
        np.mean([Blocks(rows_of(v), declared=n).compare("row0", "row1").p < 0.05 for v in draws])
        for n in (0, 1)
    ]
    assert rates[0] > 0.08  # the rule of a family of all rows does not hold for one pair
    assert rates[1] < 0.07  # 5 % plus the error of so many draws


def test_a_missing_run_changes_n_and_not_the_test():
    values = np.random.default_rng(5).normal(0, 1, (3, 4))
    rows = rows_of(values)
    del rows["row1"][2]
    blocks = Blocks(rows)
    comparison = blocks.compare("row0", "row1")
    assert (comparison.test, comparison.n) == ("blocked", (3, 3))
    common = [0, 1, 3]
    assert comparison.difference == pytest.approx((values[0] - values[1])[common].mean())
    assert blocks.compare("row0", "row2").n == (4, 4)
    # The residual is that of least squares over the eleven runs that are there.
    cells = [(i, s) for i in range(3) for s in range(4) if (i, s) != (1, 2)]
    design = np.array([[i == k for k in range(3)] + [s == k for k in range(4)] for i, s in cells])
    y = np.array([values[cell] for cell in cells])
    residual = y - design @ np.linalg.pinv(design.astype(float)) @ y
    assert blocks._freedom == 11 - 6
    assert blocks._residual == pytest.approx(residual @ residual / 5)


def test_the_spread_around_a_row_is_that_of_the_runs_that_are_there():
    values = np.random.default_rng(6).normal(0, 1, (4, 4))
    rows = rows_of(values)
    del rows["row1"][2]
    rows["row3"] = {0: values[3, 0]}  # one run has no spread
    common = [0, 1, 3]
    pairs = ((values[0] - values[1])[common], values[0] - values[2])
    mean = np.mean([np.var(differences, ddof=1) for differences in pairs])
    assert Blocks(rows)._mean_variance("row0") == pytest.approx(mean)


def test_seeds_that_are_not_shared_cannot_be_compared():
    blocks = Blocks({"a": {1: 1.0}, "b": {2: 2.0}, "c": {1: 4.0}})
    with pytest.raises(ValueError, match="no seed in common"):
        blocks.compare("a", "b")
    assert blocks.compare("a", "c") == Comparison(-3.0, (1, 1))


def test_fewer_than_three_seeds_claim_nothing():
    for n, supported in ((2, False), (3, True)):
        values = [[10.0 + 0.01 * s for s in range(n)], [0.0 + 0.011 * s for s in range(n)]]
        (comparison,) = corrected([Blocks(rows_of(values)).compare("row0", "row1")])
        assert comparison.p_holm < 0.001 and comparison.supported == supported


def test_sign_flip_against_scipy():
    differences = [0.4, 0.1, 0.3, -0.2, 0.5, 0.2]
    expected = stats.permutation_test(
        (differences,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples"
    )
    assert sign_flip(differences) == pytest.approx(expected.pvalue)
    assert sign_flip([1.0] * 5) == 2 / 2**5  # the smallest possible
    assert sign_flip([1.0] * 13) is None


def test_equivalence_is_two_one_sided_tests():
    """Against scipy's one-sided t-tests of -0.5 and +0.5."""
    one, other = [53.1, 53.0, 53.2, 53.1, 53.0], [53.0, 53.1, 53.1, 53.0, 53.1]
    (comparison,) = corrected([Blocks(rows_of([one, other])).compare("row0", "row1")])
    d = np.subtract(one, other)
    expected = max(
        stats.ttest_1samp(d, -0.5, alternative="greater").pvalue,
        stats.ttest_1samp(d, 0.5, alternative="less").pvalue,
    )
    assert comparison.p_margin == pytest.approx(expected)
    assert comparison.equivalent and not comparison.supported
    (few,) = corrected([Blocks(rows_of([one[:2], other[:2]])).compare("row0", "row1")])
    assert not few.equivalent
