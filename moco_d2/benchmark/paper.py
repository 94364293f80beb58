"""The published tables of ``paper_tables.yaml``, whose head documents their fields."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from moco_d2.benchmark.records.matching import BASELINE
from moco_d2.benchmark.records.results import Record
from moco_d2.errors import UserError, closest

# The C parser is a safe loader too, and reads the file ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Setting:
    """The data and schedule behind a published table."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    iterations: int
    images_per_batch: int

    def matches(self, train: Sequence[str], test: Sequence[str], images: int) -> bool:
        """Whether a run used the same data and as many images (iterations x images a batch)."""
        return (
            set(train) == set(self.train)
            and set(test) == set(self.test)
            and images == self.iterations * self.images_per_batch
        )


@dataclass(frozen=True)
class PaperRow:
    """One published row. `values` follow the table's metrics; None where nothing is printed."""

    label: str
    values: tuple[float | None, ...]
    initializations: tuple[str, ...] = ()
    baseline: bool = False
    unconfirmed: bool = False


@dataclass(frozen=True)
class PaperTable:
    """One published table.

    `task` and `setting` are None where no run is set beside it, `trials` where the source does not
    say. `std` is, for each metric, the published standard deviation of single runs; empty where
    none is.
    """

    name: str
    title: str
    source: str
    metrics: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    task: str | None = None
    setting: Setting | None = None
    trials: int | None = None
    std: tuple[float, ...] = ()
    std_source: str = ""
    spread_remark: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def baseline(self) -> PaperRow | None:
        """The row that differences are taken to."""
        marked = [row for row in self.rows if row.baseline]
        supervised = [row for row in self.rows if "supervised" in row.initializations]
        return next(iter(marked + supervised), None)

    @property
    def std_text(self) -> str:
        """``0.2 / 0.2 / 0.4, which the README expects``."""
        return f"{' / '.join(map(str, self.std))}, {self.std_source}"


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Every table, in file order."""
    text = resources.files("moco_d2.benchmark").joinpath("paper_tables.yaml").read_text("utf-8")
    content = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe one
    return tuple(_table(name, entry) for name, entry in content.items())


def find_row(task: str, initialization: str) -> tuple[PaperTable, PaperRow] | None:
    """The published row for `initialization` on `task`, from the first table that has one."""
    for table in paper_tables():
        if table.task == task:
            for row in table.rows:
                if initialization in row.initializations:
                    return table, row
    return None


def baseline_of(task: str) -> tuple[str, ...]:
    """Initializations that differences on `task` may be taken to, the paper's choice first."""
    rows = [table.baseline for table in paper_tables() if table.task == task and table.baseline]
    return (*(rows[0].initializations if rows else ()), BASELINE)


def row_beside(
    task: str, initialization: str, runs: Iterable[Record]
) -> tuple[PaperTable, PaperRow] | None:
    """The published row for `runs` of one initialization, if all have its data and schedule."""
    found = find_row(task, initialization)
    if found is None:
        return None
    setting = found[0].setting
    same = setting is not None and all(
        setting.matches(r.datasets_train, r.datasets_test, r.images) for r in runs
    )
    return found if same else None


def tables_named(name: str | None) -> list[PaperTable]:
    """The table `name`, or the tables of the task `name`; None for all.

    Raises:
        UserError: there is none; names the closest.
    """
    tables = [t for t in paper_tables() if name in (None, t.name, t.task)]
    if not tables:
        names = [t.name for t in paper_tables()]
        hint = closest(str(name), names) or f"there are {', '.join(names)}"
        raise UserError(f"no published table for {name!r}; {hint}")
    return tables


def _table(name: str, entry: Mapping[str, Any]) -> PaperTable:
    setting = entry.get("setting")
    if setting is not None:
        setting = Setting(
            train=tuple(setting["train"]),
            test=tuple(setting["test"]),
            iterations=setting["iterations"],
            images_per_batch=setting["images_per_batch"],
        )
    rows = tuple(
        PaperRow(
            **{
                **row,
                "initializations": tuple(row.get("initializations", ())),
                "values": tuple(row["values"]),
            }
        )
        for row in entry["rows"]
    )
    tuples = {key: tuple(entry.get(key, ())) for key in ("metrics", "std", "remarks")}
    return PaperTable(name=name, **{**entry, **tuples, "setting": setting, "rows": rows})
