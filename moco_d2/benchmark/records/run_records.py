"""A reader of ``record.json``, which every fine-tuning run writes to its output folder."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from moco_d2.benchmark.records.design import (
    DEFAULT,
    Declaration,
    Declarations,
    fingerprint_of,
)
from moco_d2.benchmark.records.files import collect, read_json
from moco_d2.config.plain import TRIAL
from moco_d2.errors import UserError
from moco_d2.records.parsing import parse
from moco_d2.records.run_schema import RECORD_FILE, RunRecord, Weights, upgrade

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One finished fine-tuning run.

    Metrics are in percent and have the keys of Detectron2's ``metrics.json``, e.g. ``bbox/AP50``.
    A metric that was NaN is None. `images` is the number of images that the training sees:
    iterations x images per batch. `pretext` is the pretext in the provenance of the weights, if
    tools/pretrain.py made them. `command` is the command line, `seconds` the duration of the run
    without pauses. `data` has the numbers of images, if recorded. For `origin`, `cost` and
    `errors` see RunRecord. `test_set` is the only test set whose results this record has, if the
    run has several; see test_sets.by_test_set. `started` is None for an imported run.
    `batchnorm_images` is the number of images of one
    BatchNorm batch; None if it is frozen or not recorded. `declaration` is what the suite of the
    run declares, as its folder says now; for `noted_design` see design.py.
    """

    path: Path
    task: str
    initialization: str
    seed: int
    finished: datetime
    config: Mapping[str, Any]
    matched_sha256: str
    weights_sha256: str | None
    has_provenance: bool
    expected: int
    loaded: int
    max_iter: int
    ims_per_batch: int
    forced: bool
    metrics: Mapping[str, float | None]
    history: tuple[Mapping[str, float | None], ...]
    environment: Mapping[str, str]
    hardware: Mapping[str, Any]
    origin: Mapping[str, str | None]
    cost: Mapping[str, Any]
    errors: Mapping[str, Mapping[str, float | None]] | None
    config_name: str
    command: str | None
    seconds: float | None
    world_size: int | None
    pretext: str | None
    data: Mapping[str, Any] | None
    changes: tuple[Mapping[str, Any], ...] = ()
    batchnorm_images: int | None = None
    test_set: str | None = None
    declaration: Declaration | None = None
    noted_design: str | None = None
    started: datetime | None = None

    @property
    def declared(self) -> str:
        """When the suite of the run declared its design: "" (never), "beforehand", "after" the
        start of the run, "by hand" (somebody edited it), "unknown", "other" (the run started under
        another one) or "missing" (it is gone).
        """
        declaration, noted = self.declaration, self.noted_design
        if declaration is None:
            is_default = noted is None or noted == fingerprint_of(DEFAULT)
            return "" if is_default else "missing"
        # Records have whole seconds. A run that is evaluated again later has another end.
        is_late = (self.started or self.finished) < declaration.declared.replace(microsecond=0)
        known = fingerprint_of(declaration.design), declaration.sha256  # notes had the latter
        if noted is not None and noted not in known and not is_late:
            return "other"
        if declaration.edited:
            return "by hand"
        if noted == known[0]:
            return "beforehand"
        return "after" if is_late else "beforehand" if self.started else "unknown"

    @property
    def images(self) -> int:
        return self.max_iter * self.ims_per_batch

    @property
    def datasets_train(self) -> tuple[str, ...]:
        return tuple(self.config["DATASETS"]["TRAIN"])

    @property
    def datasets_test(self) -> tuple[str, ...]:
        return (self.test_set,) if self.test_set else tuple(self.config["DATASETS"]["TEST"])


def read_records(paths: Iterable[str | Path], *, required: bool = True) -> list[Record]:
    """Read all valid run records among files and, recursively, folders; each file once.

    A damaged record, or one that does not follow the schema, is named in a warning and left out.
    Records of another ``kind`` belong to other tools and are skipped, and so are trials of learning
    rates (runs/tuning.py). A run without a test set has
    no metrics: it is named in a warning and left out, too.

    Raises:
        UserError: If a path does not exist, a declaration beside the records is damaged, or if
            `required` and there is no valid record.
    """
    paths = list(paths)
    known: dict[bytes, Any] = {}
    records, left_out = collect(paths, RECORD_FILE, lambda path: _read_record(path, known))
    if required and not records:
        raise UserError(
            f"no {'valid ' if left_out else ''}{RECORD_FILE} with metrics under "
            f"{', '.join(map(str, paths))}; "
            "fine-tune first: tools/train_net.py --config-file ... writes one to its OUTPUT_DIR"
        )
    beside = Declarations()
    return [
        replace(r, declaration=beside.of(r.path), noted_design=beside.noted(r.path))
        for r in records
    ]


