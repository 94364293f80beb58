"""What a table consists of."""

from dataclasses import dataclass

from moco_d2.benchmark.statistics import (
    Comparison,
)


@dataclass(frozen=True)
class Cell:
    """One metric of one initialization, in percent; a field is None where it does not apply.

    `difference` is to the baseline, `comparison` what is known of it. `published` is the paper's
    value, `gap` the mean minus that, `band` the largest |gap| that chance explains
    (statistics.agreement_band).
    """

    metric: str
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    difference: float | None = None
    comparison: Comparison | None = None
    highlighted: bool = False
    published: float | None = None
    gap: float | None = None
    band: float | None = None

    @property
    def within(self) -> bool | None:
        """Whether chance explains the gap to the paper; None where nothing can be said."""
        return None if self.band is None or self.gap is None else abs(self.gap) <= self.band


@dataclass(frozen=True)
class Row:
    """One initialization.

    `marks` are names in MARKS and hold for every cell; `paper` labels the published row set beside
    this one.
    """

    label: str
    cells: tuple[Cell, ...]
    marks: tuple[str, ...] = ()
    paper: str | None = None


@dataclass(frozen=True)
class Pair:
    """Row `label` minus row `against`, by metric; None where one of them has no value."""

    label: str
    against: str
    comparisons: tuple[Comparison | None, ...]


@dataclass(frozen=True)
class Table:
    """One task. `footnotes` explain the marks, by name; `notes` are sentences below the table.

    `baseline` labels the row that differences are taken to; `pairs` is what was tested, and
    corrected for its number, together. `head` says what the rows are.
    """

    task: str
    title: str
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    baseline: str | None = None
    pairs: tuple[Pair, ...] = ()
    footnotes: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    head: str = "initialization"
