"""Pretrains for an hour, and checks that memory, open files and speed do not change."""

import dataclasses
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy.stats import linregress
from support.toy_data import make_class_folders

from fault_kinds.jobs import TOOLS
from fault_kinds.workloads import words_of
from moco_d2.files import write_json

COLUMNS = ("seconds", "rss_mib", "workers_rss_mib", "open_files", "iteration", "cpu_seconds")
_SAMPLES = 360  # samples of a whole soak
_SHORTEST_S = 1.0  # seconds between two samples
_WARM_UP = 0.15  # fraction of the soak that is not judged: caches fill, arenas grow
# Allowed changes from the first quarter after the warm-up to the last quarter.
MAX_GROWTH_MIB = 16
MAX_FILES = 2
MIN_SPEED = 0.7  # per CPU second, which other programs on the machine make slower
_GRACE_S = 60
_TAIL = 4096  # bytes at the end of metrics.json that contain its last lines
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
_TICKS = os.sysconf("SC_CLK_TCK")

Sample = list[float]


@dataclasses.dataclass
class Process:
    """A process as /proc shows it."""

    pid: int

    def rss_mib(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_MIB

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208

    def cpu_seconds(self) -> float:
        """Return its CPU time, including that of its ended children."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS

    def children(self) -> list["Process"]:
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [Process(int(pid)) for pid in pids]


def soak(minutes: float, file: Path | None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Pretrain a ResNet-18 on images of 32 pixels with one thread and one worker, niced.

    There is a checkpoint and a kNN evaluation every 400 iterations.

    Args:
        minutes: The duration.
        file: A JSON file that is written again with every sample.
        say: The function that prints a line.

    Returns:
        The final content of the file: "samples" with COLUMNS, and the figures of `judge`.
    """
    with tempfile.TemporaryDirectory(prefix="moco_d2_soak_") as name:
        root = Path(name)
        images = make_class_folders(root / "images", 64)
        held_out = make_class_folders(root / "held_out", 64, seed=1)
        process = _start(root, images, held_out)
        samples: list[Sample] = []
        result = {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "minutes": minutes,
            "columns": COLUMNS,
            "samples": samples,
        }
        try:
            metrics = root / "out" / "metrics.json"
            while not metrics.exists():
                if process.poll() is not None:
                    raise RuntimeError((root / "log").read_text()[-2000:])
                time.sleep(0.2)
            started, step = time.monotonic(), max(_SHORTEST_S, minutes * 60 / _SAMPLES)
            while (now := time.monotonic() - started) < minutes * 60:
                sample = _sample(Process(process.pid), metrics, now)
                if sample is None:
                    raise RuntimeError((root / "log").read_text()[-2000:])
                samples.append(sample)
                if file is not None:
                    write_json(file, result)
                time.sleep(step)
            process.send_signal(signal.SIGTERM)
            result["exit_code"] = process.wait(_GRACE_S)
        finally:
            process.kill()
            process.wait()
    result |= judge(samples)
    if file is not None:
        write_json(file, result)
    for line in describe(result):
        say(line)
    return result


def _start(root: Path, images: Path, held_out: Path) -> subprocess.Popen:
    settings = {
        "DATASETS.TRAIN": f"('{images}',)",
        "OUTPUT_DIR": root / "out",
        "MODEL.DEVICE": "cpu",
        "SEED": 1,
        "DATALOADER.NUM_WORKERS": 1,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.MAX_ITER": 10**7,
        "SOLVER.CHECKPOINT_PERIOD": 400,
        "MOCO.REFERENCE_BATCH": 0,
        "MOCO.MONITOR.EXPECTED_LOSS": "()",
        "MOCO.EPOCHS": 0,
        "MOCO.ENCODER.ARCH": "resnet18",
        "MOCO.DICTIONARY.SIZE": 1024,
        "MOCO.BN_SPLITS": 2,
        "MOCO.AUGMENTATION.SIZE": 32,
        "MOCO.KNN.TRAIN": images,
        "MOCO.KNN.TEST": held_out,
        "MOCO.KNN.PERIOD": 400,
    }
    with (root / "log").open("w") as log:
        return subprocess.Popen(
            [
                *("nice", "-n", "15", sys.executable, str(TOOLS / "pretrain.py")),
                *("--config-file", "moco_v2_R50_200ep.yaml", *words_of(settings)),
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _sample(process: Process, metrics: Path, now: float) -> Sample | None:
    """Return a row of COLUMNS, or None if the process has ended."""
    try:
        children = process.children()
        workers, cpu = 0.0, process.cpu_seconds()
        for child in children:
            try:
                workers += child.rss_mib()
                cpu += child.cpu_seconds()
            except (OSError, IndexError):  # the child has ended meanwhile
                continue
        row = [now, process.rss_mib(), workers, process.open_files(), _iteration(metrics), cpu]
        return [round(value, 2) for value in row]
    except (OSError, IndexError):
        return None


def _iteration(metrics: Path) -> int:
    with metrics.open("rb") as f:
        f.seek(max(0, metrics.stat().st_size - _TAIL))
        lines = f.read().split(b"\n")[1:-1]  # complete lines
    return json.loads(lines[-1])["iteration"] if lines else 0


def judge(samples: list[Sample]) -> dict[str, Any]:
    """Return the figures of a soak.

    They are ``slope_mib_per_hour`` of the main process with its standard error; memory, open files
    and speed of the first and the last quarter after the warm-up; and ``problems``. Speed is in
    iterations per CPU second, because other programs may use the machine.
    """
    kept = samples[int(len(samples) * _WARM_UP) :]
    if len(kept) < 8:
        return {"problems": ["too short to tell"]}
    columns = dict(zip(COLUMNS, zip(*kept, strict=True), strict=True))
    hours = [seconds / 3600 for seconds in columns["seconds"]]
    fit = linregress(hours, columns["rss_mib"])
    quarter = len(kept) // 4

    def ends(name: str) -> list[float]:
        values = columns[name]
        return [statistics.median(part) for part in (values[:quarter], values[-quarter:])]

    def speed(rows: list[Sample], per: str) -> float:
        first, last = (dict(zip(COLUMNS, row, strict=True)) for row in (rows[0], rows[-1]))
        return (last["iteration"] - first["iteration"]) / max(last[per] - first[per], 1e-9)

    quarters = kept[:quarter], kept[-quarter:]
    memory, workers, files = ends("rss_mib"), ends("workers_rss_mib"), ends("open_files")
    speeds = [speed(rows, "cpu_seconds") for rows in quarters]
    problems = []
    for name, (before, after) in (("the process", memory), ("its workers", workers)):
        if after - before > MAX_GROWTH_MIB:
            problems.append(f"memory of {name} grew from {before:.0f} to {after:.0f} MiB")
    if files[1] - files[0] > MAX_FILES:
        problems.append(f"open files grew from {files[0]:.0f} to {files[1]:.0f}")
    if speeds[1] < MIN_SPEED * speeds[0]:
        problems.append(f"speed fell from {speeds[0]:.2f} to {speeds[1]:.2f} iterations per CPU s")
    return {
        "iterations": int(samples[-1][COLUMNS.index("iteration")]),
        "slope_mib_per_hour": round(fit.slope, 2),
        "slope_standard_error": round(fit.stderr, 2),
        "rss_mib": [round(value, 1) for value in memory],
        "workers_rss_mib": [round(value, 1) for value in workers],
        "open_files": files,
        "iterations_per_cpu_second": [round(value, 3) for value in speeds],
        "iterations_per_second": [round(speed(rows, "seconds"), 3) for rows in quarters],
        "problems": problems,
    }


def describe(result: dict[str, Any]) -> list[str]:
    """Return the figures as lines of text."""
    if "slope_mib_per_hour" not in result:
        return result["problems"]
    before, after = result["rss_mib"]
    return [
        f"soak of {result['minutes']:g} minutes, {result['iterations']} iterations, "
        f"SIGTERM: exit code {result.get('exit_code')}",
        f"memory {before:.0f} to {after:.0f} MiB, slope {result['slope_mib_per_hour']:+.1f} ± "
        f"{result['slope_standard_error']:.1f} MiB per hour",
        "open files {:.0f} to {:.0f}".format(*result["open_files"]),
        "iterations per CPU second {} to {}".format(*result["iterations_per_cpu_second"]),
        *(f"FAILED {problem}" for problem in result["problems"]),
    ]
