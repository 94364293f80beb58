import numpy as np
import pytest

from moco_d2.benchmark.statistics import Difference, Summary, difference, summarise, supported


def test_against_numpy():
    values = [60.6, 60.6, 60.7, 60.9, 61.1]  # linear top-1 of MoCo v1, five trials, official README
    summary = summarise(values)
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.std == pytest.approx(np.std(values, ddof=1))
    assert summary.n == 5
    assert (round(summary.mean, 1), round(summary.std, 1)) == (60.8, 0.2)  # as printed there


def test_one_value_has_no_spread():
    assert summarise([3.0]) == Summary(3.0, None, 1)
    with pytest.raises(ValueError, match="no value"):
        summarise([])


def test_difference_combines_spreads():
    delta = difference(Summary(55.9, 0.3, 5), Summary(53.5, 0.4, 5))
    assert delta.value == pytest.approx(2.4)
    assert delta.spread == pytest.approx(0.5)
    assert difference(Summary(55.9, None, 1), Summary(53.5, 0.4, 5)).spread is None


@pytest.mark.parametrize(
    ("value", "spread", "expected"),
    [(2.4, 0.5, True), (-2.4, 0.5, True), (0.5, 0.5, False), (0.1, 0.5, False), (9.0, None, False)],
)
def test_supported(value, spread, expected):
    assert supported(Difference(value, spread)) is expected
