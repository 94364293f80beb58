#!/usr/bin/env python3
"""Read hostile configs and suites: each is refused with one sentence or gives plain settings.

Each case follows from a seed and is read in a new process, as the tools read it. A config is
loaded. A suite is planned and checked, and its files are written. Their data is opened. A case
fails if the process is ended by a signal, takes ten seconds of CPU time, a minute or 2 GiB of
memory, raises anything but a one-sentence UserError, runs a command, or uses the network. It also
fails if it writes a file outside of the suite's folder, or any file after an error.

    python campaigns/fuzz_yaml.py [--cases 600] [--seed 0] [--json FILE]
"""

import argparse
import collections
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import torch

from moco_d2.benchmark.records.importing import import_run
from moco_d2.benchmark.runs.cell_state import placed
from moco_d2.benchmark.runs.config_checks import check_configs
from moco_d2.benchmark.runs.planning import plan
from moco_d2.benchmark.runs.suite_values import file_settings
from moco_d2.benchmark.runs.suites import CONFIGURED, load_suite, untrusted_words
from moco_d2.cli import argument_parser
from moco_d2.config.load import load_config, load_config_of
from moco_d2.config.shard_patterns import SHARDS_PREFIX
from moco_d2.errors import UserError
from moco_d2.files import write_text
from moco_d2.pretrain.data.samples import read_shard
from moco_d2.pretrain.data.shards import list_shards
from moco_d2.transfer.data.custom_datasets import register_by_path
from moco_d2.transfer.weights import RANDOM, check_weights_file

sys.path.insert(0, str(Path(__file__).parent))
import hostile_yaml

LIMIT_S = 60  # for a busy machine; a case takes a tenth of a second alone
CPU_S = 10
MEMORY = 2 << 30  # bytes beyond the memory of the process at the start of a case
_LONGEST_SENTENCE = 2000
_CELLS = 5  # cells whose commands are parsed and whose data is opened
REFUSED, READ = "refused", "read"


@dataclass
class Result:
    """The result of a case; `failure` is "" if nothing is wrong with it."""

    kind: str
    outcome: str
    failure: str
    seconds: float


# ---- reading a file ------------------------------------------------------------------------------


def open_config(case: hostile_yaml.Case, out: Path) -> None:
    """Load a config as a suite's command does, and open its data as pretraining does."""
    cfg = load_config(case.file, case.overrides, typed=False)
    file_settings(case.file)
    open_data(cfg)


def open_suite(case: hostile_yaml.Case, out: Path) -> None:
    """Plan and check a suite, write its files, and read its commands as the tools do."""
    suite = load_suite(case.file)
    plan(suite_file := case.file, folder=out, gpus_per_run=0)
    assert suite_file == case.file
    some = suite.cells[:_CELLS]
    check_configs(some, out, suite.files)
    for path, content in suite.files.items():
        write_text(out / path, content)
    for cell in some:
        (out / cell.name).mkdir(parents=True, exist_ok=True)
        for tool, words in cell.commands:
            if tool not in CONFIGURED:
                continue
            run = untrusted_words(tool, (placed(word, cell, out) for word in words))
            args = argument_parser("", "").parse_args(run)
            if args.submit or args.num_gpus != 1 or not args.resume:
                raise AssertionError(f"a flag was injected: {args}")
            cfg = load_config_of(args)
            if Path(cfg.OUTPUT_DIR).parts[: len(out.parts)] != out.parts:
                raise AssertionError(f"the output goes to {cfg.OUTPUT_DIR}")
            open_data(cfg)


def open_run(case: hostile_yaml.Case, out: Path) -> None:
    """Import a run with the case's file as its config.yaml."""
    folder = case.file.parent
    (folder / "metrics.json").write_text('{"iteration": 1}\n')
    import_run(folder, task="voc_C4", initialization="moco", destination=out / "record.json")


DOORS: dict[str, Callable[[hostile_yaml.Case, Path], None]] = {
    "config": open_config,
    "suite": open_suite,
    "run": open_run,
}


def open_data(cfg: Any) -> None:
    """Open the data of a config, so that hostile data has its effect."""
    if cfg.MODEL.WEIGHTS not in ("", RANDOM):
        with contextlib.suppress(UserError):
            check_weights_file(cfg.MODEL.WEIGHTS)
    for name in (*cfg.DATASETS.TRAIN[:2], *cfg.DATASETS.TEST[:2], cfg.MOCO.KNN.TRAIN):
        with contextlib.suppress(UserError):  # the dataset does not exist
            if name.startswith(SHARDS_PREFIX):
                shards = list_shards(name.removeprefix(SHARDS_PREFIX), num_images=4)
                next(read_shard(shards.urls[0]), None)
            else:
                register_by_path(name)


# ---- judging -------------------------------------------------------------------------------------


