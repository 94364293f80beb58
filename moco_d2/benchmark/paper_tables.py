"""The published tables of ``paper_tables.yaml``. The comment at its top explains the fields."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import resources

import msgspec
import yaml

from moco_d2.benchmark.records.matching import BASELINES
from moco_d2.benchmark.records.run_records import Record
from moco_d2.config.load import config_root
from moco_d2.config.safe_yaml import read_config
from moco_d2.errors import UserError, closest

# The C parser is a safe loader too, and ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data and schedule behind a published table."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    iterations: int
    images_per_batch: int

    def matches(self, train: Sequence[str], test: Sequence[str], images: int) -> bool:
        """Return whether a run has the same data and number of images.

        Args:
            train, test: Names of datasets.
            images: Iterations x images per batch.
        """
        return (
            set(train) == set(self.train)
            and set(test) == set(self.test)
            and images == self.iterations * self.images_per_batch
        )


class PaperRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One published row, with one of `values` per metric; None if nothing is printed.

    Runs of `similar` initializations started from other weights of the same kind. They stand beside
    the row with a mark, and without a verdict.
    """

    label: str
    values: tuple[int | float | None, ...]  # int: a count
    initializations: tuple[str, ...] = ()
    similar: tuple[str, ...] = ()
    baseline: bool = False
    unconfirmed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The initializations whose runs stand beside the row."""
        return (*self.similar, *self.initializations)


class PaperTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One published table.

    `task` and `setting` are None if no run is compared with it, and `trials` if the source does not
    say it. `std` is the published standard deviation of single runs for each metric, or empty.
    With `own_rates`, the rows have learning rates of their own.
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
    own_rates: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def baseline(self) -> PaperRow | None:
        """The row that differences are taken to, if any."""
        marked = [row for row in self.rows if row.baseline]
        supervised = [row for row in self.rows if "supervised" in row.names]
        return next(iter(marked + supervised), None)

    @property
    def std_text(self) -> str:
        """The standard deviations with their source: ``0.2 / 0.2 / 0.4, which the README ...``."""
        return f"{' / '.join(map(str, self.std))}, {self.std_source}"


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Return all tables in the order of the file."""
    text = resources.files("moco_d2.benchmark").joinpath("paper_tables.yaml").read_text("utf-8")
    content = yaml.load(text, Loader=_LOADER)  # noqa: S506 - it is a safe loader
    return tuple(
        msgspec.convert({"name": name, **entry}, PaperTable) for name, entry in content.items()
    )


def find_row(task: str, initialization: str) -> tuple[PaperTable, PaperRow] | None:
    """Return the published row of an initialization from the first table that has one.

    Case and hyphens of the name do not count: ``SwAV-800ep`` is ``swav_800ep``.
    """
    plain = _plain(initialization)
    for table in paper_tables():
        if table.task == task:
            for row in table.rows:
                if plain in row.names:
                    return table, row
    return None


def _plain(initialization: str) -> str:
    return initialization.lower().replace("-", "_")


def baseline_of(task: str) -> tuple[str, ...]:
    """Return the initializations that can be the baseline of a task; the paper's comes first."""
    rows = [table.baseline for table in paper_tables() if table.task == task and table.baseline]
    return (*(rows[0].names if rows else ()), *BASELINES)


def row_beside(
    task: str, initialization: str, runs: Iterable[Record]
) -> tuple[PaperTable, PaperRow] | None:
    """Return the published row for runs of one initialization if all match its setting."""
    published = find_row(task, initialization)
    if published is None or (setting := published[0].setting) is None:
        return None
    same = all(setting.matches(r.datasets_train, r.datasets_test, r.images) for r in runs)
    return published if same else None


def marks_beside(
    table: PaperTable, row: PaperRow, initialization: str, runs: Iterable[Record]
) -> Iterator[str]:
    """Yield the names in MARKS of the reasons why runs are not expected to reach a row's values."""
    if _plain(initialization) in row.similar:
        yield "msra_baseline"
    if table.own_rates or any(_has_own_rate(r, table.task) for r in runs):
        yield "own_rate"
    if table.setting and any(
        r.batchnorm_images and r.batchnorm_images < table.setting.images_per_batch for r in runs
    ):
        yield "small_batchnorm"


def _has_own_rate(run: Record, task: str | None) -> bool:
    """Return whether a run has another learning rate per image of a step than its task."""
    solver, wanted = run.config["SOLVER"], _rate_of(task) if task else None
    if wanted is None or "BASE_LR" not in solver:
        return False
    return not math.isclose(solver["BASE_LR"] / run.ims_per_batch, wanted, rel_tol=1e-6)


@cache
def _rate_of(task: str) -> float | None:
    """Return the learning rate of a packaged task per image of a step."""
    file = config_root() / "task" / f"{task}.yaml"
    if not file.is_file():
        return None
    solver = read_config(file)["SOLVER"]
    return float(solver["BASE_LR"] / solver["IMS_PER_BATCH"])


def tables_named(name: str | None) -> list[PaperTable]:
    """Return the table `name`, or the tables of the task `name`; None stands for all tables.

    Raises:
        UserError: If there is no such table. The message has the closest name.
    """
    tables = [t for t in paper_tables() if name in (None, t.name, t.task)]
    if not tables:
        names = [t.name for t in paper_tables()]
        hint = closest(str(name), names) or f"there are {', '.join(names)}"
        raise UserError(f"no published table for {name!r}; {hint}")
    return tables
