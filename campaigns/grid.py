#!/usr/bin/env python3
"""Check that a grid with kills at random moments ends with the table of an undisturbed grid.

The grid is the smoke suite: two tasks x three initializations x three seeds on generated images,
with pretraining. It runs once undisturbed and once with three kills, each followed by a restart.
Two kills hit the runner and its runs, and one only the runner, whose runs go on as orphans. Both
tables and the bits of all final weights must be equal, and no run may run twice; otherwise the exit
code is 1.

    python campaigns/grid.py --out output/grid
    python campaigns/grid.py --out output/grid --seed 7     # other moments
    python campaigns/grid.py --out output/grid --transfer mine.pth --train a.json --test b.json

With --transfer, the grid is that of tools/transfer.py with these arguments. It is planned once, and
the same command continues after each kill. The answers must be equal, too.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml

from moco_d2.benchmark.runs import run_log
from moco_d2.benchmark.runs.suites import Cell, load_suite, packaged_suites

TOOLS = Path(__file__).resolve().parents[1] / "tools"
TOOL = TOOLS / "benchmark.py"
SEEDS = [1, 2, 3]
KILLS = ("all", "all", "runner")  # the victims at each moment, in random order
_POLL_SECONDS = 0.1
_LIMIT_SECONDS = 3600  # a grid that takes longer hangs


def main() -> int:
    """Run both grids and compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="output folder, which is replaced"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument(
        "--transfer",
        nargs=argparse.REMAINDER,
        metavar="WORD",
        help="arguments of tools/transfer.py, whose grid is killed instead",
    )
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    whole, killed = args.out / "whole", args.out / "killed"
    if args.transfer:
        command = [TOOLS / "transfer.py", *args.transfer, "--gpus-per-run", "0"]
        plan = [sys.executable, *command, "--folder", whole, "--plan-only"]
        subprocess.run(plan, check=True)
        shutil.copytree(whole, killed)
        suite_file = whole / "transfer.yaml"
    else:
        suite_file = args.out / "grid.yaml"
        content = yaml.safe_load(packaged_suites()["smoke"].read_text()) | {"seeds": SEEDS}
        suite_file.write_text(yaml.safe_dump(content))
        command = [TOOL, "run", suite_file, "--gpus-per-run", "0"]

    start = time.monotonic()
    _wait(_start(command, whole))
    seconds = time.monotonic() - start
    print(f"uninterrupted: {seconds:.0f} s", flush=True)

    start = time.monotonic()
    _run_with_kills(command, killed, seconds, random.Random(args.seed))
    print(f"killed {len(KILLS)} times: {time.monotonic() - start:.0f} s")

    cells = load_suite(suite_file).cells
    problems = [*compare(cells, whole, killed), *ran_twice(cells, whole), *ran_twice(cells, killed)]
    if args.transfer:
        answers = [(folder / "answer.md").read_text() for folder in (whole, killed)]
        if answers[0].partition("## Settings")[0] != answers[1].partition("## Settings")[0]:
            problems.append("the answers differ")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    runs = [cell for cell in cells if cell.kind == "transfer"]
    if not problems:
        print(f"{len(runs)} runs: the tables are equal, the weights bit for bit; none ran twice")
    return 1 if problems else 0


# ---- running and killing -------------------------------------------------------------------------


def _start(command: list[object], folder: Path) -> subprocess.Popen:
    """Start a command that runs a grid on the CPU, in a new process group."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runner.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, *map(str, command), "--folder", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(runner: subprocess.Popen) -> None:
    if runner.wait(_LIMIT_SECONDS):
        raise SystemExit(f"the runner ended with exit code {runner.returncode}")


def _run_with_kills(
    command: list[object], folder: Path, seconds: float, rng: random.Random
) -> None:
    """Run a grid, and do the KILLS at random moments at which a run is active.

    Args:
        command: The command without its folder.
        folder: The folder of the grid.
        seconds: The seconds of the undisturbed grid.
        rng: The random generator for the moments.
    """
    moments = sorted(rng.uniform(0.1, 0.9) * seconds for _ in KILLS)
    runner, begun = _start(command, folder), time.monotonic()
    for victim, moment in zip(rng.sample(KILLS, len(KILLS)), moments, strict=True):
        while time.monotonic() - begun < moment or not _running(folder):
            if runner.poll() is not None:
                raise SystemExit("the runner ended before it was killed")
            time.sleep(_POLL_SECONDS)
        running = _running(folder)
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
        if victim == "all":
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        names = ", ".join(running.values())
        ran = time.monotonic() - begun
        print(f"killed {victim} after {ran:.0f} s, during {names}", flush=True)
        runner = _start(command, folder)
    _wait(runner)


def _running(folder: Path) -> dict[int, str]:
    """Return the active cells: process id -> name."""
    running: dict[int, str] = {}
    for line in run_log.read_log(folder):
        if line["event"] == "started":
            running[line["pid"]] = line["cell"]
        else:
            running.pop(line.get("pid"), None)
    return {pid: name for pid, name in running.items() if _alive(pid)}


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# ---- comparing -----------------------------------------------------------------------------------


def compare(cells: tuple[Cell, ...], whole: Path, killed: Path) -> list[str]:
    """Return a sentence for each difference of tables or final weights."""
    problems = []
    tables = [_table(folder) for folder in (whole, killed)]
    if tables[0] != tables[1]:
        problems.append(f"the tables differ:\n{tables[0]}\n{tables[1]}")
    for cell in cells:
        if cell.kind == "transfer" and _weights(whole, cell) != _weights(killed, cell):
            problems.append(f"the weights of {cell.name} differ")
    return problems


def _table(folder: Path) -> str:
    command = [sys.executable, TOOL, "table", folder, "--format", "csv"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (folder / "table.csv").write_text(text)
    return text


def _weights(folder: Path, cell: Cell) -> str:
    """Return the fingerprint of the model's tensors."""
    import torch

    file = folder / cell.name / "model_final.pth"
    model = torch.load(file, map_location="cpu", weights_only=True)["model"]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def ran_twice(cells: tuple[Cell, ...], folder: Path) -> list[str]:
    """Return a sentence for each command that was started again after it had succeeded."""
    problems = []
    finished: Counter[tuple[str, int]] = Counter()
    starts: Counter[tuple[str, int]] = Counter()
    for line in run_log.read_log(folder):
        command = (line["cell"], line.get("command", 0))
        if line["event"] == "started":
            starts[command] += 1
            if finished[command]:
                problems.append(f"{command[0]} was started again after it had succeeded")
        elif line["event"] == "ended" and line["exit_code"] == 0:
            finished[command] += 1
    for cell in cells:
        for index in range(len(cell.commands)):
            times = finished[cell.name, index]
            if times > 1:  # 0 means a kill between the record and the line of the log
                problems.append(f"command {index} of {cell.name} succeeded {times} times")
    again = {f"{name} ({n})" for (name, _), n in starts.items() if n > 1}
    print(f"{folder.name}: {sum(starts.values())} starts of {len(starts)} commands", end="")
    print(f"; started more than once: {', '.join(sorted(again))}" if again else "")
    return problems


if __name__ == "__main__":
    sys.exit(main())
