#!/usr/bin/env python3
"""Time `tools/benchmark.py table` for several numbers of run records, including the process start.

The records have the size of real ones: a resolved config, six evaluations, twenty classes. They are
spread over ten tasks and five initializations, so more records are more seeds.

    python benchmarks/records.py [--sizes 10 100 1000 10000] [--repeats 5] [--json FILE]
"""

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np

from moco_d2.config.load import load_config
from moco_d2.config.plain import to_plain

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from support.run_records import content  # noqa: E402

TOOL = ROOT / "tools" / "benchmark.py"
INITIALIZATIONS = ("random", "supervised", "moco", "moco_v2_200ep", "moco_v2_800ep")
TASKS = 10
CLASSES = 20
EVALUATIONS = 6


def record(config: dict[str, Any], task: str, initialization: str, seed: int) -> dict[str, Any]:
    """Return a run record with the metrics of CLASSES classes and EVALUATIONS evaluations."""
    names = ("AP", "AP50", "AP75", *(f"AP-class{i}" for i in range(CLASSES)))
    metrics = {name: 50 + random.gauss(0, 0.3) for name in names}
    evaluation = {f"bbox/{name}": value for name, value in metrics.items()}
    history = [{"iteration": 4000 * (i + 1), **evaluation} for i in range(EVALUATIONS)]
    made = content(
        config=config,
        task=task,
        initialization=initialization,
        seed=seed,
        metrics={"bbox": metrics},
    )
    return {**made, "history": history}


def write_records(folder: Path, count: int) -> float:
    """Write `count` records below `folder`, and return their mean size in kB."""
    config = to_plain(load_config("voc_C4_moco.yaml"))
    size = 0
    for i in range(count):
        task = "voc_C4" if i % TASKS == 0 else f"task_{i % TASKS}"
        initialization = INITIALIZATIONS[i // TASKS % len(INITIALIZATIONS)]
        seed = i // (TASKS * len(INITIALIZATIONS))
        file = folder / f"{i:05d}" / "record.json"
        file.parent.mkdir(parents=True)
        text = json.dumps(record(config, task, initialization, seed), indent=2, sort_keys=True)
        file.write_text(text)
        size += len(text)
    return size / count / 1000


def seconds(folder: Path) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds of one command in a new process.

    Raises:
        RuntimeError: If it fails or leaves a record out.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(TOOL), "table", str(folder), "--out", str(folder / "table.md")],
        capture_output=True,
        text=True,
        check=False,
        env=harness.COMPILED,
    )
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or done.stderr:
        raise RuntimeError(done.stderr or f"exit code {done.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return elapsed, cpu


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__, repeats=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 10000])
    args = parser.parse_args()
    wanted = sorted(args.sizes)[: 2 if args.small else None]
    random.seed(0)
    clock, cpu, kilobytes = {}, {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for size in wanted:
            kilobytes = write_records(Path(folder) / str(size), size)
        for size in wanted:
            seconds(Path(folder) / str(size))  # fills the page cache
            runs = [seconds(Path(folder) / str(size)) for _ in range(args.repeats)]
            clock[size], cpu[size] = map(statistics.median, zip(*runs, strict=True))
    sizes, times = np.array(wanted), np.array(list(cpu.values()))
    # The fit minimizes relative errors; otherwise the largest size alone would decide the line.
    slope, start = np.polyfit(sizes, times, 1, w=1 / times)
    error = float(np.abs((start + slope * sizes) / times - 1).max())
    checks = [
        harness.check("CPU time of the start", float(start), unit="s"),
        harness.check("CPU time per record", 1000 * float(slope), unit="ms"),
        harness.check(
            "largest relative error of the linear fit", 100 * error, unit="%", at_most=20
        ),
    ]
    wanted_seconds = {1000: 1.2, 10000: 5}
    checks[:0] = [
        harness.check(
            f"{size:,} records, including the process start", clock[size], unit="s", at_most=limit
        )
        for size, limit in wanted_seconds.items()
        if size in clock
    ]
    harness.finish(
        args,
        title="tools/benchmark.py table over the number of run records",
        checks=checks,
        tables=[
            {
                "title": f"Medians of {args.repeats}, records of {kilobytes:.0f} kB",
                "columns": ["records", "seconds", "CPU seconds", "on the line"],
                "rows": [
                    [n, f"{clock[n]:.2f}", f"{cpu[n]:.2f}", f"{start + slope * n:.2f}"]
                    for n in wanted
                ],
            }
        ],
    )


if __name__ == "__main__":
    main()
