"""The record that every fine-tuning run leaves: all that a table needs, and all that a reader may
doubt.

Its form is moco_d2.records.run_schema.RunRecord, with which it is read, too.
"""

import dataclasses
import datetime
import logging
from pathlib import Path
from typing import Any

import msgspec
import torch

from moco_d2.config.plain import matched_sha256, to_plain
from moco_d2.files import sha256_of_json, write_json
from moco_d2.records.environment import hardware, versions
from moco_d2.records.metrics_json import (
    finite,
    history,
    percentage,
    read_log,
    seconds_per_iteration,
)
from moco_d2.records.run_schema import (
    RECORD_FILE,
    SCHEMA_VERSION,
    BoxErrors,
    Config,
    Cost,
    Data,
    Hardware,
    Origin,
    Preflight,
    PreflightFinding,
    Run,
    RunRecord,
    Schedule,
    Weights,
)
from moco_d2.records.run_schema import Coverage as CoverageCounts
from moco_d2.transfer.preflight.findings import Finding
from moco_d2.transfer.resume_checks import check_record
from moco_d2.transfer.weights import Coverage

logger = logging.getLogger(__name__)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@dataclasses.dataclass
class RunRecorder:
    """Collects the record while a run goes on; its state is part of checkpoints, as what the run
    began with is not known to the process that resumes it.

    Attributes:
        config_file: name of the config, ``voc_C4_moco.yaml``.
        schedule: from schedule.scale_to_hardware.
        findings: preflight findings that were overruled, by any of its processes.
        weights: from weights.describe_weights, at the start: the file may be gone at the end.
        coverage: what of them arrived.
        started: when the run began.
        seconds_before: that it had run when it was resumed.
        evaluation_seconds: that the last evaluation took, if it was timed.
        errors: by test set, what AP50 is lost to, if that was found out.
        command: as it was typed, if it was.
        train_images: in the training set, those left out not counted; test_images: by test set.
    """

    config_file: str
    schedule: dict[str, Any]
    findings: list[Finding]
    weights: dict[str, Any] | None
    coverage: Coverage | None = None
    started: datetime.datetime = dataclasses.field(default_factory=_now)
    seconds_before: float = 0.0
    evaluation_seconds: float | None = None
    errors: dict[str, dict[str, float]] | None = None
    command: str | None = None
    train_images: int | None = None
    test_images: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._resumed = self.started

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run cannot find out, as plain types."""
        return {
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "weights": self.weights,
            "coverage": dataclasses.asdict(self.coverage) if self.coverage else None,
            "started": self.started.isoformat(),
            "seconds": self._seconds(_now()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what state_dict gave; findings of today are added.

        Raises:
            UnusableError: an entry cannot be used.
        """
        check_record(state)
        before = [Finding(**finding) for finding in state["findings"]]
        self.findings = before + [f for f in self.findings if f not in before]
        self.weights = state["weights"]
        if state["coverage"]:
            self.coverage = Coverage(
                state["coverage"]["expected"], tuple(state["coverage"]["missing"])
            )
        self.started = datetime.datetime.fromisoformat(state["started"])
        self.seconds_before = state["seconds"]

    def _seconds(self, until: datetime.datetime) -> float:
        return self.seconds_before + (until - self._resumed).total_seconds()

    def write(self, cfg: Any, metrics: dict[str, Any]) -> Path:
        """Write OUTPUT_DIR/record.json for a finished run.

        Args:
            cfg: its config.
            metrics: what its evaluation gave, ``{"bbox": {"AP": ...}}`` in percent; of several
                test sets, one such by name.
        """
        finished = _now()
        coverage = self.coverage or Coverage(0, ())
        name = Path(self.config_file).name.removesuffix(".yaml")  # may be lvis_v0.5_..._moco
        plain = to_plain(cfg)
        results = _grouped(metrics)
        log = read_log(Path(cfg.OUTPUT_DIR) / "metrics.json")
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            kind="transfer",
            origin=Origin(how="trained", source=None),
            run=Run(
                config_name=name,
                task=cfg.MOCO.TASK,
                initialization=name.removeprefix(f"{cfg.MOCO.TASK}_"),
                seed=cfg.SEED,
                started=self.started.isoformat(timespec="seconds"),
                finished=finished.isoformat(timespec="seconds"),
                seconds=round(self._seconds(finished), 1),
                command=self.command,
            ),
            config=Config(
                resolved=plain,
                sha256=sha256_of_json(plain),
                matched_sha256=matched_sha256(plain),
            ),
            data=Data(train_images=self.train_images, test_images=self.test_images),
            weights=_weights(self.weights) if self.weights else None,
            coverage=CoverageCounts(expected=coverage.expected, loaded=coverage.loaded),
            schedule=Schedule(**self.schedule),
            preflight=Preflight(
                forced=bool(self.findings),
                findings=[PreflightFinding(**dataclasses.asdict(f)) for f in self.findings],
            ),
            environment=_environment(),
            hardware=Hardware(**hardware(cfg.MODEL.DEVICE)),
            cost=Cost(
                seconds_per_iteration=seconds_per_iteration(log),
                evaluation_seconds=self.evaluation_seconds,
                **_peak_memory(cfg.MODEL.DEVICE),
            ),
            metrics=results,
            history=[_percentages(evaluation) for evaluation in history(log, results)],
            errors={
                name: BoxErrors(**{kind: finite(points) for kind, points in lost.items()})
                for name, lost in self.errors.items()
            }
            if self.errors is not None
            else None,
        )
        path = Path(cfg.OUTPUT_DIR) / RECORD_FILE
        write_json(path, msgspec.to_builtins(record))
        return path


