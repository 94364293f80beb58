#!/usr/bin/env python3
"""Measure how often tables claim orders that are none, and how often they find those that are.

Runs are drawn from distributions whose truth is known, and go through the code that makes the
tables of real runs. The study writes results/studies/claims.json, from which docs/statistics.md is
rendered.

example:
  python studies/claims.py
  python studies/claims.py --render docs/statistics.md
"""

import argparse
import dataclasses
import datetime
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.files import write_json, write_text

DRAWS = 2000
RESULT = Path("results/studies/claims.json")
_BEGIN, _END = "<!-- rates: begin -->", "<!-- rates: end -->"
_SPREAD = 0.2  # points, between seeds; of VOC's AP in the official README
_SEED_SPREAD = 0.5  # points, of what is common to a seed
_METRICS = ("bbox/AP50", "bbox/AP")
_CORRELATION = 0.9  # between the metrics of a run
_DIFFERENCE = 1.0  # points
_LEVEL = 0.05  # of the tests
_KNOWN_TO = 1.96  # standard deviations of a measured rate, in 95 of 100 cases


@dataclasses.dataclass(frozen=True)
class Case:
    """A distribution of the runs of a table.

    Attributes:
        name: A sentence for the table.
        rows, seeds: Size of the grid.
        spreads: Factors of the spread of the first and of the last row.
        differs: Whether the last row is better by _DIFFERENCE.
        heavy: Whether the noise has heavy tails (Student's t with 3 degrees of freedom).
        missing: Number of runs that are missing at random.
        other_seeds: Whether the last row has other seeds than the rest, which is Welch's test.
        seed_factor: Factor of what is common to a seed.
    """

    name: str
    rows: int
    seeds: int
    spreads: tuple[float, float] = (1, 1)
    differs: bool = False
    heavy: bool = False
    missing: int = 0
    other_seeds: bool = False
    seed_factor: float = 1


def cases() -> Iterator[Case]:
    """Yield all cases."""
    for rows, seeds in ((2, 3), (3, 3), (3, 5), (4, 3), (6, 3), (6, 5)):
        yield Case("nothing differs", rows, seeds)
        yield Case("one row is better by 1.0", rows, seeds, differs=True)
        yield Case("heavy tails", rows, seeds, heavy=True)
        yield Case("random spreads three times as much", rows, seeds, spreads=(3, 1))
        yield Case("random spreads 25 times as much", rows, seeds, spreads=(25, 1))
        yield Case("the last row spreads three times as much", rows, seeds, spreads=(1, 3))
        yield Case(
            "random and the last row spread three times as much", rows, seeds, spreads=(3, 3)
        )
        yield Case("seeds differ much", rows, seeds, seed_factor=10)
        yield Case("two runs are missing", rows, seeds + 1, missing=2)
        yield Case("the last row has other seeds", rows, seeds, other_seeds=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help="tables per case")
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--render", type=Path, metavar="PAGE", help="only render the page")
    args = parser.parse_args()
    if args.render:
        page = args.render.read_text()
        write_text(args.render, with_rates(page, json.loads(args.json.read_text())))
        return 0
    lines = []
    for index, case in enumerate(cases()):
        lines.append(measure(case, args.draws, np.random.default_rng((0, index))))
        print(lines[-1], flush=True)
    write_json(args.json, {"draws": args.draws, "cases": lines})
    return 0


