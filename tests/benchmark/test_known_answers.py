"""Records made from the paper's own values plus noise of the published standard deviation.

What the table has to say is computed here by other means: by hand, with NumPy and scipy.stats.
"""

import csv
import dataclasses
import io
import math

import numpy as np
import pytest
from scipy import stats

from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.rendering import render
from moco_d2.benchmark.statistics import agreement_band, summarize
from moco_d2.benchmark.tables.comparison import measured_tables

METRICS = ("AP50", "AP", "AP75")
STD = np.array([0.2, 0.2, 0.4])  # official README
TRIALS = 5
# MoCo v1, Table 2b.
PAPER = {
    "random": np.array([60.2, 33.8, 33.1]),
    "supervised": np.array([81.3, 53.5, 58.8]),
    "moco": np.array([81.5, 55.9, 62.6]),
}
SEEDS = 5


def noisy(means, rng, n=SEEDS):
    """n runs of each initialization: seeds x metrics, unrounded."""
    return {name: mean + rng.normal(0, STD, (n, 3)) for name, mean in means.items()}


@pytest.fixture
def template(make_content, write):
    """A record of each initialization, as read from its file."""
    for name in PAPER:
        write(make_content(initialization=name))
    return {record.initialization: record for record in read_records([write.folder])}


def records_of(values, template):
    return [
        dataclasses.replace(
            template[name],
            seed=seed,
            metrics={f"bbox/{m}": float(v) for m, v in zip(METRICS, run, strict=True)},
        )
        for name, runs in values.items()
        for seed, run in enumerate(runs)
    ]


def test_everything_in_the_table(make_content, write):
    """From files to CSV, against NumPy and scipy.stats."""
    values = noisy(PAPER, np.random.default_rng(20))
    for name, runs in values.items():
        for seed, run in enumerate(runs):
            metrics = {"bbox": dict(zip(METRICS, map(float, run), strict=True))}
            write(make_content(initialization=name, seed=seed, metrics=metrics))
    lines = list(csv.DictReader(io.StringIO(render(read_records([write.folder]), "csv"))))

    expected = {}
    for i, metric in enumerate(METRICS):
        spread, pooled = blocked_variances({name: runs[:, i] for name, runs in values.items()})
        for one, other in (("random", "supervised"), ("moco", "random"), ("moco", "supervised")):
            difference = values[one][:, i].mean() - values[other][:, i].mean()
            error = math.sqrt(spread[one, other] / SEEDS)
            # 4 of one pair, and up to (3 - 1) x (5 - 1) as far as the pooled variance explains it.
            freedom = 4 + 4 * pooled / spread[one, other]
            half = stats.t.ppf(0.975, freedom) * error
            p = 2 * stats.t.sf(abs(difference) / error, freedom)
            expected[one, other, metric] = (difference, difference - half, difference + half, p)
    # Only AP may claim an order: three comparisons.
    p = np.array([numbers[-1] for key, numbers in expected.items() if key[-1] == "AP"])
    order = np.argsort(p)
    corrected = np.empty(3)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(3, 0, -1)))

    seen = {}
    for line in lines:
        name, metric = line["initialization"], line["metric"].removeprefix("bbox/")
        i = METRICS.index(metric)
        if line["mean"]:
            runs, paper = values[name][:, i], PAPER[name][i]
            parts = np.array([runs.var(ddof=1) / SEEDS, STD[i] ** 2 / TRIALS])
            freedom = parts.sum() ** 2 / (parts**2 / (SEEDS - 1)).sum()
            rounding = stats.norm.ppf(0.975) * 0.1 / math.sqrt(12)
            band = math.hypot(stats.t.ppf(0.975, freedom) * math.sqrt(parts.sum()), rounding)
            assert int(line["n"]) == SEEDS
            judged = name != "supervised"  # it starts from other weights than the paper's
            for column, value in {
                "mean": runs.mean(),
                "std": runs.std(ddof=1),
                "published": paper,
                "gap": runs.mean() - paper,
                **({"band": band} if judged else {}),
            }.items():
                assert float(line[column]) == pytest.approx(value, abs=1e-9), (name, metric)
            assert line["within"] == (str(abs(runs.mean() - paper) <= band) if judged else "")
        if line["against"]:
            seen[name, line["against"], metric] = line
    assert seen.keys() == expected.keys()
    p_holm = dict(zip([key for key in expected if key[-1] == "AP"], corrected, strict=True))
    for key, numbers in expected.items():
        line = seen[key]
        found = [float(line[c]) for c in ("difference", "low", "high", "p")]
        assert found == pytest.approx(numbers, rel=1e-6), key
        assert line["test"] == "blocked"
        if key in p_holm:
            assert float(line["p_holm"]) == pytest.approx(p_holm[key], rel=1e-6)
            assert line["supported"] == str(p_holm[key] < 0.05)
        else:
            assert (line["p_holm"], line["supported"]) == ("", "")


