"""The record that every fine-tuning run leaves: everything that a table needs or a reader may want
to verify.

moco_d2.records.run_schema.RunRecord defines its fields.
"""

import dataclasses
import datetime
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from msgspec import UNSET

from moco_d2.config.plain import matched_sha256, to_plain
from moco_d2.engine.resumed_config import Change, read_changes
from moco_d2.errors import UserError
from moco_d2.files import sha256, sha256_of_json, write_json
from moco_d2.records.environment import hardware, versions
from moco_d2.records.image_matches import PER_IMAGE_FILE, PerImage, write_per_image
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
    PerImageFile,
    Preflight,
    PreflightFinding,
    ResumeChange,
    Run,
    RunRecord,
    Schedule,
    Weights,
)
from moco_d2.records.run_schema import Coverage as CoverageCounts
from moco_d2.transfer.preflight.findings import Finding
from moco_d2.transfer.resume_checks import changes_of_run, check_record, check_same_run
from moco_d2.transfer.weights import Coverage

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@dataclasses.dataclass
class RunRecorder:
    """Collects the record during a run. Its state is part of checkpoints, because the process that
    resumes a run does not know how the run started.

    Attributes:
        config_file: Name of the config at the start, ``voc_C4_moco.yaml``.
        cfg: The config as it runs in this process.
        schedule: The result of hardware_scaling.scale_to_hardware.
        findings: Preflight findings that --force overruled, at the start or at any resume.
        weights: The result of weights.describe_weights at the start (the file may be gone later).
        coverage: Which of the pretrained tensors arrived.
        started: Time at which the run began.
        seconds_before: Seconds that the run had taken before it was resumed.
        evaluation_seconds: Duration of the last evaluation, if it was timed.
        errors: AP50 lost to each kind of error, by test set, if it was computed.
        command: The command line, if there was one.
        train_images: Number of images in the training set, without those that were left out.
        test_images: Number of images of each test set, by name.
        changes: The settings that changed when the run was resumed.
        per_image: The result of build.per_image for the last evaluation.
        data: Fingerprints of the content of DATASETS.TRAIN and DATASETS.TEST, by these keys.
    """

    config_file: str
    cfg: "CfgNode"
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
    per_image: Mapping[str, tuple[Mapping[str, PerImage], list[str]]] = dataclasses.field(
        default_factory=dict
    )
    changes: list[Change] = dataclasses.field(default_factory=list)
    data: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._resumed = self.started
        self._before: dict[str, Any] | None = None
        self._data_before: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the values that a resumed run cannot find out, as plain types."""
        return {
            "config_file": self.config_file,
            "config": to_plain(self.cfg),
            "changes": [dataclasses.asdict(change) for change in self.changes],
            "data": dict(self.data),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "weights": self.weights,
            "coverage": dataclasses.asdict(self.coverage) if self.coverage else None,
            "started": self.started.isoformat(),
            "seconds": self._seconds(_now()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that state_dict returned, and keep the findings of this process, too.

        Raises:
            UnusableError: If an entry cannot be used.
            UserError: If the run began with another task, seed or weights.
        """
        check_record(state)
        check_same_run(self.cfg, self.weights, state)
        # Both are absent from a checkpoint of an older version.
        self._before, self._data_before = state.get("config"), state.get("data", {})
        self.changes = read_changes(state.get("changes", []), "record.changes")
        self.config_file = state.get("config_file", self.config_file)
        before = [Finding(**finding) for finding in state["findings"]]
        self.findings = before + [f for f in self.findings if f not in before]
        self.weights = state["weights"]
        if state["coverage"]:
            self.coverage = Coverage(
                state["coverage"]["expected"], tuple(state["coverage"]["missing"])
            )
        self.started = datetime.datetime.fromisoformat(state["started"])
        self.seconds_before = state["seconds"]

    def note_changes(self, iteration: int) -> None:
        """Warn about the settings and the data that differ from those of the resumed checkpoint,
        and keep them for the record. A dataset may be at another path.

        Args:
            iteration: The number of iterations that have been trained.
        """
        if self._before is None:
            logger.warning(
                "the checkpoint does not hold its config, so nobody can tell whether it is resumed "
                "with the same settings"
            )
            return
        found = changes_of_run(
            (self._before, self._data_before), (to_plain(self.cfg), self.data), iteration
        )
        for change in found:
            logger.warning("resuming after %d iterations with %s", iteration, change)
        self.changes += found

    def _write_per_image(self) -> dict[str, PerImageFile]:
        files = {}
        for i, (test_set, (outputs, names)) in enumerate(self.per_image.items()):
            path = Path(self.cfg.OUTPUT_DIR) / (f"per_image_{i}.npz" if i else PER_IMAGE_FILE)
            digest = hashlib.sha256("\n".join(names).encode()).digest()
            try:
                write_per_image(path, outputs, digest)
                files[test_set] = PerImageFile(path.name, sha256(path), path.stat().st_size)
            except (OSError, UserError) as error:  # the numbers of the run do not depend on it
                logger.warning("%s is not kept: %s", path, error)
        return files

    def _seconds(self, until: datetime.datetime) -> float:
        return self.seconds_before + (until - self._resumed).total_seconds()

    def write(self, metrics: dict[str, Any]) -> Path:
        """Write OUTPUT_DIR/record.json for a finished run.

        Args:
            metrics: Results of the evaluation, ``{"bbox": {"AP": ...}}`` in percent; with several
                test sets, one such dict per name.
        """
        cfg, finished = self.cfg, _now()
        coverage = self.coverage or Coverage(0, ())
        # Path.stem would cut a name without the suffix, such as lvis_v0.5_FPN_1x_moco, at its dot.
        name = Path(self.config_file).name.removesuffix(".yaml")
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
            data=Data(
                train_images=self.train_images,
                test_images=self.test_images,
                train_content=self.data.get("DATASETS.TRAIN", UNSET),
            ),
            weights=_weights(self.weights) if self.weights else None,
            coverage=CoverageCounts(expected=coverage.expected, loaded=coverage.loaded),
            schedule=Schedule(**self.schedule),
            changes=[ResumeChange(**dataclasses.asdict(change)) for change in self.changes],
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
            per_image=self._write_per_image(),
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
    """Copy field by field, because the checkpoint of a resumed run may hold more fields."""
    return Weights(
        file=weights["file"], sha256=weights["sha256"], provenance=weights.get("provenance")
    )


