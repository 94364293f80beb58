"""The papers' figures with our points beside them: the numbers drawn, what is compared, and what is
said of it.
"""

import math
import re

import pytest
from support.pretext_content import IMAGENET, MECHANISMS, dictionary_point, result, write_results

from moco_d2.benchmark.records.pretext_records import read_pretext_records
from moco_d2.benchmark.rendering import render_folders
from moco_d2.benchmark.report.page import write_page
from moco_d2.benchmark.sweeps import figures as sweep_figures
from moco_d2.benchmark.sweeps.agreement import agreement, agreement_table, orders, paper_noise
from moco_d2.benchmark.sweeps.studies import studies
from moco_d2.errors import UserError

# Typed from the paper (arXiv:1911.05722, Figure 3), apart from paper_tables.yaml.
FIGURE_3 = {
    "end-to-end": {256: 54.9, 512: 56.3, 1024: 57.3},
    "memory bank": {256: 50.0, 512: 52.0, 1024: 54.1, 4096: 56.5, 16384: 57.8, 65536: 58.0},
    "MoCo": {256: 54.7, 512: 56.4, 1024: 57.5, 4096: 59.0, 16384: 60.4, 65536: 60.6},
}
# Every figure's published points in drawing order; section 4.1 and arXiv:2003.04297.
PUBLISHED = {
    "figure_3": [list(points.values()) for points in FIGURE_3.values()],
    "momentum": [[55.2, 57.8, 59.0, 58.9]],
    "temperature": [[60.6, 60.7, 59.0, 58.2, 57.2, 56.4], [62.9, 64.9, 66.2, 65.7, 65.0, 64.3]],
    "v2_table_1_pretext": [[60.6, 66.2, 63.4, 67.3, 67.5]],
    "pretraining_length": [[67.5, 71.1]],
    "dataset_size": [[46.6, 46.9, 45.9, 47.6]],  # VOC 2007 AP, Table 4
}
ON_IMAGENET = {"data": IMAGENET, "protocol": "linear"}
# Points that a seed adds to all runs, and to every second point of a sweep.
SEEDS = {1: (-0.21, 0.05), 2: (0.01, -0.02), 3: (0.2, -0.03)}
MANY_SEEDS = {seed: (0.3 * seed, 0.01 * (-1) ** seed) for seed in range(1, 9)}
ONE_SEED = {1: (0, 0)}


def figure_3(offset=0.0, change=None, seeds=SEEDS, **options) -> list[dict]:
    """Results with the paper's numbers plus an offset and noise: the seeds', and for each run 0.04
    points at most.

    Args:
        change: (mechanism, K) -> points to add.
    """
    points = [(m, size, value) for m, of in FIGURE_3.items() for size, value in of.items()]
    found = []
    for i, (mechanism, size, value) in enumerate(points):
        for seed, (common, _) in seeds.items():
            noise = common + 0.04 * math.sin(13 * i + 7 * seed) * (len(seeds) > 1)
            top1 = value + offset + noise + (change or {}).get((mechanism, size), 0)
            found.append(result(top1, seed=seed, **dictionary_point(mechanism, size), **options))
    return found


def momentum(values: dict, seeds=SEEDS, **options) -> list[dict]:
    return [
        result(
            value + common + (-1) ** i * own,
            seed=seed,
            MOCO__MOMENTUM=m,
            MOCO__DICTIONARY__SIZE=4096,
            **options,
        )
        for i, (m, value) in enumerate(values.items())
        for seed, (common, own) in seeds.items()
    ]


OTHERS = {
    "momentum": momentum({0.0: 1, 0.9: 2}),
    "temperature": [result(60, MOCO__TEMPERATURE=t) for t in (0.1, 0.3)],
    "v2_table_1_pretext": [result(60), result(65, config="moco_v2_a_mlp_R50_200ep.yaml")],
    "pretraining_length": [result(60, MOCO__EPOCHS=e) for e in (100, 200)],
    "dataset_size": [result(60, images=i) for i in (100_000, 200_000)],
}