def blocked_variances(rows):
    """The variance of each difference, from the definitions: residuals of a least-squares fit with
    one column per row and per seed, and the variances of the differences themselves.
    """
    names, n = list(rows), SEEDS
    design = np.zeros((len(names) * n, len(names) + n))
    for k in range(len(names) * n):
        design[k, k // n] = design[k, len(names) + k % n] = 1
    y = np.concatenate([rows[name] for name in names])
    residual = y - design @ np.linalg.pinv(design) @ y
    pooled = 2 * residual @ residual / ((len(names) - 1) * (n - 1))
    own = {(a, b): (rows[a] - rows[b]).var(ddof=1) for a in names for b in names if a != b}
    around = {a: np.mean([own[a, b] for b in names if b != a]) for a in names}
    return {(a, b): max(pooled, around[a], around[b]) for a, b in own}, pooled


def test_significance_by_hand(table_2b):
    """By seed, moco - supervised is 0.3, -0.1, 0.2, -0.1, -0.3 around its mean: variance 0.24 / 4.
    Of moco - random it is 0.28 / 4, and of random - supervised 0.32 / 4. The pooled one is the mean
    of the three, 0.07; so is the mean of supervised's two, and that of moco's two is 0.065.
    Student's t with 8 degrees of freedom (three rows, five seeds) has a closed form (Abramowitz and
    Stegun 26.7.4).
    """
    (table,) = measured_tables(read_records([table_2b]))
    (pair,) = (p for p in table.pairs if (p.label, p.against) == ("moco", "supervised"))
    error = math.sqrt(0.07 / 5)
    for comparison, difference in zip(pair.comparisons, (0.2, 2.4, 3.8), strict=True):
        angle = math.atan(difference / error / math.sqrt(8))
        cosine = math.cos(angle) ** 2
        series = 1 + cosine / 2 + 3 / 8 * cosine**2 + 15 / 48 * cosine**3
        assert comparison.difference == pytest.approx(difference)
        assert comparison.p == pytest.approx(1 - math.sin(angle) * series, rel=1e-5)
        assert comparison.high - comparison.low == pytest.approx(2 * 2.306 * error, rel=1e-3)
    # The metric that may claim an order is AP; the others are shown beside it.
    assert [c.supported for c in pair.comparisons] == [False, True, False]
    assert [c.p_holm is None for c in pair.comparisons] == [True, False, True]


def verdicts(table):
    """Whether each cell is within its band. Torchvision's supervised weights have no band."""
    return [cell.within for row in table.rows if not row.paper_marks for cell in row.cells]


def test_over_400_tables(template):
    """The band holds the paper at its rate, and orders are claimed where they are and not else.

    The paper's number has an error too: the true means lie around it as means of its 5 runs do.
    """
    rng = np.random.default_rng(0)
    within, orders = [], []
    for _ in range(400):
        true = {k: v + rng.normal(0, STD / math.sqrt(TRIALS)) for k, v in PAPER.items()}
        (table,) = measured_tables(records_of(noisy(true, rng), template))
        within += verdicts(table)
        (pair,) = (p for p in table.pairs if (p.label, p.against) == ("moco", "supervised"))
        orders.append([c.supported and c.difference > 0 for c in pair.comparisons])
    # 2400 cells: three standard errors of 0.95 are 0.013. Above 0.95, as the published standard
    # deviation is taken to come from 5 runs and here is exact.
    assert 0.95 < np.mean(within) < 0.985
    ap50, ap, ap75 = np.mean(orders, axis=0)
    assert ap > 0.99  # +2.4
    assert ap50 == ap75 == 0  # they claim no order


def test_orders_that_are_none_are_claimed_in_at_most_5_percent_of_tables(template):
    rng = np.random.default_rng(1)
    same = dict.fromkeys(PAPER, PAPER["moco"])
    tables = [measured_tables(records_of(noisy(same, rng), template))[0] for _ in range(400)]
    claimed = [any(c.supported for p in t.pairs for c in p.comparisons) for t in tables]
    assert np.mean(claimed) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean(claimed) > 0  # the tests are not deaf
    assert not any(cell.highlighted for t, c in zip(tables, claimed, strict=True) if not c
                   for row in t.rows for cell in row.cells)  # fmt: skip


@pytest.mark.parametrize(
    ("n", "published_std", "trials"),
    [(5, None, 5), (3, None, None), (2, None, None), (1, 0.2, 5), (2, 0.2, 5)],
)
def test_rate_of_the_band_however_little_is_published(n, published_std, trials):
    """2000 times our n runs and their mean of `trials` runs, or one, printed to one decimal."""
    rng = np.random.default_rng(2)
    std, runs = 0.2, trials or 1
    inside = []
    for _ in range(2000):
        printed = round(rng.normal(40, std / math.sqrt(runs)), 1)
        ours = summarize(rng.normal(40, std, n))
        inside.append(abs(ours.mean - printed) <= agreement_band(ours, published_std, trials))
    # Three standard errors of 0.95 are 0.015. A published spread is better known here than the band
    # assumes, which counts most where there is no other.
    assert 0.935 < np.mean(inside) < (0.965 if n > 1 else 0.999)


def test_a_shift_of_a_point_is_outside(template):
    rng = np.random.default_rng(3)
    shifted = {name: mean - np.array([1, 1, 2]) for name, mean in PAPER.items()}
    tables = [measured_tables(records_of(noisy(shifted, rng), template))[0] for _ in range(50)]
    assert np.mean([within for table in tables for within in verdicts(table)]) < 0.02


def test_a_mismatched_record_among_them_is_marked(make_content, write):
    values = noisy(PAPER, np.random.default_rng(4))
    for name, runs in values.items():
        for seed, run in enumerate(runs):
            metrics = {"bbox": dict(zip(METRICS, map(float, run), strict=True))}
            lr = 0.01 if (name, seed) == ("moco", 3) else 0.02
            record = make_content(initialization=name, seed=seed, metrics=metrics, base_lr=lr)
            write(record)
    records = read_records([write.folder])
    (table,) = measured_tables(records)
    assert {row.label: row.marks for row in table.rows} == {
        "random": (),
        "supervised": (),
        "moco": ("mismatched",),
    }
    assert "SOLVER.BASE_LR" in dict(table.footnotes)["mismatched"]
    assert table.rows[2].cells[0].n == SEEDS  # marked, not hidden
    (pair,) = (p for p in table.pairs if (p.label, p.against) == ("moco", "supervised"))
    assert {c.test for c in pair.comparisons} == {"Welch"}  # no pairs any more
    assert f"{values['moco'][:, 0].mean():.1f} ± " in render(records) and "†" in render(records)
