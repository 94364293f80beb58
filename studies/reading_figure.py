#!/usr/bin/env python3
"""Draw the forest plot of docs/statistics.md from the runs of its example.

example:
  python studies/reading_figure.py docs/statistics/forest.svg
"""

import ast
import dataclasses
import re
import sys
from pathlib import Path

from claims import PLAIN

from moco_d2.benchmark.report.forest import forest_image
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.benchmark.tables.table import Table

_RUNS = re.compile(r"^ap = (\{.*?^\})", re.MULTILINE | re.DOTALL)


def example_table(page: Path) -> Table:
    """Return the table of the runs that the example on the page lists."""
    found = _RUNS.search(page.read_text())
    assert found is not None, f"{page} has no example"
    records = [
        dataclasses.replace(PLAIN, initialization=name, seed=seed, metrics={"bbox/AP": value})
        for name, values in ast.literal_eval(found[1]).items()
        for seed, value in enumerate(values, start=1)
    ]
    (table,) = measured_tables(records)
    return table


if __name__ == "__main__":
    forest_image(example_table(Path("docs/statistics.md")), Path(sys.argv[1]))
