"""The published tables, and what the command prints of them, against numbers typed twice."""

import csv
import html.parser
import io
import re
from decimal import Decimal

import pytest
from support import published_values as typed

from moco_d2.benchmark.paper_tables import find_row, paper_tables
from moco_d2.benchmark.rendering import render_paper
from moco_d2.benchmark.tables.from_paper import published_tables

NAMES = list(typed.TABLES)
# "v1 Table 2b" -> what stands in the source.
PAPERS = {"v1": "MoCo v1 (arXiv 1911.05722v3)", "v2": "MoCo v2 (arXiv 2003.04297)"}


def table(name):
    (found,) = (t for t in paper_tables() if t.name == name)
    return found


def test_no_table_is_missing_on_either_side():
    assert sorted(t.name for t in paper_tables()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell(name):
    expected = typed.rows(name)
    rows = table(name).rows
    assert [row.unconfirmed for row in rows] == [label.endswith("?") for label, _ in expected]
    for row, (label, values) in zip(rows, expected, strict=True):
        assert all(word in row.label for word in label.rstrip("?").split()), row.label
        assert len(row.values) == len(values) == len(table(name).metrics), row.label
        for value, printed in zip(row.values, values, strict=True):
            assert value == (None if printed == "-" else float(printed)), (row.label, printed)


@pytest.mark.parametrize("name", NAMES)
def test_sources_columns_and_trials(name):
    source, columns, _ = typed.TABLES[name]
    for word in source.split():
        assert PAPERS.get(word, word) in table(name).source
    (rendered,) = (t for t in published_tables() if t.task == name)
    for title, column in zip(rendered.columns, columns.split(), strict=True):
        assert all(word in title for word in re.split("-(?=AP)", column)), (title, column)
    assert table(name).trials == (5 if name in typed.FIVE_TRIALS else None)
    stds = [typed.STD[c] for c in columns.split()] if name in typed.WITH_STD else []
    assert list(table(name).std) == stds


def lines_of(name):
    """What has to be printed: label's words, values, differences recomputed, unconfirmed or not."""
    expected = typed.rows(name)
    base = typed.BASELINES.get(name)
    for i, (label, values) in enumerate(expected):
        others = expected[base][1] if base not in (None, i) else ["-"] * len(values)
        differences = [
            None if "-" in (value, other) else Decimal(value) - Decimal(other)
            for value, other in zip(values, others, strict=True)
        ]
        numbers = [None if value == "-" else Decimal(value) for value in values]
        yield label.rstrip("?").split(), numbers, differences, label.endswith("?")


def parse_cell(text):
    """``81.5* (+0.2)`` -> value, difference, whether it is set off, unconfirmed or not."""
    set_off = "!" in text
    match = re.fullmatch(r"(–|[\d.]+)(\*?)(?: \(([-+]?[\d.]+)\))?", text.replace("!", ""))
    value, star, difference = match.groups()
    return (
        None if value == "–" else Decimal(value),
        None if difference is None else Decimal(difference),
        set_off,
        star == "*",
    )


def from_markdown(text):
    for part in re.split("^### ", text, flags=re.M)[1:]:
        rows = [line for line in part.splitlines() if line.startswith("| ")][1:]
        part_rows = []
        for row in rows:
            label, *cells = re.split(r" (?<!\\)\| ", row.removeprefix("| ").removesuffix(" |"))
            cells = [re.sub(r"\*\*(.*?)\*\*", r"!\1", c).replace("\\", "") for c in cells]
            part_rows.append((label.replace("\\", ""), cells))
        yield part_rows


def from_latex(text):
    undo = {r"\%": "%", r"\_": "_", r"\dag{}": "†", "--": "–"}
    for part in text.split(r"\begin{tabular}")[1:]:
        body = part.split(r"\end{tabular}")[0].split("\\midrule\n")[1].split("\\bottomrule")[0]
        part_rows = []
        for line in body.strip().splitlines():
            plain = re.sub(r"\\textsuperscript\{(.*?)\}", r"\1", line.removesuffix(r" \\"))
            plain = re.sub(r"\\textbf\{(.*?)\}", r"!\1", plain)
            for latex, character in undo.items():
                plain = plain.replace(latex, character)
            label, *cells = plain.split(" & ")
            part_rows.append((label, cells))
        yield part_rows


class Tables(html.parser.HTMLParser):
    """Rows of each table; strong becomes "!"."""

    def __init__(self):
        super().__init__()
        self.tables, self.cell, self.in_body = [], False, False

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        self.in_body = {"tbody": True, "thead": False}.get(tag, self.in_body)
        if tag == "tr" and self.in_body:
            self.tables[-1].append([])
        if tag in ("td", "th") and self.in_body:
            self.cell = True
            self.tables[-1][-1].append("")
        if tag == "strong":
            self.tables[-1][-1][-1] += "!"

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False
        if tag == "table":
            self.in_body = False

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data


def from_html(text):
    parser = Tables()
    parser.feed(text)
    for rows in parser.tables:
        yield [(label, [c.replace("▲ ", "") for c in cells]) for label, *cells in rows]


@pytest.mark.parametrize(
    ("format", "parse"),
    [("markdown", from_markdown), ("latex", from_latex), ("html", from_html)],
)
def test_every_number_and_difference_is_printed(format, parse):
    order = [t.name for t in paper_tables()]
    printed = list(parse(render_paper(format=format)))
    assert len(printed) == len(order)
    for name, rows in zip(order, printed, strict=True):
        expected = list(lines_of(name))
        assert len(rows) == len(expected), name
        for (label, cells), (words, values, differences, unconfirmed) in zip(
            rows, expected, strict=True
        ):
            assert all(word in label for word in words), (name, label)
            for cell, value, difference in zip(cells, values, differences, strict=True):
                highlighted = difference is not None and difference >= Decimal("0.5")
                marked = unconfirmed and value is not None
                assert parse_cell(cell) == (value, difference, highlighted, marked), (name, label)


def test_every_number_and_difference_is_in_the_csv():
    lines = iter(csv.DictReader(io.StringIO(render_paper(format="csv"))))
    for name in (t.name for t in paper_tables()):
        for words, values, differences, unconfirmed in lines_of(name):
            for value, difference in zip(values, differences, strict=True):
                line = next(lines)
                assert line["task"] == name
                assert all(word in line["initialization"] for word in words)
                assert (Decimal(line["mean"]) if line["mean"] else None) == value
                found = Decimal(line["difference"]) if line["difference"] else None
                assert found == difference, (name, words)
                assert line["marks"] == ("unconfirmed" if unconfirmed else "")
    assert next(lines, None) is None


def test_plain_fpn_and_4conv1fc_are_different_protocols():
    """mmdet, PyContrast and InsLoc have the 4conv1fc head, whose APs are higher."""
    for t in paper_tables():
        if any(word in t.source + row.label for row in t.rows for word in ("mmdet", "PyContrast")):
            assert "FPN" not in t.title or "4conv1fc" in t.title, t.name
    assert find_row("coco_FPN_1x", "moco_v2_800ep") is None
    for task, values in (
        ("coco_FPN4conv1fc_1x", (40.4, 36.4)),
        ("coco_FPN4conv1fc_2x", (42.5, 38.2)),
    ):
        assert find_row(task, "moco_v2_800ep")[1].values == values


@pytest.mark.parametrize(
    ("task", "initialization", "box_ap"),
    [
        ("voc_C4", "SimCLR", 56.3),
        ("voc_C4", "pixpro-400ep", 60.2),
        ("voc_C4", "moco_v2_800ep", 57.4),  # the authors' row, not PixPro's quotation
        ("coco_C4_1x", "infomin", 39.0),
        ("coco_C4_1x", "moco_v2_800ep", 39.3),
        ("coco_C4_2x", "BYOL", 40.2),
        ("voc_C4", "byol", 55.3),
        ("voc_C4", "SwAV-800ep", 56.1),
        ("voc_C4", "BarlowTwins", 56.8),
        ("voc_C4", "simsiam", 56.4),
        ("voc_C4", "instdis", 55.2),
        ("voc_C4", "PIRL", 55.5),
        ("coco_C4_1x", "byol", 37.9),
        ("coco_C4_1x", "swav", 38.4),
        ("coco_C4_1x", "swav_200ep", 32.9),
        ("coco_C4_1x", "barlow-twins", 39.2),
        ("coco_C4_1x", "SimSiam", 37.9),
        ("coco_C4_1x", "instdis", 37.7),
        ("coco_C4_1x", "pirl", 37.4),
        ("coco_FPN_1x", "swav_200ep", 38.5),
        ("coco_FPN_1x", "instdis", 37.4),
        ("coco_FPN_1x", "pirl", 37.5),
        ("coco_FPN4conv1fc_1x", "swav_200ep", 40.2),
        ("coco_FPN4conv1fc_2x", "pirl", 41.2),
    ],
)
def test_a_run_of_a_later_method_finds_its_row(task, initialization, box_ap):
    table, row = find_row(task, initialization)
    assert table.setting
    assert row.values[table.metrics.index("bbox/AP")] == box_ap


def test_odd_row_is_kept_as_printed_with_a_remark():
    text = render_paper("coco_C4_1x")
    assert "| random init. | 26.4 (-11.8) |" in text and "29.3 (-4.0)" in text
    assert "as printed" in text and "odd" in text


def test_unconfirmed_values_say_so():
    text = render_paper("voc_C4_v2")
    assert r"| 82.0\* **(+0.7)** |" in text and "unconfirmed" in text


def test_differences_are_to_the_row_that_the_table_names():
    """LVIS compares with supervised weights whose BatchNorm is frozen."""
    assert "| MoCo IN-1M | 24.1 (-0.3) |" in render_paper("lvis_v0.5_FPN_2x").split("###")[1]


def test_rows_are_set_beside_runs_only_where_data_and_schedule_are_known():
    for t in paper_tables():
        assert t.task or not t.setting, t.name
        assert not t.std or (t.trials and len(t.std) == len(t.metrics)), t.name
