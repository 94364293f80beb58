"""Evaluated networks as points of the papers' sweeps.

Runs are grouped into studies by all settings that a sweep does not vary, and into points by seed.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_d2.benchmark.records.pretext_records import PretextRecord
from moco_d2.benchmark.statistics import Summary, summarize
from moco_d2.benchmark.sweeps.definitions import END_TO_END, LINEAR, Sweep, X, sweeps

_logger = logging.getLogger(__name__)

#: Seed of the pretraining and seed of the evaluation, which differ between the runs of a point.
Trial = tuple[int, int]

# Runs of one experiment may differ in these keys. Data are compared by the number of images,
# because paths differ between machines.
_FREE = (
    *("SEED", "OUTPUT_DIR", "DATASETS.", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.STEPS"),
    *("MOCO.CHECKPOINT.", "MOCO.KNN.", "MOCO.MONITOR.", "MOCO.COMPILE", "MOCO.CHANNELS_LAST"),
    *("MOCO.REFERENCE_BATCH", "MOCO.DATA.MAX_UNREADABLE", "MOCO.DATA.SHARD"),
)
# Function `setting` replaces these keys by quantities that do not depend on the batch.
_REPLACED = ("SOLVER.BASE_LR", "SOLVER.MAX_ITER", "MOCO.LR_STEP_EVERY", "MOCO.BN_SPLITS")
_OF_THE_BATCH = ("SOLVER.IMS_PER_BATCH", "BatchNorm group", "MOCO.ACCUMULATION")
_RATE_DIGITS = 9
_IMAGENET = {"train_images": 1_281_167, "classes": 1000}


@dataclass(frozen=True)
class Study:
    """Points of one sweep. They differ only in the settings that the sweep varies, and in the seed.

    Attributes:
        sweep: The sweep.
        values: Series -> place -> trial -> top-1 accuracy, percent; places are in order.
        evaluation: Settings of all evaluations, see PretextRecord.
        records: Records of the points.
        untrained: Top-1 accuracies of networks without pretraining, evaluated in the same way.
        notes: Sentences about records that were left out.
    """

    sweep: Sweep
    values: Mapping[str, Mapping[X, Mapping[Trial, float]]]
    evaluation: Mapping[str, Any]
    records: tuple[PretextRecord, ...]
    untrained: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def summary(self, series: str, place: X) -> Summary:
        """Return the summary of a point over seeds."""
        return summarize(self.values[series][place].values())

    @property
    def title(self) -> str:
        """Network, data and number of runs per point: ``ResNet-18, generated_images, n = 3``."""
        runs = [len(trials) for of in self.values.values() for trials in of.values()]
        n = f"{min(runs)}" if min(runs) == max(runs) else f"{min(runs)} to {max(runs)}"
        data = self.records[0].content["data"]
        name = data["name"] or f"{data['classes']} classes"
        return f"{self.evaluation['architecture']}, {name}, n = {n}"

    @property
    def on_the_papers_scale(self) -> bool:
        """Whether the numbers have the paper's scale: ImageNet, ResNet-50, linear protocol."""
        data, network = self.evaluation["data"], self.evaluation["architecture"]
        return (
            self.sweep.paper_label == LINEAR
            and self.evaluation["protocol"] == "linear"
            and network == "ResNet-50"
            and all(data.get(key) == value for key, value in _IMAGENET.items())
        )


def setting(record: PretextRecord) -> dict[str, Any]:
    """Return the settings that define the experiment of a pretraining.

    Learning rates are scaled to 256 images (linear rule), and lengths are in images. No setting
    depends on the number of processes.
    """
    config = record.config
    batch, passes = config["SOLVER.IMS_PER_BATCH"], max(config["MOCO.ACCUMULATION"], 1)
    own = {k: v for k, v in config.items() if not k.startswith(_FREE) and k not in _REPLACED}
    in_epochs = config["MOCO.EPOCHS"] > 0
    return {
        **own,
        "rate for 256 images": round(config["SOLVER.BASE_LR"] * 256 / batch, _RATE_DIGITS),
        "images seen": None if in_epochs else config["SOLVER.MAX_ITER"] * batch,
        "images between decays": config["MOCO.LR_STEP_EVERY"] * batch,
        "BatchNorm group": batch / passes / (record.processes or 1) / config["MOCO.BN_SPLITS"],
        "images": record.images,
    }


