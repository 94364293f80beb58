#!/usr/bin/env python3
"""Inject the faults that a run of days may meet into runs of seconds, and check every promise.

The faults are kills and SIGTERM at random moments, full disks, lost folders, killed workers,
damaged images and annotations, and processes that die, hang or disagree. Each fault depends on the
seed, its kind and its number, and prints one line. If a promise is broken, the exit code is 1.

    python campaigns/faults.py --only 'kill *' --minutes 10 --json results/campaigns/faults.json
    python campaigns/faults.py --soak 60 --json soak.json
    python campaigns/faults.py --render docs/reliability.md
"""

import argparse
import datetime
import fnmatch
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "campaigns"), str(ROOT / "tests")]

os.environ.setdefault("OMP_NUM_THREADS", "1")

import moco_d2  # noqa: E402  isort: skip  before Detectron2

from fault_kinds.case import Kind  # noqa: E402


def all_kinds() -> tuple[Kind, ...]:
    """Return all kinds of faults, in the order of docs/reliability.md."""
    from fault_kinds import annotations, images, kills, machine, processes, settings, sources

    modules = (kills, machine, images, sources, annotations, settings, processes)
    return tuple(kind for module in modules for kind in module.KINDS)


def deal(kind: Kind, number: int, seed: int) -> dict[str, Any]:
    """Inject one fault.

    Returns:
        ``{"kind", "number", "what", "faults", "figures", "seconds", "failure"}``.
    """
    rng = random.Random(f"{seed}/{kind.name}/{number}")
    started = time.monotonic()
    result: dict[str, Any] = {"kind": kind.name, "number": number, "failure": None}
    with tempfile.TemporaryDirectory(prefix="moco_d2_fault_") as name:
        try:
            outcome = kind.deal(rng, Path(name), number)
            result |= {"what": outcome.what, "faults": outcome.faults, "figures": outcome.figures}
        except Exception as error:
            text = " ".join(str(error).split())
            result |= {"what": "", "faults": 1, "figures": {}}
            result["failure"] = f"{type(error).__name__}: {text}"[:600]
    return result | {"seconds": round(time.monotonic() - started, 2)}


def campaign(kinds: list[Kind], *, seed: int, count: int | None, minutes: float) -> list[dict]:
    """Inject faults of all kinds in turn, until each kind has its count or the time is over."""
    deadline = time.monotonic() + minutes * 60
    results = []
    wanted = {kind.name: kind.count if count is None else count for kind in kinds}
    for number in range(max(wanted.values(), default=0)):
        for kind in kinds:
            if number >= wanted[kind.name]:
                continue
            if time.monotonic() > deadline:
                print(f"stopped after {minutes:g} minutes")
                return results
            results.append(deal(kind, number, seed))
            _print(results[-1])
    return results


def _print(result: dict[str, Any]) -> None:
    text = f"FAILED {result['failure']}" if result["failure"] else result["what"]
    print(f"{result['kind']} {result['number']} ({result['seconds']:.1f} s): {text}", flush=True)


def summary(results: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return the results of a campaign as an entry of results/campaigns/faults.json."""
    from moco_d2.records.environment import cpu_name

    kinds: dict[str, dict[str, Any]] = {}
    for result in results:
        totals = kinds.setdefault(
            result["kind"], {"runs": 0, "faults": 0, "failures": 0, "seconds": 0.0, "figures": {}}
        )
        totals["runs"] += 1
        totals["faults"] += result["faults"]
        totals["failures"] += result["failure"] is not None
        totals["seconds"] = round(totals["seconds"] + result["seconds"], 1)
        for name, number in result["figures"].items():
            totals["figures"][name] = totals["figures"].get(name, 0) + number
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": f"{os.cpu_count()} x {cpu_name()}",
        "versions": versions(),
        "seed": seed,
        "kinds": kinds,
        "failed": [r for r in results if r["failure"]],
    }


def versions() -> dict[str, str]:
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "moco_d2": moco_d2.__version__,
    }


def append(file: Path, entry: dict[str, Any]) -> None:
    """Add a campaign's entry to the file of campaigns."""
    from moco_d2.files import write_json

    entries = json.loads(file.read_text()) if file.exists() else {"campaigns": []}
    entries["campaigns"].append(entry)
    write_json(file, entries)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", metavar="KIND", action="append", help="pattern of kinds: 'kill *' (repeatable)")
    add("--count", type=int, metavar="N", help="faults of each kind (default: its own count)")
    add("--minutes", type=float, default=60, help="start no fault after this time (default: 60)")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="add the figures to this file")
    add("--soak", type=float, metavar="MINUTES", help="pretrain for this time instead")
    add("--render", type=Path, metavar="FILE.md", help="write the page with the figures")
    add("--list", action="store_true", help="print the kinds and their promises")
    return parser.parse_args()


def main() -> None:
    args = _parse()
    if args.soak:
        from fault_kinds.soak import soak

        sys.exit(bool(soak(args.soak, args.json)["problems"]))
    kinds = [
        kind
        for kind in all_kinds()
        if not args.only or any(fnmatch.fnmatch(kind.name, pattern) for pattern in args.only)
    ]
    if not kinds:
        sys.exit(f"error: no kind {args.only}; --list prints them")
    if args.render:
        from fault_kinds.page import render

        args.render.write_text(render(ROOT, all_kinds()), encoding="utf-8")
        return
    if args.list:
        print(*(f"{kind.name} ({kind.count}): {kind.promise}" for kind in kinds), sep="\n")
        return
    results = campaign(kinds, seed=args.seed, count=args.count, minutes=args.minutes)
    entry = summary(results, args.seed)
    for name, sums in entry["kinds"].items():
        print(
            f"{name}: {sums['faults']} faults in {sums['runs']} runs, {sums['failures']} failures"
        )
    total = sum(sums["faults"] for sums in entry["kinds"].values())
    print(f"total: {total} faults, {len(entry['failed'])} failures")
    if args.json:
        append(args.json, entry)
    sys.exit(bool(entry["failed"]))


if __name__ == "__main__":
    main()