def run_case(seed: int) -> Result:
    """Make a case, read it in a new process, and judge the outcome."""
    with tempfile.TemporaryDirectory(prefix="moco_d2_fuzz_") as name:
        root = Path(name).resolve()
        folder, out = root / "in", root / "deep" / "out"
        folder.mkdir()
        kind, case = hostile_yaml.make(seed, folder)
        before = _tree(root)
        started = time.perf_counter()
        outcome, failure = _judge(case, root, folder, out)
        seconds = time.perf_counter() - started
        failure = _written(root, out, before, outcome) or failure
        if outcome == REFUSED and case.sound and not failure:
            failure = "a sound file was refused"
        return Result(kind, outcome, failure, seconds)


def _judge(case: hostile_yaml.Case, root: Path, folder: Path, out: Path) -> tuple[str, str]:
    """Read the case in another process, and return the outcome and the failure."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(case, root, folder, out, writer)
    os.close(writer)
    status = _wait(child)
    with open(reader, encoding="utf-8") as file:  # noqa: PTH123 - a pipe
        answer = file.read()
    if status is None:
        return REFUSED, f"more than {LIMIT_S} s"
    if os.WIFSIGNALED(status):
        return REFUSED, f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    if not answer:
        return REFUSED, f"ended with exit code {os.WEXITSTATUS(status)} and without an answer"
    outcome, failure = json.loads(answer)
    return outcome, failure


def _wait(child: int) -> int | None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(case: hostile_yaml.Case, root: Path, folder: Path, out: Path, writer: int) -> None:
    """Read the case, send the outcome to the parent, and exit."""
    outcome, failure = REFUSED, ""
    addresses: list[str] = []
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["WDS_HIDDEN"] = "pipe:"
        (root / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(root / "tmp")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        _watch_network(addresses)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        try:
            DOORS[case.door](case, out)
            outcome = READ
        except UserError as error:
            text = str(error)
            if "\n" in text or not 10 < len(text) < _LONGEST_SENTENCE:
                failure = f"not a sentence: {text[:200]!r}"
    except BaseException as error:  # any other exception is a failure
        where = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error}"[:300] + f" ({where.name}, line {where.lineno})"
    finally:
        if addresses:
            failure = f"the network was used: {addresses[0]}"
        with contextlib.suppress(BaseException):
            os.write(writer, json.dumps([outcome, failure]).encode())
        os._exit(0)


def _watch_network(addresses: list[str]) -> None:
    """Refuse all connections in this process, and add their addresses to `addresses`."""

    def refuse(*args: Any, **_: Any) -> Any:
        addresses.append(str(args[1:] or args)[:100])
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, refuse)
    socket.getaddrinfo = socket.create_connection = refuse  # type: ignore[assignment]


def _tree(root: Path) -> set[str]:
    return {str(Path(folder, name)) for folder, _, names in os.walk(root) for name in names}


def _written(root: Path, out: Path, before: set[str], outcome: str) -> str:
    """Return what is wrong with the files after a case, or empty text."""
    if (root / "in" / "ran").exists():
        return "a command was run"
    new = _tree(root) - before - _tree(root / "tmp") - {str(root / "in" / "metrics.json")}
    outside = sorted(name for name in new if not name.startswith(f"{out}{os.sep}"))
    folders = sorted(str(p) for p in root.iterdir() if p.name not in ("in", "deep", "tmp"))
    if outside or folders:
        return f"written outside: {(outside or folders)[0]}"
    if outcome == REFUSED and new:
        return f"left behind: {min(new)}"
    return ""


def _prepare() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    # Imports and caches of the first reading must not count for a case.
    load_config("voc_C4_moco.yaml")
    load_suite("table_2b")
    with contextlib.suppress(UserError):
        list_shards("/nonexistent/{0,1}.tar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    _prepare()
    results: dict[int, Result] = {}
    for seed in range(args.seed, args.seed + args.cases):
        results[seed] = run_case(seed)
    kinds: dict[str, collections.Counter[str]] = {}
    for result in results.values():
        kinds.setdefault(result.kind, collections.Counter())[result.outcome] += 1
    for kind in sorted(kinds):
        print(f"{kind:14}" + "".join(f"{count:6} {o}" for o, count in sorted(kinds[kind].items())))
    failures = [f"seed {s}: {r.kind}: {r.failure}" for s, r in results.items() if r.failure]
    print(*failures, sep="\n")
    figures = {
        "cases": len(results),
        "failures": len(failures),
        **{o: sum(r.outcome == o for r in results.values()) for o in (REFUSED, READ)},
        "slowest_s": round(max(result.seconds for result in results.values()), 2),
    }
    print(figures)
    if args.json:
        text = json.dumps({**figures, "seed": args.seed, "kinds": kinds}, indent=2)
        args.json.write_text(text + "\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
