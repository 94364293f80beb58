"""The board: what it says, that it is the same for the same records, and rank ranges."""

import dataclasses
import json
import shutil

import pytest
from benchmark.test_page import HOSTILE, Page
from support.commands import run_tool
from support.paths import ROOT, TOOLS
from support.run_records import content, write_record

from moco_d2.benchmark.board.page import render_board, write_board
from moco_d2.benchmark.board.ranks import rank_ranges
from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.statistics import Comparison
from moco_d2.benchmark.tables.table import Cell, Pair, Row, Table
from moco_d2.errors import UserError


def table(orders, names="abcd", missing=""):
    """A table whose supported orders are pairs of names, the better first."""
    rows = tuple(Row(n, (Cell("bbox/AP", None if n in missing else 50.0),)) for n in names)
    best = Comparison(1.0, (5, 5), "blocked", p_holm=0.001)
    pairs = tuple(
        Pair(*pair, (best if i % 2 else best.reversed(),))
        for i, (one, other) in enumerate(orders)
        for pair in [(one, other) if i % 2 else (other, one)]
    )
    return Table("t", "t", ("bbox/AP",), ("AP",), rows, pairs=pairs)


@pytest.mark.parametrize(
    ("orders", "ranges"),
    [
        ([], {"a": (1, 4), "b": (1, 4), "c": (1, 4), "d": (1, 4)}),
        (["ab"], {"a": (1, 3), "b": (2, 4), "c": (1, 4), "d": (1, 4)}),
        (["bc", "ab", "cd"], {"a": (1, 1), "b": (2, 2), "c": (3, 3), "d": (4, 4)}),
        (["ab", "bc", "ca"], {"a": (1, 4), "b": (1, 4), "c": (1, 4), "d": (1, 4)}),
    ],
)
def test_ranks_are_those_that_supported_orders_allow(orders, ranges):
    assert rank_ranges(table(orders), "bbox/AP") == ranges


def test_orders_without_support_and_rows_without_a_value_do_not_count():
    few = Pair("a", "b", (Comparison(9.0, (2, 2), "blocked", p_holm=0.001),))
    empty = dataclasses.replace(table([], "abc", missing="c"), pairs=(few,))
    assert rank_ranges(empty, "bbox/AP") == {"a": (1, 2), "b": (1, 2)}


def test_a_board_has_intervals_ranks_provenance_and_cost(table_2b, tmp_path):
    write_record(table_2b, content(task="voc07_C4", initialization="swav"))
    write_board([table_2b], tmp_path / "board.md")
    text = (tmp_path / "board.md").read_text()
    assert "# Board: 4 initializations, 2 tasks" in text
    # The half width is t(4) 2.776 x 0.158 / sqrt(5) = 0.196.
    assert "| moco | – | 55.9 \\[55.7, 56.1\\], rank 1 (n=5) |" in text
    assert "| swav | 55.9, rank 1 (n=1) | – |" in text
    assert "| voc\\_C4, moco | 1, 2, 3, 4, 5 | moco.pth 3ad7555734cf | moco\\_v1\\_200ep" in text
    assert "| 384000 | 3.07 h |" in text
    assert "| voc\\_C4, moco, seed 3 | AP 56.10 | runs/012/record.json |" in text


def test_the_committed_board_is_that_of_its_records():
    folder = ROOT / "results" / "board"
    committed = (folder / "board.md").read_text(encoding="utf-8")
    renew = "tools/benchmark.py board results/board/demo --out results/board/board.md"
    assert committed == render_board(read_records([folder / "demo"]), folder), renew


def test_every_number_of_a_record_shows_in_the_board(tmp_path):
    demo = shutil.copytree(ROOT / "results" / "board" / "demo", tmp_path / "demo")
    committed = (ROOT / "results" / "board" / "board.md").read_text(encoding="utf-8")
    file = demo / "voc_C4" / "moco" / "seed1" / "record.json"
    record = json.loads(file.read_text())
    record["metrics"]["bbox"]["AP-dotted"] = 1.0  # it is in no table
    file.write_text(json.dumps(record))
    assert render_board(read_records([demo]), tmp_path) != committed


def test_the_images_of_a_fraction_are_named(table_2b, tmp_path):
    record = content(task="voc_C4_10pct")
    record["data"] = {"train_images": 1655, "test_images": {}, "train_content": "1655 images, 12ab"}
    write_record(table_2b, record)
    write_board([table_2b], tmp_path / "board.md")
    assert "| 1655 images, 12ab | 384000 |" in (tmp_path / "board.md").read_text()


def test_two_seeds_leave_every_rank_open(write, tmp_path):
    for initialization, ap in {"random": 10.0, "moco": 60.0}.items():
        for seed in (1, 2):
            metrics = {"bbox": {"AP": ap + seed / 100}}
            write(content(initialization=initialization, seed=seed, metrics=metrics))
    write_board([write.folder], tmp_path / "board.md")
    assert (tmp_path / "board.md").read_text().count("rank 1–2 (n=2)") == 2


def test_a_board_depends_on_its_records_only(table_2b, tmp_path):
    one, other = tmp_path / "board.html", tmp_path / "elsewhere" / "board.html"
    write_board([table_2b], one)
    shutil.copytree(table_2b, other.parent / "runs")
    folders = sorted((other.parent / "runs").iterdir(), reverse=True)
    write_board(folders, other)
    assert one.read_bytes() == other.read_bytes()


def test_an_older_record_of_a_run_is_not_counted(table_2b, tmp_path):
    old = content(seed=1, finished="2020-01-01T00:00:00", metrics={"bbox": {"AP": 1.0}})
    write_record(table_2b, old)
    write_board([table_2b], tmp_path / "board.md")
    text = (tmp_path / "board.md").read_text()
    assert "AP 1.00" not in text and "not counted: 1." in text


def test_names_of_strangers_are_text(table_2b, tmp_path):
    write_record(table_2b, content(initialization="a|b<b>"))
    record = content(initialization="x")
    record["weights"]["file"] = HOSTILE
    record["weights"]["provenance"] = {"published": ["name"], "source": 3, "family": HOSTILE}
    write_record(table_2b, record)
    write_board([table_2b], tmp_path / "board.html")
    page = Page((tmp_path / "board.html").read_text(encoding="utf-8"))
    assert HOSTILE in " ".join(page.words) and "img" not in page.tags
    write_board([table_2b], tmp_path / "board.md")
    rows = [line for line in (tmp_path / "board.md").read_text().splitlines() if "<" in line]
    assert rows and all("<" not in line.replace("\\<", "") for line in rows)


def test_a_page_of_another_kind_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"board.pdf must end in .md or .html"):
        write_board([tmp_path / "nothing"], tmp_path / "board.pdf")


def test_the_command(table_2b, tmp_path):
    out = tmp_path / "board.md"
    result = run_tool(TOOLS / "benchmark.py", "board", table_2b, "--out", out)
    assert result.returncode == 0 and not result.stderr and "rank 1" in out.read_text()
