#!/usr/bin/env python3
"""Check and measure on a GPU that is at hand for minutes: correctness first, then speed.

Each step is a process of its own with a limit. What it finds goes into one JSON file at once; a
step that fails or runs out of time is recorded, and the others go on. With --cpu, the same code
runs at sizes that only show that it runs.

    python benchmarks/gpu.py --out output/gpu.json
    python benchmarks/gpu.py --only losses step --minutes 4
    python benchmarks/gpu.py --wheels                    # what this Python lacks
"""

import argparse
import contextlib
import dataclasses
import datetime
import gc
import importlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_common import Run
from gpu_wheels import describe_missing
from harness import met


@dataclasses.dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        function: ``module:function``, which is called with a Run.
        seconds: The limit on a GPU.
        what: What the step does.
    """

    function: str
    seconds: int
    what: str


# In the order in which they run.
STEPS = {
    "environment": Step("gpu_checks:environment", 20, "the card, and what is installed"),
    "losses": Step(
        "gpu_checks:losses", 75, "each mechanism and precision against the CPU's first losses"
    ),
    "waits": Step("gpu_checks:waits", 45, "where the host waits for the device in a step"),
    "resume": Step("gpu_runs:resume", 60, "SIGTERM and resume, bit for bit"),
    "step": Step("gpu_speed:step", 150, "the pretraining step beside the supervised one"),
    "feeding": Step("gpu_speed:feeding", 45, "reading images with workers, and on the device"),
    "run": Step("gpu_runs:whole_run", 40, "a whole pretraining run with kNN"),
    "fine_tuning": Step("gpu_speed:fine_tuning", 60, "C4 and FPN against Detectron2's trainer"),
    "group": Step("gpu_runs:group", 35, "process groups and their faults on one GPU"),
}
# The first ones are dropped first if there is no time for all.
LEAST_IMPORTANT = (
    *("group", "fine_tuning", "feeding", "run", "waits", "resume", "step"),
    *("losses", "environment"),
)
_SPARE_S = 8  # seconds of --minutes for the starts and ends of processes
_SLOW = 10  # times the limits, with --cpu
PASSED, FAILED, ERROR, LATE = "passed", "failed", "error", "out of time"
SKIPPED, DROPPED = "skipped", "dropped"


def plan(names: Sequence[str], seconds: float) -> tuple[list[str], list[str]]:
    """Return the steps whose limits fit into the time, and those that are dropped."""
    kept = list(names)
    dropped = []
    for name in LEAST_IMPORTANT:
        if sum(STEPS[kept_one].seconds for kept_one in kept) <= seconds:
            break
        if name in kept:
            kept.remove(name)
            dropped.append(name)
    return kept, dropped


def lines_of(file: Path) -> dict[str, Any]:
    """Return what a step has reported so far."""
    found: dict[str, Any] = {"checks": [], "figures": [], "notes": []}
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # the last line of a killed process may be cut
            kind, value = json.loads(line)
            found[kind] = [*found[kind], value] if kind in ("checks", "figures", "notes") else value
    return found


class Results:
    """The results of all steps, and their file."""

    def __init__(self, file: Path | None, on_gpu: bool):
        self.file = file
        self.content: dict[str, Any] = {
            "benchmark": "gpu",
            "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "device": "cuda" if on_gpu else "cpu",
            "steps": {},
        }

    def put(self, name: str, **entry: Any) -> None:
        """Record what is known about a step, and write the file."""
        self.content["steps"][name] = {"what": STEPS[name].what, **entry}
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = self.file.with_suffix(".new")
            new.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
            new.replace(self.file)


def perform(name: str, run: Run, results: Results) -> None:
    """Run a step in a process of its own, and record its results as they come."""
    start = time.monotonic()
    child = run.processes.Process(target=run.perform, args=(STEPS[name].function,))
    child.start()
    seen = -1
    while child.is_alive() and time.monotonic() < run.ends:
        child.join(0.2)
        size = run.file.stat().st_size if run.file.exists() else 0
        if size != seen:
            seen = size
            results.put(name, state="running", **lines_of(run.file))
    was_late = child.is_alive()
    child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.join()
    found = lines_of(run.file)
    end = found.pop("end", None)
    if was_late:
        state = LATE
        found["error"] = f"the limit of the step is {run.ends - start:.0f} s"
    elif end is None:
        state = ERROR
        log = run.file.with_suffix(".log")
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        found.setdefault("error", f"the process ended with {child.exitcode}: {tail}")
    elif end == "skipped":
        state = SKIPPED
    else:
        state = PASSED if all(map(met, found["checks"])) else FAILED
    results.put(name, state=state, seconds=round(time.monotonic() - start, 1), **found)
    show(name, results.content["steps"][name])


def show(name: str, entry: dict[str, Any]) -> None:
    """Print the results of a step."""
    print(f"{name}: {entry['state']} ({entry['what']}; {entry.get('seconds', 0):g} s)")
    for figure in (*entry.get("checks", ()), *entry.get("figures", ())):
        verdict = {True: "met", False: "MISSED", None: ""}[met(figure)]
        limit = "" if figure["limit"] is None else f"({figure['sense']} {figure['limit']:g})"
        print(f"  {figure['value']:>10g} {figure['unit']:<8} {figure['what']} {limit} {verdict}")
    for sentence in (*entry.get("notes", ()), *filter(None, [entry.get("error")])):
        print(f"  {sentence}")
    sys.stdout.flush()


def parse_args() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results to this JSON")
    parser.add_argument("--minutes", type=float, default=9, help="time for all steps (default: 9)")
    parser.add_argument("--wheels", action="store_true", help="list what this Python lacks")
    return parser.parse_args()


def main() -> int:
    """Run the steps. Return 1 if one has failed, and else 0."""
    args = parse_args()
    if args.wheels:
        print(describe_missing())
        return 0
    slower = _SLOW if args.cpu else 1
    ends = time.monotonic() + 60 * args.minutes * slower
    names = [name for name in STEPS if name in (args.only or STEPS)]
    kept, dropped = plan(names, 60 * args.minutes - _SPARE_S)
    results = Results(args.out, on_gpu=not args.cpu)
    for name in dropped:
        print(f"{name} is dropped: {args.minutes:g} minutes are too few for the limits of all")
        results.put(name, state=DROPPED)
    if args.cpu:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for step in STEPS.values():  # once for all processes, which are forked
            importlib.import_module(step.function.split(":")[0])
        gc.freeze()  # no collection looks at what is imported
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA starts, for determinism
    with tempfile.TemporaryDirectory() as folder:
        for name in [*kept, *(name for name in names if name in dropped)]:
            now, limit = time.monotonic(), STEPS[name].seconds * slower
            if name in dropped and ends - now < limit:
                continue  # the other steps have left no time
            run = Run(
                device="cpu" if args.cpu else "cuda",
                folder=Path(folder) / name,
                file=Path(folder) / f"{name}.jsonl",
                ends=min(now + limit, ends),
            )
            perform(name, run, results)
    states = {name: entry["state"] for name, entry in results.content["steps"].items()}
    print(", ".join(f"{name} {state}" for name, state in states.items()))
    return int(any(state in (FAILED, ERROR, LATE) for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