def _grouped(metrics: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return ``{"bbox": {"AP": 12.3}}`` with None for NaN. With several test sets, the names are
    ``voc_2007_test/bbox`` and so on, as Detectron2 writes them to metrics.json.
    """
    grouped: dict[str, dict[str, float | None]] = {}
    for name, values in metrics.items():
        if any(isinstance(value, dict) for value in values.values()):
            grouped |= {f"{name}/{group}": inner for group, inner in _grouped(values).items()}
        else:
            grouped[name] = _percentages({str(k): percentage(float(v)) for k, v in values.items()})
    return grouped


def _percentages(metrics: dict[str, Any]) -> dict[str, Any]:
    """Replace values above 100 by None: one such number would keep the whole record, of a run that
    may have taken days, out of the tables.
    """
    wrong = [k for k, v in metrics.items() if k != "iteration" and v is not None and v > 100]
    if wrong:
        logger.warning(
            "left out of the record, because these are not percentages: %s", ", ".join(wrong)
        )
    return {**metrics, **dict.fromkeys(wrong)}


def _peak_memory(device: str) -> dict[str, Any]:
    """Return the peak memory of this process: torch's memory on a GPU, or the resident set on a CPU
    (Linux only).
    """
    if torch.device(device).type == "cuda":
        gib = torch.cuda.max_memory_allocated() / 2**30
        return {"peak_memory_gib": round(gib, 3), "peak_memory_of": "gpu"}
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    for line in lines:
        # getrusage's ru_maxrss is no alternative: it includes the memory of the parent process.
        if line.startswith("VmHWM:"):
            gib = int(line.split()[1]) / 2**20  # KiB
            return {"peak_memory_gib": round(gib, 3), "peak_memory_of": "process"}
    return {"peak_memory_gib": None, "peak_memory_of": None}


def _environment() -> dict[str, str]:
    environment = versions("fvcore", "pycocotools", "faster-coco-eval", "hotcoco")
    import detectron2

    from moco_d2.plugin import compat
    from moco_d2.plugin.evaluators import USED_EVALUATORS

    if USED_EVALUATORS:
        environment["evaluated by"] = ", ".join(sorted(USED_EVALUATORS))
    operators = "with" if compat.has_compiled_operators() else "without"
    environment["detectron2"] = f"{detectron2.__version__} {operators} compiled operators"
    return environment
