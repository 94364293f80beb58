"""The sweeps of the papers' pretraining: varied settings, places of runs, and published points.

The place of a run follows from the config in its checkpoint, never from a name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache

from moco_d2.benchmark.paper_tables import PaperTable, tables_named
from moco_d2.benchmark.records.pretext_records import PretextRecord

#: A place on the x axis: a number or a name in Sweep.categories.
X = float | str
#: Series -> place -> accuracy, percent.
Published = Mapping[str, Mapping[X, float]]

#: Numbers from here on are abbreviated. Dictionaries are smaller, datasets are larger.
SHORT_FROM = 100_000
_LARGEST = 1e12  # on any axis
#: Metric of the published points of all sweeps except that of the dataset size.
LINEAR = "ImageNet, linear top-1 (%)"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One of the papers' sweeps.

    Attributes:
        name: Name of the suite, and of the paper's table if there is one.
        title: Title in captions.
        xlabel: Label of the x axis.
        place: Function that returns series and place of a run, or None if it has no place here.
        varied: Keys of `points.setting` that differ between the points.
        source: Source of the published points.
        points: Function that returns the published points.
        categories: Places in their order, if they are not numbers.
        nominal: Whether the places have no order, so no line connects them.
        log: Whether the x axis is logarithmic.
        paper_label: Metric of the published points.
        missing: Series -> place where the paper's run failed -> how it failed.
        batch_is_dictionary: Whether the batch varies too, because it is K in end-to-end runs.
    """

    name: str
    title: str
    xlabel: str
    place: Callable[[PretextRecord], tuple[str, X] | None]
    varied: tuple[str, ...]
    source: str
    points: Callable[[], Published]
    categories: tuple[str, ...] = ()
    nominal: bool = False
    log: bool = False
    paper_label: str = LINEAR
    missing: Mapping[str, Mapping[X, str]] = dataclasses.field(default_factory=dict)
    batch_is_dictionary: bool = False


