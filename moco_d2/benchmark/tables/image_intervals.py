"""The intervals of a table's differences over seeds and images, from the runs' per_image.npz."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moco_d2.benchmark.image_bootstrap import (
    AVERAGED,
    RESAMPLES,
    Replicates,
    replicates,
    uncertainty,
)
from moco_d2.benchmark.records.matching import newest
from moco_d2.benchmark.records.run_records import Record, read_content
from moco_d2.benchmark.records.test_sets import by_test_set
from moco_d2.benchmark.tables.grouping import by_initialization
from moco_d2.benchmark.tables.table import Pair, Table
from moco_d2.errors import UserError, printable
from moco_d2.files import sha256
from moco_d2.records.image_matches import read_per_image

logger = logging.getLogger(__name__)

_TITLES = ("difference", "metric", "mean", "95 % over seeds", "over seeds and images", "images")
_ADVICE = "copy it there from where the run was trained, or train the run again"
_LEAST_DIGITS = 1e-6  # points; the same AP twice, in another order of summation


class Drawn(NamedTuple):
    """The replicates of each output of a run, and the digest and the number of its test images."""

    outputs: Mapping[str, Replicates]
    images: tuple[object, ...]


def with_images(tables: Iterable[Table], records: Iterable[Record]) -> list[Table]:
    """Return tables with a further one below each: its differences with their two intervals.

    It takes about 5 seconds for each run on VOC 2007, and 10 on COCO.

    Raises:
        UserError: If no run has a file that can be used.
    """
    by_task: dict[str, list[Record]] = {}
    for record in by_test_set(records):
        by_task.setdefault(record.task, []).append(record)
    added = [_with_images(table, by_task[table.task]) for table in tables]
    if not any(table.text for table in added):
        raise UserError(
            "no two rows have a common seed whose runs both have a usable per_image.npz; runs of "
            "this version leave one: print the table without --images, or train again"
        )
    return added


def _with_images(table: Table, records: Sequence[Record]) -> Table:
    groups = by_initialization(newest(records)[0])
    runs = {
        name: {record.seed: drawn for record in group if (drawn := _drawn(record)) is not None}
        for name, group in groups.items()
    }
    sets = {drawn.images for of_row in runs.values() for drawn in of_row.values()}
    if len(sets) > 1:
        logger.warning(
            "the runs of %s were evaluated on %d different lists of test images; differences "
            "between runs with different lists have no interval over images",
            *(printable(table.task), len(sets)),
        )
    lines = [line for pair in table.pairs for line in _lines(table, pair, runs)]
    if not lines:
        return table
    note = (
        "An interval over seeds and images says what other seeds and other test images would give: "
        f"{RESAMPLES:,} draws of the images, the same for all runs, with BCa's limits, beside the "
        "spread between seeds. The last column is the part of its variance due to the images; 0 %: "
        "that part cannot be told from the part of the seeds (it is a difference of two variances, "
        "cut off at 0)."
    )
    if absent := [
        f"{name} (seed {', '.join(map(str, seeds))})"
        for name, group in groups.items()
        if (seeds := sorted({record.seed for record in group} - runs[name].keys()))
    ]:
        note += (
            f" Left out are the differences that need {', '.join(absent)}: these runs have no "
            "usable per_image.npz."
        )
    return dataclasses.replace(table, text=(_TITLES, *lines), notes=(*table.notes, note))


def _lines(
    table: Table, pair: Pair, runs: Mapping[str, Mapping[int, Drawn]]
) -> Iterator[tuple[str, ...]]:
    one, other = runs[pair.label], runs[pair.against]
    for metric, column, c in zip(table.metrics, table.columns, pair.comparisons, strict=True):
        output, _, name = metric.partition("/")
        seeds = [
            s for s in one if s in other and output in one[s].outputs and output in other[s].outputs
        ]
        if len({run[s].images for run in (one, other) for s in seeds}) > 1:
            continue  # the draws of their images are not paired
        # The seeds of the test: with fewer files, its spread is not that of these runs.
        if name not in AVERAGED or c is None or c.test != "blocked" or len(seeds) != c.n[0]:
            continue
        if c.variance is None or c.freedom is None or c.low is None or c.high is None:
            continue
        at = list(AVERAGED).index(name)
        point, drawn, left_out = (
            np.stack(
                [
                    one[s].outputs[output][:3][i][..., at]
                    - other[s].outputs[output][:3][i][..., at]
                    for s in seeds
                ],
                axis=-1,
            )
            for i in range(3)
        )
        images = one[seeds[0]].outputs[output].images
        found = uncertainty(Replicates(point, drawn, left_out, images), c.variance, c.freedom)
        yield (
            f"{pair.label} - {pair.against}",
            column,
            f"{c.difference:+.1f}",
            f"[{c.low:+.1f}, {c.high:+.1f}]",
            f"[{found.low:+.1f}, {found.high:+.1f}]",
            f"{found.images:.0%}".replace("%", " %"),
        )


def _drawn(record: Record) -> Drawn | None:
    """Return the replicates of a run; None, with a warning, if it has no file that can be used."""
    try:
        content = read_content(record.path)
        (test_set,) = record.datasets_test
        entry: dict[str, Any] | None = (content or {}).get("per_image", {}).get(test_set)
        if entry is None:
            return None
        path = record.path.parent / entry["file"]
        if sha256(path) != entry["sha256"]:
            raise ValueError(
                f"{path.name} is not the file of this run, because its sha256 is another; {_ADVICE}"
            )
        outputs, digest = read_per_image(path)
        images = (digest, *(part.images for part in outputs.values()))
        drawn = Drawn({name: replicates(part) for name, part in outputs.items()}, images)
        for name, each in drawn.outputs.items():
            _check(record, name, each)
    except (OSError, ValueError) as error:
        logger.warning(
            "left out the images of %s: %s", printable(str(record.path)), printable(_reason(error))
        )
        return None
    return drawn


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    name = Path(error.filename).name
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing; {_ADVICE}"
    return f"{name} cannot be read ({error.strerror}); make it readable, or {_ADVICE}"


def _check(record: Record, output: str, drawn: Replicates) -> None:
    if not all(np.isfinite(part).all() for part in drawn[:3]):
        raise ValueError(f"so few images have objects that some draws have no {output} AP")
    for value, metric in zip(drawn.point, AVERAGED, strict=True):
        recorded = record.metrics.get(f"{output}/{metric}")
        if recorded is not None and not abs(recorded - value) < _LEAST_DIGITS:
            raise ValueError(f"its {output} {metric} is {value:.4f}, but the record's {recorded}")