def read_content(path: Path) -> dict[str, Any] | None:
    """Return the content of a run record in the newest version; None if it is of another kind.

    Unlike RunRecord, the content also has unknown fields.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged, or of an unknown version.
    """
    pair = _read(path)
    return None if pair is None else pair[0]


def _read(path: Path) -> tuple[dict[str, Any], RunRecord] | None:
    content = read_json(path)
    if content.get("kind", "transfer") != "transfer":
        return None
    version, content = content.get("schema_version"), upgrade(content)
    return content, parse(content, RunRecord, f"version {version} record")


def _read_record(path: Path, known: dict[bytes, Any]) -> Record | None:
    pair = _read(path)
    if pair is None:
        return None
    if not pair[1].metrics:
        _logger.warning(
            "left out %s: it has no metrics, because its run had no test set; evaluate the run: "
            "tools/train_net.py ... --resume DATASETS.TEST NAME",
            path,
        )
        return None
    resolved = pair[1].config.resolved
    if isinstance(moco := resolved.get("MOCO"), dict) and moco.get("TUNED") == TRIAL:
        return None  # it has chosen a learning rate
    # Runs of a suite differ in few sections of their configs. Equal sections are one object in
    # memory, because thousands of records would otherwise take gigabytes.
    config = {
        name: known.setdefault(msgspec.json.encode(section), section)
        for name, section in resolved.items()
    }
    return _record(path, pair[1], config)


def to_record(path: Path, content: dict[str, Any]) -> Record:
    """Return the record with this content, which comes from read_content.

    Raises:
        ValueError: If the start or the end of the run is not a valid time.
    """
    record = parse(content, RunRecord, "run record")
    return _record(path, record, record.config.resolved)


def _record(path: Path, content: RunRecord, config: Mapping[str, Any]) -> Record:
    run, weights, schedule = content.run, content.weights, content.schedule
    return Record(
        path=path,
        task=run.task,
        initialization=run.initialization,
        seed=run.seed,
        finished=_time(run.finished, "finished"),
        config=config,
        matched_sha256=content.config.matched_sha256,
        weights_sha256=weights.sha256 if weights else None,
        has_provenance=bool(weights and weights.provenance),
        pretext=_pretext(weights),
        expected=content.coverage.expected,
        loaded=content.coverage.loaded,
        max_iter=schedule.max_iter,
        ims_per_batch=schedule.ims_per_batch,
        forced=content.preflight.forced,
        metrics={
            f"{group}/{name}": value
            for group, values in content.metrics.items()
            for name, value in values.items()
        },
        history=tuple(content.history),
        environment=content.environment,
        hardware=_plain(content.hardware),
        origin=_plain(content.origin),
        cost=_plain(content.cost),
        errors={name: _plain(lost) for name, lost in content.errors.items()}
        if content.errors is not None
        else None,
        config_name=run.config_name,
        command=run.command or None,
        seconds=run.seconds,
        world_size=schedule.world_size,
        data=_plain(content.data) if content.data else None,
        changes=tuple(_plain(change) for change in content.changes),
        batchnorm_images=schedule.batchnorm_images or None,
        started=_time(run.started, "started") if run.started else None,
    )


def _plain(part: msgspec.Struct) -> dict[str, Any]:
    return msgspec.to_builtins(part)


def _pretext(weights: Weights | None) -> str | None:
    pretraining = weights.provenance.get("pretraining") if weights and weights.provenance else None
    pretext = pretraining.get("pretext") if isinstance(pretraining, dict) else None
    return pretext if isinstance(pretext, str) else None


def _time(text: str, field: str) -> datetime:
    """Return an aware time from ISO 8601; a time without a zone counts as UTC."""
    if text.endswith("Z"):  # Python 3.10 cannot read it
        text = text[:-1] + "+00:00"
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"$.run.{field} must be an ISO 8601 time, got {text!r:.40}") from error
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