def _number(value: object) -> float:
    """Return a place on an axis of numbers.

    Raises:
        ValueError: If the config of a record has no positive number there.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _LARGEST:
        raise ValueError(f"a place must be a positive number, got {value!r:.40}")
    return value


# ---- Figure 3 ------------------------------------------------------------------------------------

END_TO_END, MEMORY_BANK, MOCO = "end-to-end", "memory bank", "MoCo"
_MECHANISMS = {"EndToEnd": END_TO_END, "MemoryBank": MEMORY_BANK, "Queue": MOCO}


def _dictionary(record: PretextRecord) -> tuple[str, X] | None:
    config = record.config
    mechanism = _MECHANISMS.get(config["MOCO.DICTIONARY.NAME"])
    if mechanism == END_TO_END:  # the negatives come from one forward pass
        size = config["SOLVER.IMS_PER_BATCH"] // max(config["MOCO.ACCUMULATION"], 1)
        return mechanism, _number(size)
    return (mechanism, _number(config["MOCO.DICTIONARY.SIZE"])) if mechanism else None


# ---- momentum and temperature --------------------------------------------------------------------


def _momentum(record: PretextRecord) -> tuple[str, X] | None:
    if record.config["MOCO.DICTIONARY.NAME"] != "Queue":
        return None
    return MOCO, f"{record.config['MOCO.MOMENTUM']:g}"


def _temperature(record: PretextRecord) -> tuple[str, X] | None:
    mlp = record.config["MOCO.ENCODER.MLP"]
    return "with MLP" if mlp else "without MLP", _number(record.config["MOCO.TEMPERATURE"])


# ---- MoCo v2 -------------------------------------------------------------------------------------

# Place -> (MLP, augmentation, schedule, temperature), row of the paper's table.
_V2_ROWS = {
    "v1": ((False, "v1", "step", 0.07), "MoCo v1 200 epochs"),
    "(a) MLP": ((True, "v1", "step", 0.2), "(a) MLP 200 epochs"),
    "(b) aug+": ((False, "v2", "step", 0.07), "(b) aug+ 200 epochs"),
    "(c) MLP, aug+": ((True, "v2", "step", 0.2), "(c) MLP aug+ 200 epochs"),
    "(d) MLP, aug+, cos": ((True, "v2", "cosine", 0.2), "(d) MLP aug+ cos 200 epochs"),
}
_V2_KEYS = ("MOCO.ENCODER.MLP", "MOCO.AUGMENTATION.NAME", "MOCO.LR_SCHEDULE", "MOCO.TEMPERATURE")
_V2_EPOCHS: dict[X, str] = {200: "(d) MLP aug+ cos 200 epochs", 800: "(e) MLP aug+ cos 800 epochs"}


def _v2_row(record: PretextRecord) -> tuple[str, X] | None:
    values = tuple(record.config[key] for key in _V2_KEYS)
    return next(((MOCO, name) for name, (row, _) in _V2_ROWS.items() if row == values), None)


def _length(record: PretextRecord) -> tuple[str, X] | None:
    config = record.config
    if config["MOCO.EPOCHS"] > 0:
        return MOCO, _number(config["MOCO.EPOCHS"])
    if not record.images:
        return None
    images = config["SOLVER.MAX_ITER"] * config["SOLVER.IMS_PER_BATCH"]
    return MOCO, _number(round(images / record.images, 3))


# ---- dataset size --------------------------------------------------------------------------------

# Numbers of images in MoCo v1, sections 4 and 4.1.
_DATASETS = {
    "MoCo IN-1M": 1_281_167,
    "MoCo IN-14M": 14e6,
    "MoCo YFCC-100M": 100e6,
    "MoCo IG-1B": 940e6,
}


def _size(record: PretextRecord) -> tuple[str, X] | None:
    return (MOCO, _number(record.images)) if record.images else None


# ---- published points ----------------------------------------------------------------------------


def _table(name: str) -> PaperTable:
    return tables_named(name)[0]


def _by_column(name: str, place: Callable[[str], X] = float) -> Callable[[], Published]:
    """Return the points of a table that has one row per series and one column per place."""
    return lambda: {
        row.label: {
            place(metric): value
            for metric, value in zip(_table(name).metrics, row.values, strict=True)
            if value is not None
        }
        for row in _table(name).rows
    }


def _by_row(name: str, rows: Mapping[X, str], metric: str) -> Callable[[], Published]:
    """Return the points of one series from a table that has one row per place."""

    def points() -> Published:
        column = _table(name).metrics.index(metric)
        values = {row.label: row.values[column] for row in _table(name).rows}
        pairs = ((place, values[label]) for place, label in rows.items())
        return {MOCO: {place: value for place, value in pairs if value is not None}}

    return points


def place_name(place: X) -> str:
    """Return the printed name of a place: 4096, 128k, 1.28M, 0.999."""
    if isinstance(place, str):
        return place
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if place >= max(size, SHORT_FROM):
            return f"{place / size:.3g}{letter}"
    return f"{place:g}"


@cache
def sweeps() -> tuple[Sweep, ...]:
    """Return all sweeps in the papers' order."""
    return (
        Sweep(
            "figure_3",
            "Mechanism and dictionary size",
            "dictionary size K",
            _dictionary,
            ("MOCO.DICTIONARY.NAME", "MOCO.DICTIONARY.SIZE"),
            "MoCo v1, Figure 3",
            _by_column("figure_3"),
            log=True,
            batch_is_dictionary=True,
        ),
        Sweep(
            "momentum",
            "Momentum of the key encoder",
            "momentum m",
            _momentum,
            ("MOCO.MOMENTUM",),
            "MoCo v1, section 4.1",
            _by_column("momentum", str),
            categories=_table("momentum").metrics,
            missing={MOCO: {"0": "fails to converge"}},
        ),
        Sweep(
            "temperature",
            "Temperature, without and with the MLP head",
            "temperature",
            _temperature,
            ("MOCO.TEMPERATURE", "MOCO.ENCODER.MLP"),
            "MoCo v2, section 3",
            _by_column("temperature_v2"),
            log=True,
        ),
        Sweep(
            "v2_table_1_pretext",
            "MLP head, aug+ and cosine schedule",
            "",
            _v2_row,
            _V2_KEYS,
            "MoCo v2, Table 1",
            _by_row("linear_v2", {k: row for k, (_, row) in _V2_ROWS.items()}, "top-1"),
            categories=tuple(_V2_ROWS),
            nominal=True,
        ),
        Sweep(
            "pretraining_length",
            "Length of pretraining",
            "epochs",
            _length,
            ("MOCO.EPOCHS", "images seen", "MOCO.LR_STEPS"),
            "MoCo v2, Table 1",
            _by_row("linear_v2", _V2_EPOCHS, "top-1"),
            log=True,
        ),
        Sweep(
            "dataset_size",
            "Size of the pretraining set",
            "images",
            _size,
            ("images", "MOCO.DATA.SHARE"),
            "MoCo v1, Table 4, other sets",
            _by_row("voc07_C4", {v: k for k, v in _DATASETS.items()}, "bbox/AP"),
            log=True,
            paper_label="VOC 2007 detection, AP (%)",
        ),
    )