def measure(case: Case, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return the rates of a case: tables with a false claim, and true orders that are claimed."""
    false, found, true, tables = 0, 0, 0, 0
    last = _names(case)[-1]
    for _ in range(draws):
        (table,) = measured_tables(_records(case, rng))
        claims = [(pair, c) for pair in table.pairs for c in pair.comparisons if c]
        wrong, before = False, found
        for pair, comparison in claims:
            if comparison.p_holm is None:
                assert not comparison.supported  # it is outside the family
                continue
            if case.differs and last in (pair.label, pair.against):
                true += 1
                above = comparison.difference > 0
                found += comparison.supported and above == (pair.label == last)
                wrong = wrong or (comparison.supported and above != (pair.label == last))
            else:
                wrong = wrong or comparison.supported
        false += wrong
        tables += found > before
    family = sum(c.p_holm is not None for _, c in claims)
    return {
        **dataclasses.asdict(case),
        "comparisons": family,
        "false": false / draws,
        "power": found / true if true else None,
        "tables": tables / draws if true else None,
    }


def _names(case: Case) -> list[str]:
    return ["random", "supervised", *(f"row{i}" for i in range(2, case.rows))][: case.rows]


def _records(case: Case, rng: np.random.Generator) -> list[Record]:
    """Return the records of one table."""
    shape = (case.rows, case.seeds)

    def noise(*more: int) -> np.ndarray:
        if case.heavy:
            return rng.standard_t(3, (*shape, *more)) / math.sqrt(3)
        return rng.standard_normal((*shape, *more))

    spread = np.full((case.rows, 1, 1), _SPREAD)
    spread[0] *= case.spreads[0]
    spread[-1] *= case.spreads[1]
    values = math.sqrt(_CORRELATION) * noise(1) + math.sqrt(1 - _CORRELATION) * noise(len(_METRICS))
    values = 50 + spread * values
    values += case.seed_factor * _SEED_SPREAD * rng.standard_normal((1, case.seeds, 1))
    values[-1] += _DIFFERENCE * case.differs
    missing = set(rng.permutation(case.rows * case.seeds)[: case.missing].tolist())
    records = []
    for row, name in enumerate(_names(case)):
        for seed in range(case.seeds):
            if row * case.seeds + seed in missing:
                continue
            shift = case.seeds * (case.other_seeds and row == case.rows - 1)
            metrics = dict(zip(_METRICS, map(float, values[row, seed]), strict=True))
            records.append(dataclasses.replace(PLAIN, initialization=name, seed=seed + shift,
                                               metrics=metrics))  # fmt: skip
    return records


#: A record of which a study changes some fields.
PLAIN = Record(
    path=Path("record.json"),
    task="study",
    initialization="random",
    seed=1,
    finished=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    config={"DATASETS": {"TRAIN": ["voc_a"], "TEST": ["voc_b"]}},
    matched_sha256="0" * 64,
    weights_sha256=None,
    has_provenance=True,
    expected=1,
    loaded=1,
    max_iter=100,
    ims_per_batch=4,
    forced=False,
    metrics={},
    history=(),
    environment={},
    hardware={},
    origin={"how": "run"},
    cost={},
    errors=None,
    config_name="study_random",
    command=None,
    seconds=None,
    world_size=1,
    pretext=None,
    data=None,
)


# ---- page ----------------------------------------------------------------------------------------


def with_rates(page: str, result: dict[str, Any]) -> str:
    """Return a page with the rates of a result between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{rates(result)}\n{_END}{after}"


def rates(result: dict[str, Any]) -> str:
    """Return the rates as Markdown."""
    sizes = list(
        dict.fromkeys((c["rows"], c["seeds"] - bool(c["missing"])) for c in result["cases"])
    )
    found = {(c["name"], c["rows"], c["seeds"] - bool(c["missing"])): c for c in result["cases"]}
    head = " | ".join(f"{rows} rows, {seeds} seeds" for rows, seeds in sizes)
    lines = [
        f"Share of {result['draws']:,} tables with a false claim, of runs whose truth is known:",
        "",
        f"| runs | {head} |",
        f"|---|{'---|' * len(sizes)}",
    ]
    for name in dict.fromkeys(c["name"] for c in result["cases"]):
        cells = [f"{found[(name, *size)]['false']:.1%}" for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    powers = [found[("one row is better by 1.0", *size)] for size in sizes]
    shares = [
        ("tables that claim at least one of them", [f"{c['tables']:.0%}" for c in powers]),
        ("of them claimed", [f"{c['power']:.0%}" for c in powers]),
        ("comparisons corrected for", [str(c["comparisons"]) for c in powers]),
    ]
    target = found[("one row is better by 1.0", 6, 3)]
    largest = max(c["false"] for c in result["cases"])
    chance = _KNOWN_TO * math.sqrt(_LEVEL * (1 - _LEVEL) / result["draws"])
    lines += [
        "",
        f"The largest of these rates is {largest:.1%}. Where the true rate is {_LEVEL:.0%}, chance "
        f"gives {_LEVEL - chance:.1%} to {_LEVEL + chance:.1%} in 95 of 100 such cases.",
        "",
        "True orders, where one row is better than all others by 1.0 AP, at a spread of 0.2 AP "
        "between seeds:",
        "",
        f"| | {head} |",
        f"|---|{'---|' * len(sizes)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in shares),
        "",
        f"With three seeds and nine comparisons, {target['tables']:.0%} of tables claim at least "
        f"one of the true orders, and {target['power']:.1%} of the single comparisons are claimed.",
    ]
    return "\n".join(lines).replace("%", " %")


if __name__ == "__main__":
    sys.exit(main())
