import csv
import io
import re

import pytest

from moco_d2.benchmark.comparison import measured_tables, published_tables
from moco_d2.benchmark.paper import paper_tables
from moco_d2.benchmark.results import read_records
from moco_d2.benchmark.tables import FORMATS, render, render_paper
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
    assert not table.footnotes
    cell = cells(table)["moco"]["bbox/AP"]
    assert (cell.mean, cell.n) == (pytest.approx(55.9), 5)
    assert cell.std == pytest.approx(0.1 * 2.5**0.5)
    assert cell.difference == pytest.approx(2.4)
    assert cell.spread == pytest.approx(0.1 * 5**0.5)
    assert cell.supported and cell.highlighted
    assert (cell.published, cell.gap, cell.band, cell.within) == (55.9, pytest.approx(0), 0.4, True)
    ap50 = cells(table)["moco"]["bbox/AP50"]  # +0.2 is smaller than the spread of 0.22
    assert not ap50.supported and not ap50.highlighted
    assert cells(table)["supervised"]["bbox/AP"].difference is None


def test_order_is_claimed_only_where_the_spread_supports_it(table_2b):
    notes = " ".join(table_of(table_2b).notes)
    assert "moco above supervised in AP, AP75" in notes
    assert "supervised above random in AP50, AP, AP75" in notes
    assert "moco above random in AP50, AP, AP75" in notes
    assert "no order claimed: moco and supervised in AP50." in notes


@pytest.mark.parametrize(("ap50", "within"), [(81.1, True), (81.0, False), (81.9, True)])
def test_band_includes_its_edge(make_content, write, ap50, within):
    write(make_content(metrics={"bbox": {"AP50": ap50}}))
    (row,) = table_of(write.folder).rows
    assert row.cells[0].within is within


@pytest.mark.parametrize(
    "other",
    [{"max_iter": 12000}, {"data": {"train": ["voc_2007_trainval"], "test": ["voc_2007_test"]}}],
)
def test_no_paper_values_beside_another_setting(make_content, write, other):
    write(make_content(**other))
    table = table_of(write.folder)
    assert table.rows[0].paper is None and table.rows[0].cells[0].published is None
    assert any("other data or schedule than the paper's" in note for note in table.notes)


def test_task_without_published_table(make_content, write):
    write(make_content(task="demo", data={"train": ["shapes_train"], "test": ["shapes_val"]}))
    assert any("No published row" in note for note in table_of(write.folder).notes)


def test_mismatched_run_is_marked_with_the_keys_that_differ(make_content, write):
    write(make_content(initialisation="supervised"))
    write(make_content(initialisation="moco", base_lr=0.01, matched="d" * 64))
    table = table_of(write.folder)
    assert [row.marks for row in table.rows] == [(), ("mismatched",)]
    ((_, text),) = table.footnotes
    assert "differs from that of supervised in SOLVER.BASE_LR" in text and "WEIGHTS" not in text
    assert "81.5† (n=1)" in render(read_records([write.folder]))


def test_reservations_are_marked(make_content, write):
    records = {name: make_content(initialisation=name) for name in ("a", "b", "c", "d", "random")}
    records["a"]["weights"]["provenance"] = None
    records["b"]["coverage"]["loaded"] = 264
    records["c"]["preflight"]["forced"] = True
    records["d"]["weights"] = None  # pretrained by name, but nothing says from what
    for record in records.values():
        write(record)
    marks = {row.label: row.marks for row in table_of(write.folder).rows}
    assert marks == {
        "random": (),
        "a": ("provenance",),
        "b": ("coverage",),
        "c": ("forced",),
        "d": ("provenance",),
    }


def test_newest_of_duplicates_counts(make_content, write):
    for hour, ap in ((5, 50.0), (9, 56.0), (7, 52.0)):
        finished = f"2025-01-02T0{hour}:00:00+00:00"
        write(make_content(finished=finished, metrics={"bbox": {"AP": ap}}))
    table = table_of(write.folder)
    assert (table.rows[0].cells[0].mean, table.rows[0].cells[0].n) == (56.0, 1)
    assert sum("the newest" in note for note in table.notes) == 2


def test_runs_seeded_from_the_clock_are_different_runs(make_content, write):
    for hour in (5, 7):
        write(make_content(seed=-1, finished=f"2025-01-02T0{hour}:00:00+00:00"))
    assert table_of(write.folder).rows[0].cells[0].n == 2


def test_rows_in_paper_order_then_alphabetical(make_content, write):
    names = ["zebra", "moco", "moco_v2", "supervised_msra", "random", "supervised"]
    for name in names:
        write(make_content(initialisation=name))
    assert [row.label for row in table_of(write.folder).rows] == [
        *("random", "supervised", "supervised_msra", "moco", "moco_v2", "zebra"),
    ]