def studies(records: Iterable[PretextRecord]) -> list[Study]:
    """Return every sweep that has two points to compare among `records`, in the papers' order.

    Networks of other projects than tools/pretrain.py belong to no sweep.
    """
    records = list(records)
    return [study for sweep in sweeps() for study in _studies(sweep, records)]


def _studies(sweep: Sweep, records: list[PretextRecord]) -> Iterable[Study]:
    groups: dict[str, list[tuple[PretextRecord, str, X, str | None]]] = {}
    for record in records:
        placed = _placed(sweep, record)
        if placed is not None:
            series, place, common, batch = placed
            groups.setdefault(common, []).append((record, series, place, batch))
    for group in groups.values():
        # The batch of an end-to-end run is K, so such runs belong to every batch of the others.
        known = dict.fromkeys(b for *_, b in group if b is not None)
        batches: list[str | None] = [*known] or [None]
        for batch in batches:
            members = [(r, s, x) for r, s, x, b in group if b in (None, batch)]
            study = _study(sweep, members, records)
            if _comparable(study):
                yield study


def _placed(sweep: Sweep, record: PretextRecord) -> tuple[str, X, str, str | None] | None:
    """Return series, place, and the settings that must agree as text: of all runs, of the batch."""
    if not record.config or record.config.get("MOCO.PRETEXT") != "moco":
        return None
    try:
        series_and_place = sweep.place(record)
        if series_and_place is None:
            return None
        rest = {k: v for k, v in setting(record).items() if k not in sweep.varied}
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        _logger.warning(
            "left out %s: config of its pretraining is damaged (%r)", record.path, error
        )
        return None
    batch: str | None = ""
    if sweep.batch_is_dictionary:
        of_batch = {key: rest.pop(key) for key in _OF_THE_BATCH}
        batch = None if series_and_place[0] == END_TO_END else _text(of_batch)
    return *series_and_place, _text([record.evaluation, rest]), batch


def _text(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)


def _study(
    sweep: Sweep, members: list[tuple[PretextRecord, str, X]], everyone: list[PretextRecord]
) -> Study:
    counted: dict[tuple[Any, ...], tuple[PretextRecord, str, X]] = {}
    notes = []
    for record, series, place in sorted(members, key=lambda m: m[0].started):
        key: tuple[Any, ...] = (series, place, record.seed, record.evaluation_seed)
        if record.seed < 0:  # a seed from the clock: each run is a new one
            key += (record.content["checkpoint"]["sha256"],)
        older = counted.pop(key, None)
        if older is not None:
            notes.append(
                f"{series}, {place}, seed {record.seed}: two results; the newer "
                f"({record.path}) counts, {older[0].path} does not."
            )
        counted[key] = (record, series, place)
    values: dict[str, dict[X, dict[Trial, float]]] = {}
    for series in _in_order(sweep, {s for _, s, _ in counted.values()}):
        own = [(r, x) for r, s, x in counted.values() if s == series]
        for place in sorted({x for _, x in own}, key=lambda x: order_of(sweep, x)):
            seeded = sorted(
                ((r.seed, r.evaluation_seed), r.top1) for r, x in own if x == place and r.seed >= 0
            )
            clock = [r.top1 for r, x in own if x == place and r.seed < 0]
            # Trials without a seed get keys that no other point has.
            trials = dict(seeded) | {(-1 - i, id(own)): top1 for i, top1 in enumerate(clock)}
            values.setdefault(series, {})[place] = trials
    evaluation = members[0][0].evaluation
    untrained = [r.top1 for r in everyone if r.is_random and r.evaluation == evaluation]
    kept = tuple(record for record, *_ in counted.values())
    return Study(sweep, values, evaluation, kept, tuple(untrained), tuple(notes))


def _in_order(sweep: Sweep, series: set[str]) -> list[str]:
    """Return the series, those of the paper first, in its order."""
    papers = list(sweep.points())
    return sorted(series, key=lambda s: (papers.index(s) if s in papers else len(papers), s))


def order_of(sweep: Sweep, place: X) -> tuple[int, float, str]:
    """Return a sort key of places: numbers by value, categories in order, unknown ones last."""
    if not isinstance(place, str):
        return 0, place, ""
    try:
        return 0, float(place), ""
    except ValueError:
        known = place in sweep.categories
        return 1, sweep.categories.index(place) if known else len(sweep.categories), place


def _comparable(study: Study) -> bool:
    places = [set(points) for points in study.values.values()]
    shared = any(one & other for i, one in enumerate(places) for other in places[:i])
    return shared or any(len(points) > 1 for points in places)