def _weights(weights: dict[str, Any]) -> Weights:
    """Field by field: a checkpoint, from which a resumed run has them, may hold more."""
    return Weights(
        file=weights["file"], sha256=weights["sha256"], provenance=weights.get("provenance")
    )


def _grouped(metrics: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """``{"bbox": {"AP": 12.3}}`` with NaN as None; of several test sets, ``{"voc_2007_test/bbox":
    ...}``, as Detectron2 names them in metrics.json.
    """
    grouped: dict[str, dict[str, float | None]] = {}
    for name, values in metrics.items():
        if any(isinstance(value, dict) for value in values.values()):
            grouped |= {f"{name}/{group}": inner for group, inner in _grouped(values).items()}
        else:
            grouped[name] = _percentages({str(k): percentage(float(v)) for k, v in values.items()})
    return grouped


def _percentages(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics with None in place of what is no percentage: one such number would keep the whole
    record, of a run that may have taken days, out of the tables.
    """
    wrong = [k for k, v in metrics.items() if k != "iteration" and v is not None and v > 100]
    if wrong:
        logger.warning("left out of the record, as no percentages: %s", ", ".join(wrong))
    return {**metrics, **dict.fromkeys(wrong)}


def _peak_memory(device: str) -> dict[str, Any]:
    """Of this process: what torch has held on its GPU; on a CPU, its resident set (Linux only)."""
    if torch.device(device).type == "cuda":
        gib = torch.cuda.max_memory_allocated() / 2**30
        return {"peak_memory_gib": round(gib, 3), "peak_memory_of": "gpu"}
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    for line in lines:
        # Not getrusage's: that begins with the memory of the process that started this one.
        if line.startswith("VmHWM:"):
            gib = int(line.split()[1]) / 2**20  # KiB
            return {"peak_memory_gib": round(gib, 3), "peak_memory_of": "process"}
    return {"peak_memory_gib": None, "peak_memory_of": None}


def _environment() -> dict[str, str]:
    found = versions("fvcore", "pycocotools", "faster-coco-eval")
    import detectron2

    from moco_d2.plugin import compat

    operators = "with" if compat.has_compiled_operators() else "without"
    found["detectron2"] = f"{detectron2.__version__} {operators} compiled operators"
    return found
