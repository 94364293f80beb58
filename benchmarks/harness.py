"""What the benchmarks share: taking turns, medians and ratios, the machine, a result as JSON.

A result is what benchmarks/render.py makes docs/performance.md of:
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

# For programs whose start is timed: from the compiled files, as from the second time on.
COMPILED = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def parser(doc: str, *, repeats: int) -> argparse.ArgumentParser:
    """A command line with --repeats, --small and --json."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=repeats, metavar="N", help="turns each")
    made.add_argument(
        "--small", action="store_true", help="sizes that only show that the benchmark runs"
    )
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the result there, for render.py"
    )
    return made


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    found = {
        "device": device,
        "name": torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_in_hardware": device.startswith("cuda") or cpu_has_bf16(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    return found


def cpu_name() -> str:
    """Model of the CPU."""
    with Path("/proc/cpuinfo").open() as lines:
        return next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
            platform.machine(),
        )


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    import torch

    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def take_turns(
    actions: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each action, `repeats` times A B C, A B C, ...: a machine that slows down slows
    all alike.

    Args:
        warmup: rounds that are not counted.
        clock: time.process_time counts the CPU's time of all threads of this process.
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
    """Median over turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def check(
    what: str,
    value: float,
    *,
    unit: str = "x",
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """One figure with the limit it is held against, if it has one."""
    limit, sense = (at_most, "at most") if at_most is not None else (at_least, "at least")
    return {
        "what": what,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "limit": limit,
        "sense": sense if limit is not None else None,
    }


def met(entry: Mapping[str, Any]) -> bool | None:
    """Whether a figure is within its limit; None without one."""
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
    """Print the figures, and write the result where --json says."""
    script = Path(sys.argv[0])
    told, words = [], iter(sys.argv[1:])
    for word in words:  # where the result goes is not how it was made
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            told.append(word)
    result = {
        "benchmark": script.stem,
        "title": title,
        "command": shlex.join(["python", f"benchmarks/{script.name}", *told]),
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