@pytest.fixture
def read(tmp_path):
    """Function: results -> their studies."""
    return lambda results: studies(read_pretext_records([write_results(tmp_path / "r", results)]))


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Function: study -> the matplotlib figure that is drawn of it."""
    kept = []
    original = sweep_figures.save

    def save(figure, path, **options):
        kept.append(figure)
        original(figure, path, **options)

    monkeypatch.setattr(sweep_figures, "save", save)

    def call(study):
        sweep_figures.draw(study, tmp_path / "figure.svg")
        return kept[-1]

    return call


def lines_of(axes, *, hollow: bool) -> list[list[float]]:
    """y of the lines with hollow or filled markers, in drawing order."""
    return [
        list(line.get_ydata())
        for line in axes.lines
        if line.get_marker() not in ("", "None", "_")  # "_": caps of error bars
        and (line.get_markerfacecolor() == "white") == hollow
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_points_are_the_papers(name, read, drawn):
    results = OTHERS[name] if name in OTHERS else figure_3(seeds=ONE_SEED)
    (study,) = read(results)
    assert study.sweep.name == name
    papers, ours = drawn(study).axes
    assert lines_of(papers, hollow=True) == PUBLISHED[name]
    assert lines_of(papers, hollow=False) == lines_of(ours, hollow=True) == []
    assert papers.get_xlim() == ours.get_xlim()
    assert [t.get_text() for t in papers.get_xticklabels()] == [
        t.get_text() for t in ours.get_xticklabels()
    ]


def test_one_panel_on_the_papers_scale(read, drawn):
    (study,) = read(figure_3(offset=-1, **ON_IMAGENET))
    (axes,) = drawn(study).axes
    assert lines_of(axes, hollow=True) == PUBLISHED["figure_3"]
    for line, papers in zip(lines_of(axes, hollow=False), PUBLISHED["figure_3"], strict=True):
        assert line == pytest.approx([v - 1 for v in papers], abs=0.05)
    labels = [text.get_text() for text in axes.get_figure().legends[0].get_texts()]
    assert labels == [f"{s} (paper)" for s in FIGURE_3] + list(FIGURE_3)


@pytest.mark.parametrize(
    "other",
    [{"protocol": "knn"}, {"architecture": "ResNet-18"}, {"data": {**IMAGENET, "classes": 9}}],
)
def test_two_panels_on_any_other_scale(read, drawn, other):
    (study,) = read(figure_3(seeds=ONE_SEED, **{**ON_IMAGENET, **other}))
    assert len(drawn(study).axes) == 2


def test_mean_spread_and_untrained_network(read, drawn):
    values = {1: 50.0, 2: 52.0, 3: 54.0}
    results = [
        result(v + m, seed=s, MOCO__MOMENTUM=m) for m in (0.9, 0.99) for s, v in values.items()
    ]
    (study,) = read([*results, *(result(40 + s, seed=s, random=True) for s in values)])
    assert study.summary("MoCo", "0.9").mean == pytest.approx(52.9)
    assert study.summary("MoCo", "0.9").std == pytest.approx(2)
    assert study.untrained == (41, 42, 43)
    ours = drawn(study).axes[1]
    (bars,) = ours.collections
    assert [s[:, 1].tolist() for s in bars.get_segments()] == [
        pytest.approx([50.9, 54.9]),
        pytest.approx([50.99, 54.99]),
    ]
    assert "not pretrained, 42.0" in [line.get_label() for line in ours.lines]
    assert "0.9 52.9 ± 2.0" in sweep_figures.described(study)


def test_the_same_numbers_give_the_same_file(read, drawn, tmp_path):
    (study,) = read(OTHERS["momentum"])
    drawn(study)
    first = (tmp_path / "figure.svg").read_bytes()
    drawn(study)
    assert (tmp_path / "figure.svg").read_bytes() == first
    assert b"fails to converge" in first
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        sweep_figures.draw(study, tmp_path / "figure.gif")


# ---- which runs belong together ------------------------------------------------------------------


def test_runs_of_another_setting_are_not_mixed_in(read):
    """Two temperatures are two figures, and a lone point is none."""
    results = [
        result(50.0 + m, MOCO__MOMENTUM=m, MOCO__TEMPERATURE=t)
        for t in (0.07, 0.2)
        for m in (0.9, 0.99)
    ]
    results.append(result(1.0, MOCO__MOMENTUM=0.999, SOLVER__WEIGHT_DECAY=0.0))
    found = [s for s in read(results) if s.sweep.name == "momentum"]
    assert [list(s.values["MoCo"]) for s in found] == [["0.9", "0.99"]] * 2


def test_learning_rates_count_for_256_images_and_other_evaluations_apart(read):
    half = {"SOLVER__IMS_PER_BATCH": 128}
    linear = result(1, MOCO__DICTIONARY__SIZE=512)
    results = [
        linear,
        result(2, **dictionary_point("end-to-end", 512)),  # of batch 512, and rate 0.06
        result(3, **dictionary_point("memory bank", 512), **half),
        result(4, MOCO__DICTIONARY__SIZE=1024, **half),
        result(5, **dictionary_point("end-to-end", 128) | {"SOLVER__BASE_LR": 0.1}),
        result(6, **dictionary_point("memory bank", 512), protocol="linear"),
    ]
    found = [s for s in read(results) if s.sweep.name == "figure_3"]
    places = [{s: list(p) for s, p in study.values.items()} for study in found]
    assert places == [
        {"end-to-end": [512], "MoCo": [512]},
        {"end-to-end": [512], "memory bank": [512], "MoCo": [1024]},
    ]


def test_data_of_another_name_is_the_same_data(read):
    results = momentum({0.9: 50.0, 0.99: 52.0}, seeds=ONE_SEED)
    results[0]["data"] = {**results[0]["data"], "name": "elsewhere"}
    (study,) = read(results)
    assert list(study.values["MoCo"]) == ["0.9", "0.99"]


def test_of_two_results_of_one_point_and_seed_the_newer_counts(read):
    results = momentum({0.9: 50.0, 0.99: 52.0}, seeds=ONE_SEED)
    newer = result(
        51.0, MOCO__MOMENTUM=0.9, MOCO__DICTIONARY__SIZE=4096, started="2025-02-02T00:00:00+00:00"
    )
    (study,) = read([newer, *results])
    assert study.values["MoCo"]["0.9"] == {(1, 1): 51.0}
    assert "two results" in study.notes[0]


def test_runs_seeded_from_the_clock_are_different_runs(read):
    results = momentum({0.9: 50.0, 0.99: 52.0}, seeds={-1: (0, 0)})
    again = momentum({0.9: 51.0, 0.99: 53.0}, seeds={-1: (0, 0)})
    for content in again:
        content["checkpoint"]["sha256"] = "d" * 64
    (study,) = read([*results, *again])
    assert study.summary("MoCo", "0.9").n == 2
    assert {o.measured.test for o in orders(study)} == {"Welch"}


# ---- agreement -----------------------------------------------------------------------------------


def verdicts(study) -> list[str]:
    return [order.verdict for order in orders(study)]


def test_papers_noise_is_two_deviations_of_a_difference():
    assert paper_noise() == pytest.approx(2 * 2**0.5 * 0.2)


def test_the_papers_own_order_agrees(read):
    """What a seed adds to all of its runs is no spread of their differences."""
    (study,) = read(figure_3(offset=-3, **ON_IMAGENET))
    # 15 points: neighbors (2 + 5 + 5), and mechanisms (3 pairs at 3 places, and one at 3 more).
    assert len(orders(study)) == 12 + 9 + 3
    assert verdicts(study).count("same") >= 15 and verdicts(study).count("alike") == 5
    assert set(verdicts(study)) <= {"same", "alike", "towards"}
    text = agreement(study)
    assert text.startswith("Orders in the paper's figure (differences over 0.6 points): 19. Same ")
    assert "Same direction here: 19, supported" in text and "Opposite direction: 0, supp" in text
    assert "Alike in the paper: 5, apart here by more than that, supported: 0." in text
    assert "paired t-test" in text
    assert "in Holm's correction: 24. Least number of seeds: 3." in text
    titles, *rows = agreement_table(study)
    assert titles == ("first minus second", "in the paper", "here", "corrected p", "agrees")
    assert len(rows) == 24 and {row[4].split()[0] for row in rows} <= {"yes", "undecided"}
    assert [row[4] == "yes" for row in rows] == [v == "same" for v in verdicts(study)]


def test_another_order_is_named(read):
    """The memory bank above MoCo at 4096, by far."""
    (study,) = read(figure_3(change={("memory bank", 4096): 10}, seeds=MANY_SEEDS, **ON_IMAGENET))
    opposite = [o for o in orders(study) if o.verdict == "opposite"]
    assert [(o.first, o.second, o.where) for o in opposite] == [
        ("16384 (memory bank)", "4096", ""),
        ("MoCo", "memory bank", "at 4096"),
    ]
    assert opposite[1].measured.difference == pytest.approx(-7.5, abs=0.1)
    assert (
        "Same direction here: 17, supported by the tests: 17. Opposite direction: 2, supported: 2."
        in agreement(study)
    )
    disagreeing = [row for row in agreement_table(study) if row[4].startswith("no")]
    assert disagreeing[1] == (
        *("MoCo minus memory bank at 4096", "+2.5", "-7.5", "<0.0001", "no (opposite direction)"),
    )
    assert len(disagreeing) == 2


def test_within_the_spread_nothing_is_claimed(read):
    seeds = {1: (0, -6), 2: (0, 0), 3: (0, 6)}
    (study,) = read(momentum({0.9: 50.0, 0.99: 50.5, 0.999: 50.2, 0.9999: 50.0}, seeds=seeds))
    assert verdicts(study) == ["towards", "against", "alike"]
    text = agreement(study)
    assert "Same direction here: 1, supported by the tests: 0." in text
    assert "Opposite direction: 1, supported: 0." in text
    assert {row[4].split()[0] for row in agreement_table(study)[1:]} == {"undecided"}


def test_apart_where_the_paper_has_them_alike(read):
    (study,) = read(momentum({0.9: 50.0, 0.99: 52.0, 0.999: 53.0, 0.9999: 43.0}, seeds=MANY_SEEDS))
    assert verdicts(study) == ["same", "same", "apart"]
    *_, last = agreement_table(study)
    assert last[:3] == ("0.9999 minus 0.999", "-0.1", "-10.0")
    assert last[4] == "no (alike in the paper, apart here)"


def test_single_runs_support_nothing(read):
    (study,) = read(figure_3(seeds=ONE_SEED, **ON_IMAGENET))
    assert set(verdicts(study)) == {"towards", "alike"}
    assert "single runs" in agreement(study)
    assert {row[3] for row in agreement_table(study)[1:]} == {"–"}


def test_a_momentum_that_fails_in_the_paper_is_said_and_not_compared(read):
    (study,) = read(momentum({0.0: 30.0, 0.9: 50.0, 0.99: 52.0}))
    assert len(orders(study)) == 1
    assert "The paper's run at 0 fails to converge; here it gives 30.0 ± 0.2." in agreement(study)


def test_dictionaries_of_other_sizes_are_compared_end_to_end_and_on_average(read):
    gain = {"end-to-end": 5.0, "memory bank": 0.0, "MoCo": 3.0}
    results = [
        result(
            40 + gain[mechanism] + size / 32 + common + own * (mechanism == "MoCo") * size / 64,
            seed=seed,
            **dictionary_point(mechanism, size),
        )
        for mechanism in MECHANISMS
        for size in (32, 64, 128)
        for seed, (common, own) in MANY_SEEDS.items()
    ]
    (study,) = [s for s in read(results) if s.sweep.name == "figure_3"]
    found = {(o.first, o.second): o for o in orders(study)}
    assert len(found) == 6
    rising = found["128 (MoCo)", "32"]
    assert rising.paper == pytest.approx(60.6 - 54.7)
    assert rising.measured.difference == pytest.approx(3, abs=0.1)
    between = found["memory bank", "end-to-end"]
    assert between.measured.difference == pytest.approx(-5)
    assert between.paper == pytest.approx((50.0 + 52.0 + 54.1 - 54.9 - 56.3 - 57.3) / 3)
    assert found["MoCo", "end-to-end"].alike_in_paper
    assert found["MoCo", "end-to-end"].verdict == "apart"


# ---- commands ------------------------------------------------------------------------------------


def test_tables_and_report_of_a_folder(tmp_path):
    folder = write_results(tmp_path / "runs", figure_3(offset=-1, **ON_IMAGENET))
    text = render_folders([folder])
    assert "| dictionary size K; top-1 (%) | 256 | 512 | 1024 | 4096 | 16384 | 65536 |" in text
    assert "| MoCo | 53.7 ± 0.2 (n=3) | 55.4 ± 0.2 (n=3) | " in text
    assert re.search(r"\| paper: MoCo v1, Figure 3 \| 54.7, gap -1.0 \(within ±1.\d\d\) \| ", text)
    assert "| first minus second | in the paper | here | corrected p | agrees |" in text
    order = r"\| MoCo minus memory bank at 256 \| \+4.7 \| \+4.\d \| 0.0\d+ \| yes \|"
    assert re.search(order, text)
    assert "MoCo minus memory bank at 256: in the paper +4.7; " in render_folders([folder], "latex")
    csv = render_folders([folder], "csv").splitlines()
    assert csv[0].startswith("task,initialization,metric,mean") and len(csv) == 1 + 3 * 6
    write_page([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/svg+xml") == 1 and "Same direction here: 19" in page
    assert "<td>yes</td>" in page
    other = write_results(tmp_path / "other", OTHERS["momentum"])
    assert "| paper: MoCo, ImageNet, linear top-1 (%) | – | 55.2 |" in render_folders([other])


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no record.json"):
        render_folders([tmp_path])
    with pytest.raises(UserError, match="no record.json"):
        write_page([tmp_path], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
