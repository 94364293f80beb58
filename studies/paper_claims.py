#!/usr/bin/env python3
"""Measure which claims of the paper the tables of its suites make, with five seeds.

Runs are drawn around the published values with the spread that is known: the README's on VOC, and
on COCO the 0.3 AP that an author calls normal noise. They go through the code that makes the tables
of real runs, with what the suite declares. The study writes results/studies/paper_claims.json, from
which docs/statistics.md is rendered.

example:
  python studies/paper_claims.py
  python studies/paper_claims.py --render docs/statistics.md
"""

import argparse
import dataclasses
import datetime
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from claims import PLAIN

from moco_d2.benchmark.paper_tables import PaperTable, find_row
from moco_d2.benchmark.records.design import Declaration
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.runs.suites import load_suite, packaged_suites
from moco_d2.benchmark.tables.comparison import column_title, measured_tables
from moco_d2.files import write_json, write_text

DRAWS = 400
RESULT = Path("results/studies/paper_claims.json")
WANTED = 0.9
_BEGIN, _END = "<!-- paper claims: begin -->", "<!-- paper claims: end -->"
_COCO_SPREAD = 0.3  # points; issue 39 of facebookresearch/moco
_SEEDS = range(1, 6)
_BEFORE = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A task of a suite of the paper: the published values, (metrics,) of each row."""

    suite: str
    task: str
    table: PaperTable
    rows: dict[str, tuple[float, ...]]
    spread: tuple[float, ...]
    declaration: Declaration


def grids() -> Iterator[Grid]:
    """Yield the tasks whose spread is known."""
    for name in packaged_suites():
        if not name.startswith(("table_", "v2_table_1")) or name.endswith("pretext"):
            continue
        suite = load_suite(name)
        declaration = Declaration(design=suite.design, declared=_BEFORE, sha256="")
        for task in dict.fromkeys(cell.task for cell in suite.cells):
            rows = dict.fromkeys(c.initialization for c in suite.cells if c.task == task)
            found = {row: published for row in rows if (published := find_row(task, row))}
            table = next(iter(found.values()))[0]
            spread = table.std or (
                (_COCO_SPREAD,) * len(table.metrics) if table.spread_remark else ()
            )
            if spread:
                values = {row: published.values for row, (_, published) in found.items()}
                yield Grid(name, task, table, values, spread, declaration)


def measure(grid: Grid, draws: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return each declared difference with the share of tables that claim the published order."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for _ in range(draws):
        (table,) = measured_tables(_records(grid, rng))
        tested = {
            (one, other, metric): c
            for one, other in grid.declaration.design.comparisons
            for metric in table.metrics
            if (c := table.comparison(one, other, metric)) and c.p_holm is not None
        }
        for key, comparison in tested.items():
            right = comparison.difference * _published(grid, *key) > 0
            counts[key] += comparison.supported and right
    return [
        {
            **{"suite": grid.suite, "task": grid.task, "row": one, "against": other},
            "metric": metric,
            "published": round(_published(grid, one, other, metric), 2),
            "claimed": counts[one, other, metric] / draws,
        }
        for one, other, metric in tested
    ]


def _published(grid: Grid, one: str, other: str, metric: str) -> float:
    i = grid.table.metrics.index(metric)
    return grid.rows[one][i] - grid.rows[other][i]


def _records(grid: Grid, rng: np.random.Generator) -> Iterator[Record]:
    setting = grid.table.setting
    config = {"DATASETS": {"TRAIN": list(setting.train), "TEST": list(setting.test)}}
    for row, values in grid.rows.items():
        for seed in _SEEDS:
            drawn = map(
                float, np.add(values, np.multiply(grid.spread, rng.standard_normal(len(values))))
            )
            yield dataclasses.replace(
                PLAIN, task=grid.task, initialization=row, seed=seed, config=config,
                metrics=dict(zip(grid.table.metrics, drawn, strict=True)),
                declaration=grid.declaration,
            )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help="tables per task")
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--render", type=Path, metavar="PAGE", help="only render the page")
    args = parser.parse_args()
    if args.render:
        page = args.render.read_text()
        write_text(args.render, with_claims(page, json.loads(args.json.read_text())))
        return 0
    lines = []
    for index, grid in enumerate(grids()):
        lines += measure(grid, args.draws, np.random.default_rng((1, index)))
        print(lines[-1], flush=True)
    write_json(args.json, {"draws": args.draws, "seeds": len(_SEEDS), "claims": lines})
    return 0


# ---- page ----------------------------------------------------------------------------------------


def with_claims(page: str, result: dict[str, Any]) -> str:
    """Return a page with the claims of a result between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{claims(result)}\n{_END}{after}"


def claims(result: dict[str, Any]) -> str:
    """Return the claims as Markdown: what comes out, and what the spread does not allow."""
    orders = [c for c in result["claims"] if c["published"]]
    out = [c for c in orders if c["claimed"] >= WANTED]
    not_out = sorted((c for c in orders if c["claimed"] < WANTED), key=lambda c: -c["claimed"])
    ties = len(result["claims"]) - len(orders)
    return "\n".join(
        [
            f"Of {len(orders)} published orders, {len(out)} come out in at least {WANTED:.0%} of "
            f"{result['draws']} tables of {result['seeds']} seeds each, and {len(not_out)} do not. "
            f"{ties} more differences are printed as 0.0. These come out:",
            "",
            *_table(out),
            "",
            "These do not, because they are too small for the spread:",
            "",
            *_table(not_out),
        ]
    ).replace("%", " %")


def _table(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield "| suite | order | in | published | claimed |"
    yield "|---|---|---|---|---|"
    for c in lines:
        word = "above" if c["published"] > 0 else "below"
        title = column_title(c["metric"], voc="voc" in c["task"])
        order = f"{c['row']} {word} {c['against']}"
        suite = (
            c["suite"]
            if c["suite"] not in ("table_3", "table_A1")
            else f"{c['suite']}, {c['task']}"
        )
        yield f"| {suite} | {order} | {title} | {c['published']:+.1f} | {c['claimed']:.1%} |"


if __name__ == "__main__":
    sys.exit(main())
