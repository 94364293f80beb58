"""The record that every fine-tuning run leaves: all that a table needs, and all that a reader may
doubt.

Schema: SCHEMA in moco_d2/benchmark/results.py, which is also what reads it.
"""

import dataclasses
import datetime
import json
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import moco_d2
from moco_d2.config import matched_sha256, to_plain
from moco_d2.files import sha256_of_json, write_json
from moco_d2.transfer.preflight import Finding
from moco_d2.transfer.weights import Coverage

SCHEMA_VERSION = 1
RECORD_FILE = "record.json"


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
    """

    config_file: str
    schedule: dict[str, Any]
    findings: list[Finding]
    weights: dict[str, Any] | None
    coverage: Coverage | None = None
    started: datetime.datetime = dataclasses.field(default_factory=_now)
    seconds_before: float = 0.0

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
        """Take up what state_dict gave; findings of today are added."""
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
        """Write OUTPUT_DIR/record.json for a finished run with evaluation results `metrics`."""
        finished = _now()
        coverage = self.coverage or Coverage(0, ())
        name = Path(self.config_file).name.removesuffix(".yaml")  # may be lvis_v0.5_..._moco
        plain = to_plain(cfg)
        record = {
            "schema_version": SCHEMA_VERSION,
            "kind": "transfer",
            "run": {
                "config_name": name,
                "task": cfg.MOCO.TASK,
                "initialisation": name.removeprefix(f"{cfg.MOCO.TASK}_"),
                "seed": cfg.SEED,
                "started": self.started.isoformat(timespec="seconds"),
                "finished": finished.isoformat(timespec="seconds"),
                "seconds": round(self._seconds(finished), 1),
            },
            "config": {
                "resolved": plain,
                "sha256": sha256_of_json(plain),
                "matched_sha256": matched_sha256(plain),
            },
            "weights": self.weights,
            "coverage": {"expected": coverage.expected, "loaded": coverage.loaded},
            "schedule": self.schedule,
            "preflight": {
                "forced": bool(self.findings),
                "findings": [dataclasses.asdict(finding) for finding in self.findings],
            },
            "environment": _environment(),
            "hardware": _hardware(cfg.MODEL.DEVICE),
            "metrics": _finite(metrics),
            "history": read_history(Path(cfg.OUTPUT_DIR) / "metrics.json", tuple(metrics)),
        }
        path = Path(cfg.OUTPUT_DIR) / RECORD_FILE
        write_json(path, record)
        return path


def read_history(metrics_file: Path, groups: tuple[str, ...]) -> list[dict[str, Any]]:
    """Evaluations during training, from Detectron2's metrics.json: ``[{"iteration": 99, "bbox/AP":
    12.3, "sem_seg/mIoU": 45.6}, ...]``, NaN as None.

    Args:
        metrics_file: may be absent.
        groups: what evaluations give, ``("bbox", "segm")``; a "/" is in other scalars too.
    """
    if not metrics_file.is_file():
        return []
    prefixes = tuple(f"{group}/" for group in groups)
    history = []
    for line in metrics_file.read_text().splitlines():
        entry = json.loads(line)
        results = {key: value for key, value in entry.items() if key.startswith(prefixes)}
        if results:
            history.append({"iteration": entry["iteration"], **_finite(results)})
    return history


def _finite(value: Any) -> Any:
    """NaN and infinity become None: JSON has neither."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None


def _environment() -> dict[str, str]:
    versions = {"python": platform.python_version(), "moco_d2": moco_d2.__version__}
    for package in ("torch", "torchvision", "numpy", "fvcore", "pycocotools", "faster-coco-eval"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    import detectron2

    from moco_d2 import compat

    operators = "with" if compat.has_compiled_operators() else "without"
    versions["detectron2"] = f"{detectron2.__version__} {operators} compiled operators"
    return versions


def _hardware(device: str) -> dict[str, Any]:
    import os

    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "cpu_count": os.cpu_count(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
