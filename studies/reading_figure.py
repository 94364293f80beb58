#!/usr/bin/env python3
"""Draw the forest plot of docs/statistics.md from the records of its example.

After new runs of the demo, the page also needs what its example prints.

example:
  python studies/reading_figure.py docs/statistics/forest.svg
"""

import dataclasses
import sys
from pathlib import Path

from moco_d2.benchmark.records.design import Design
from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.report.forest import forest_image
from moco_d2.benchmark.tables.comparison import measured_tables

#: The records, from the root of the checkout.
RECORDS = "results/board/demo/coco_C4_1x"


def draw(root: Path, out: Path) -> None:
    """Draw all pairs of the records in a checkout to `out`."""
    (table,) = measured_tables(read_records([root / RECORDS]))
    design = Design(comparisons=tuple((pair.label, pair.against) for pair in table.pairs))
    forest_image(dataclasses.replace(table, design=design), out)


if __name__ == "__main__":
    draw(Path(), Path(sys.argv[1]))
