"""Shared code of the benchmarks: taking turns, medians and ratios, the machine, a result as JSON.

benchmarks/render.py makes docs/performance.md from results of this form:
{benchmark, title, command, date, machine, checks: [{what, value, unit, limit, sense}],
tables: [{title, columns, rows}], notes: [sentence]}.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"

# The environment for programs whose start is timed. They use compiled files, as every start after
# the first one does.
COMPILED = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def parser(doc: str, *, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the flags --repeats, --small and --json."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=repeats, metavar="N", help="turns per action")
    made.add_argument(
        "--small", action="store_true", help="use sizes that only show that the benchmark runs"
    )
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the result to this file"
    )
    return made


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return a description of this machine."""
    import torch

    from moco_d2.records.environment import cpu_name

    return {
        "device": device,
        "name": torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_in_hardware": device.startswith("cuda") or cpu_has_bf16(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware."""
    import torch

    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def take_turns(
    actions: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time actions in turns (A B C, A B C, ...), so that a slow machine slows all of them alike.

    Args:
        actions: Name -> action.
        repeats: The number of timed turns.
        warmup: The number of turns before, which are not timed.
        clock: The clock; time.process_time counts the CPU time of all threads of this process.

    Returns:
        Name -> seconds in each turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(warmup + repeats):
        for name, action in actions.items():
            gc.collect()
            start = clock()
            action()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median over turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def check(
    what: str,
    value: float,
    *,
    unit: str = "x",
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """Return one figure with its limit, if it has one."""
    limit, sense = (at_most, "at most") if at_most is not None else (at_least, "at least")
    return {
        "what": what,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "limit": limit,
        "sense": sense if limit is not None else None,
    }


def met(entry: Mapping[str, Any]) -> bool | None:
    """Return whether a figure is within its limit; None if it has no limit."""
    if entry["limit"] is None:
        return None
    below = entry["value"] <= entry["limit"]
    return below if entry["sense"] == "at most" else entry["value"] >= entry["limit"]


def finish(
    args: argparse.Namespace,
    *,
    title: str,
    checks: Sequence[Mapping[str, Any]],
    tables: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """Print the figures, and write the result to the file of --json."""
    script = Path(sys.argv[0])
    options, words = [], iter(sys.argv[1:])
    for word in words:  # the recorded command has no --json
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            options.append(word)
    result = {
        "benchmark": script.stem,
        "title": title,
        "command": shlex.join(["python", f"benchmarks/{script.name}", *options]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(device),
        "checks": list(checks),
        "tables": list(tables),
        "notes": list(notes),
    }
    print(f"{title}\n  {result['machine']}")
    for entry in checks:
        verdict = {True: "  met", False: "  MISSED", None: ""}[met(entry)]
        limit = "" if entry["limit"] is None else f"  ({entry['sense']} {entry['limit']:g})"
        print(f"  {entry['value']:>10g} {entry['unit']:<8} {entry['what']}{limit}{verdict}")
    for table in tables:
        print(f"  {table['title']}: {' | '.join(table['columns'])}")
        for row in table["rows"]:
            print("   ", " | ".join(map(str, row)))
    for note in notes:
        print(f"  {note}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result