def test_nan_counts_as_missing(make_content, write):
    write(make_content(seed=1, metrics={"bbox": {"AP": 55.0, "AP50": None}}))
    write(make_content(seed=2, metrics={"bbox": {"AP": None, "AP50": None}}))
    table = table_of(write.folder)
    assert cells(table)["moco"]["bbox/AP"].n == 1
    assert cells(table)["moco"]["bbox/AP50"].mean is None
    assert any("2 of 2 runs lack a metric" in note for note in table.notes)
    assert "| – |" in render(read_records([write.folder]))


def test_coco_columns(make_content, write):
    metrics = {group: {"AP50": 2.0, "AP": 1.0, "AP75": 0.5} for group in ("segm", "bbox")}
    data = {"train": ["coco_2017_train"], "test": ["coco_2017_val"]}
    for initialisation in ("random", "supervised"):
        write(
            make_content(
                task="coco_FPN_1x",
                initialisation=initialisation,
                metrics=metrics,
                data=data,
                max_iter=90000,
            )
        )
    table = table_of(write.folder)
    assert table.columns == ("APbb", "APbb50", "APbb75", "APmk", "APmk50", "APmk75")
    assert [c.published for c in table.rows[0].cells] == [31.0, 49.5, 33.2, 28.5, 46.8, 30.4]
    assert any("A single run has no spread" in note for note in table.notes)


def test_csv_has_the_numbers(table_2b):
    lines = list(csv.DictReader(io.StringIO(render(read_records([table_2b]), "csv"))))
    assert len(lines) == 9
    (line,) = (x for x in lines if x["initialisation"] == "moco" and x["metric"] == "bbox/AP75")
    assert float(line["difference"]) == pytest.approx(3.8)
    assert (line["published"], line["within"], line["n"]) == ("62.6", "True", "5")


def test_markdown_cells(table_2b):
    text = render(read_records([table_2b]), "markdown")
    assert "| moco | 81.5 ± 0.2 (n=5) (+0.2) | 55.9 ± 0.2 (n=5) **(+2.4)** |" in text
    assert "| paper: MoCo IN-1M | 81.5, gap 0.0 (within ±0.4) |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_names_are_escaped(make_content, write):
    name = "<script>alert(1)</script>|a_b&"
    write(make_content(task=name, initialisation=name))
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


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match="markdown"):
        render([], "markdwn")
    with pytest.raises(UserError, match="did you mean 'voc_C4'"):
        render_paper("voc_c4")


# Typed a second time, from the tables as printed: value and difference to supervised.
VOC_C4 = """
random init. | 60.2 (-21.1) | 33.8 (-19.7) | 33.1 (-25.7)
super. IN-1M | 81.3 | 53.5 | 58.8
MoCo IN-1M | 81.5 (+0.2) | 55.9 (+2.4)! | 62.6 (+3.8)!
MoCo IG-1B | 82.2 (+0.9)! | 57.2 (+3.7)! | 63.7 (+4.9)!
"""
COCO_FPN_1X = """
random init. | 31.0 (-7.9) | 49.5 (-10.1) | 33.2 (-9.5) | 28.5 (-6.9) | 46.8 (-9.7) | 30.4 (-7.7)
super. IN-1M | 38.9 | 59.6 | 42.7 | 35.4 | 56.5 | 38.1
MoCo IN-1M | 38.5 (-0.4) | 58.9 (-0.7) | 42.0 (-0.7) | 35.1 (-0.3) | 55.9 (-0.6) | 37.7 (-0.4)
MoCo IG-1B | 38.9 (0.0) | 59.4 (-0.2) | 42.3 (-0.4) | 35.4 (0.0) | 56.5 (0.0) | 37.9 (-0.2)
"""


@pytest.mark.parametrize(("name", "typed"), [("voc_C4", VOC_C4), ("coco_FPN_1x", COCO_FPN_1X)])
def test_papers_table(name, typed):
    text = render_paper(name).split("\n### ")[0]
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")][2:]
    expected = re.sub(r"(\([^)]*\))!", r"**\1**", typed).strip().splitlines()
    assert lines == expected


def test_paper_tables_are_complete():
    for table in paper_tables():
        assert len(table.band) in (0, len(table.metrics)), table.name
        assert all(len(row.values) == len(table.metrics) for row in table.rows), table.name
        assert (table.task is None) <= (table.setting is None), table.name
    unconfirmed = {(t.name, r.label[:3]) for t in paper_tables() for r in t.rows if r.unconfirmed}
    assert unconfirmed == {
        *(("voc_C4_v2", letter) for letter in ("(a)", "(b)", "(c)")),
        ("linear_v2_simclr", "Sim"),
    }


def test_counts_are_printed_whole_and_missing_values_as_a_dash():
    assert "| MoCo R50 | 24 | 60.6 |" in render_paper("linear")
    assert "| end-to-end | 54.9 | 56.3 | 57.3 | – | – | – |" in render_paper("figure_3")


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
