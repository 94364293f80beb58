"""The parts of a table."""

from dataclasses import dataclass

from moco_d2.benchmark.records.design import DEFAULT, Design
from moco_d2.benchmark.statistics import Comparison


@dataclass(frozen=True)
class Cell:
    """One metric of one initialization, in percent. A field is None if it does not apply.

    `difference` is the difference to the baseline and `comparison` its test. `published` is the
    paper's value, `gap` the mean minus the published value, and `band` the largest |gap| that
    chance explains (statistics.agreement_band).
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
        """Whether chance explains the gap to the paper; None without a band."""
        return None if self.band is None or self.gap is None else abs(self.gap) <= self.band


@dataclass(frozen=True)
class Row:
    """One initialization.

    `marks` are names in MARKS that apply to every cell. `paper` is the label of the published row
    that stands beside this one, and `paper_marks` are the reasons why its gap has no verdict.
    """

    label: str
    cells: tuple[Cell, ...]
    marks: tuple[str, ...] = ()
    paper: str | None = None
    paper_marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Row `label` minus row `against` for each metric; None if one of them has no value."""

    label: str
    against: str
    comparisons: tuple[Comparison | None, ...]


@dataclass(frozen=True)
class Table:
    """One task. `footnotes` are pairs of a mark and its text, `notes` sentences below the table.

    `baseline` is the label of the row that differences are taken to. `pairs` are all comparisons
    that were tested and corrected together. `head` is the title of the column with the row labels.
    `text` is one more table of text below, whose first row has the titles. `design` is what the
    suite of the runs declares, and `declared` says when: "" (nothing is declared), "beforehand",
    "after 3 of 15 runs", "by hand" (somebody edited it), "unknown for 3 of 15 runs" (whose
    start is not recorded), "differently" (by several suites), "missing for 3 of 15 runs" (its file
    is gone) or "not that of 3 of 15 runs" (they started under another one). With the last three,
    `design` is the default.
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
    text: tuple[tuple[str, ...], ...] = ()
    design: Design = DEFAULT
    declared: str = ""

    def comparison(self, label: str, against: str, metric: str) -> Comparison | None:
        """Return row `label` minus row `against`, in whichever order the pair was tested.

        The result is None if the pair was not compared, or one of them has no value.
        """
        column = self.metrics.index(metric)
        for pair in self.pairs:
            found = pair.comparisons[column]
            if (pair.label, pair.against) == (label, against):
                return found
            if (pair.label, pair.against) == (against, label) and found is not None:
                return found.reversed()
        return None
