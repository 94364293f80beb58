#!/usr/bin/env python3
"""Inject every bug of mutations.yaml into a copy of the code, and run the check that must catch it.

With each bug training goes on, but the result is wrong. An entry changes the code or a packaged
config, and a test must fail; or it changes the settings of a run, and the preflight must refuse
them; or it is a set of run records, and the table must name the problem. The exit code is 1 if a
bug is not caught, and 2 if the list does not fit the code.

    python campaigns/mutations.py [--only ID ...] [--quick] [--json FILE]
"""

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".yaml")
LIMIT_S = 180  # for one entry
_LATER_S = 10  # by which an edited file is newer
_COPIED = (
    "moco_d2",
    "configs",
    "tests",
    "tools",
    "benchmarks",
    "campaigns",
    "studies",
    "results",
    "docs",
    "pyproject.toml",
)
# Imported once, before a process is forked for each entry, since these imports take most of a
# check's time. The package and Detectron2, which it patches, must not be among them.
_HEAVY = ("torch", "torchvision.transforms.v2", "torch.utils.tensorboard", "pytest", "cv2",
          "scipy.stats", "pycocotools.mask", "fvcore.nn", "iopath.common.file_io")  # fmt: skip
# The provenance of torchvision's ResNet-50, for the preflight.
_PROVENANCE = {
    "preprocessing": {
        "format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
    },
    "stride_in_1x1": False, "depth": 50, "width_per_group": 64, "groups": 1, "width_factor": 1,
}  # fmt: skip
_PROCESSES = 8  # processes of the runs whose settings are changed


@dataclass(frozen=True)
class Edit:
    """A text that occurs once in `file`, and its replacement."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One injected bug.

    Attributes:
        id: A short name.
        wrong: The wrong result for the user.
        edits: Edits of the code or of a packaged config, after which `tests` must fail.
        tests: Node ids of pytest.
        config: A packaged config, whose run with `settings` the preflight must refuse.
        settings: Overrides of that config.
        records: Arguments of tests/benchmark/conftest.py's `content`, and under "set" values by
            dotted path, for records whose table must contain `says`.
        says: The text that the preflight or the table must contain.
        quick: Whether the test suite tries it.
    """

    id: str
    wrong: str
    edits: tuple[Edit, ...] = ()
    tests: tuple[str, ...] = ()
    config: str = ""
    settings: tuple[str, ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    says: str = ""
    quick: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of an entry: `by` names the check that caught it, or says why none did."""

    mutation: Mutation
    caught: bool
    by: str
    seconds: float


def read_list(file: Path = LIST) -> list[Mutation]:
    """Return all entries of the list."""
    mutations = []
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")):
        edits = entry.pop("edits", None) or [
            {key: entry.pop(key) for key in ("file", "old", "new")} if "file" in entry else None
        ]
        entry["edits"] = tuple(Edit(**edit) for edit in edits if edit)
        for key in ("tests", "settings", "records"):
            entry[key] = tuple(entry.get(key, ()))
        mutations.append(Mutation(**entry))
    return mutations


def problems(mutations: list[Mutation], root: Path = ROOT) -> list[str]:
    """Return one sentence for each entry that does not fit the code."""
    sentences = []
    ids = [mutation.id for mutation in mutations]
    sentences += [f"{name} is there twice" for name in sorted(set(ids)) if ids.count(name) > 1]
    for mutation in mutations:
        kinds = [mutation.edits, mutation.settings, mutation.records]
        if sum(map(bool, kinds)) != 1 or bool(mutation.edits) != bool(mutation.tests):
            sentences.append(f"{mutation.id}: give edits with tests, or settings, or records")
        if not mutation.edits and not mutation.says:
            sentences.append(f"{mutation.id}: give the expected sentence in `says`")
        for edit in mutation.edits:
            file = root / edit.file
            count = file.read_text(encoding="utf-8").count(edit.old) if file.is_file() else 0
            if count != 1:
                sentences.append(f"{mutation.id}: its old text is {count} times in {edit.file}")
        for test in mutation.tests:
            file, _, name = test.partition("::")
            name = name.partition("[")[0]
            text = (root / file).read_text(encoding="utf-8") if (root / file).is_file() else ""
            if not re.search(rf"^def {name}\(", text, re.MULTILINE):
                sentences.append(f"{mutation.id}: there is no test {test}")
    return sentences


@contextlib.contextmanager
def copied_tree() -> Iterator[Path]:
    """Yield a copy of the files for the checks.

    It has the compiled files, which are found by the copied times of the sources; `applied` sets
    those of edited files.
    """
    with tempfile.TemporaryDirectory(prefix="moco_d2_mutations_") as name:
        ignored = shutil.ignore_patterns(".*")
        for item in _COPIED:
            source, destination = ROOT / item, Path(name).resolve() / item
            if source.is_dir():
                shutil.copytree(source, destination, ignore=ignored)
            else:
                shutil.copy2(source, destination)
        yield Path(name).resolve()


@contextlib.contextmanager
def applied(mutation: Mutation, tree: Path) -> Iterator[None]:
    """Apply the entry's edits to the tree, and undo them at the end.

    Python compares only the seconds of a source's time with those of its compiled file. An edited
    file gets later ones, so it is compiled anew.
    """
    paths = {tree / edit.file for edit in mutation.edits}
    before = {path: (path.read_text(), path.stat().st_mtime_ns) for path in paths}
    for edit in mutation.edits:
        path = tree / edit.file
        path.write_text(path.read_text().replace(edit.old, edit.new))
        os.utime(path, ns=(before[path][1] + _LATER_S * 10**9,) * 2)
    try:
        yield
    finally:
        for path, (text, modified) in before.items():
            path.write_text(text)
            os.utime(path, ns=(modified, modified))


def forked(work: Callable[[], Any], tree: Path) -> Any:
    """Return the result of `work` in a new process that imports the tree's package.

    The result must be of JSON types.

    Raises:
        RuntimeError: If `work` fails or takes more than LIMIT_S. The message has its output.
    """
    answer, log = tree / "answer.json", tree / "log.txt"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            with log.open("w") as f:
                os.dup2(f.fileno(), 1)
                os.dup2(f.fileno(), 2)
            os.chdir(tree)
            sys.path[:0] = [str(tree), str(tree / "tests")]
            sys.dont_write_bytecode = True
            os.environ |= {
                "PYTHONPATH": os.pathsep.join(sys.path[:2]),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            answer.write_text(json.dumps(work()))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    end = time.monotonic() + LIMIT_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise RuntimeError(f"it takes more than {LIMIT_S} s")
        time.sleep(0.02)
    if not answer.is_file():
        raise RuntimeError(f"the check broke: {log.read_text()[-2000:]}")
    return json.loads(answer.read_text())


def failing_tests(tests: tuple[str, ...], files: tuple[str, ...]) -> dict[str, list[str]]:
    """Run tests in this process.

    Returns:
        ``{"failed", "passed", "unused"}``: two lists of node ids, and the `files` that no module
        has imported.
    """
    import pytest

    class Reports:
        failed, passed = [], []

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                self.failed.append(report.nodeid)
            elif report.when == "call" and report.passed:
                self.passed.append(report.nodeid)

    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=short"]
    code = pytest.main([*options, *tests], plugins=[Reports()])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")
    imported = {getattr(m, "__file__", None) for m in list(sys.modules.values())}
    unused = [f for f in files if f.endswith(".py") and str(Path.cwd() / f) not in imported]
    return {"failed": Reports.failed, "passed": Reports.passed, "unused": unused}


def refusal(config: str, settings: tuple[str, ...]) -> str:
    """Return the preflight's error for a run on eight GPUs, or empty text."""
    from moco_d2.config.load import load_config
    from moco_d2.errors import UserError
    from moco_d2.transfer.hardware_scaling import scale_to_hardware
    from moco_d2.transfer.preflight import config_checks
    from moco_d2.transfer.preflight.findings import enforce
    from moco_d2.transfer.weights import check_weights_file

    try:
        written = load_config(config, settings)
        check_weights_file(written.MODEL.WEIGHTS)
        cfg, _ = scale_to_hardware(written, _PROCESSES)
        findings = config_checks.check_config(cfg, _PROVENANCE, world_size=_PROCESSES)
        findings += config_checks.check_schedule(cfg, written) + config_checks.check_settings(cfg)
        enforce(findings, force=False, logger=None)
    except UserError as error:
        return str(error)
    return ""


def table(records: tuple[dict[str, Any], ...]) -> str:
    """Return the table of records with the entry's changes."""
    from benchmark.conftest import content

    from moco_d2.benchmark.records.run_records import read_records
    from moco_d2.benchmark.rendering import render

    with tempfile.TemporaryDirectory() as folder:
        for number, changes in enumerate(records):
            record = content(**{key: value for key, value in changes.items() if key != "set"})
            for path, value in changes.get("set", {}).items():
                *parents, last = path.split(".")
                node = record
                for key in parents:
                    node = node[key]
                node[last] = value
            file = Path(folder) / str(number) / "record.json"
            file.parent.mkdir()
            file.write_text(json.dumps(record))
        return render(read_records([folder]), "csv") + render(read_records([folder]))


def try_mutation(mutation: Mutation, tree: Path) -> Outcome:
    """Inject a bug, and run its check."""
    start = time.monotonic()
    try:
        caught, by = _run_check(mutation, tree)
    except RuntimeError as error:
        caught, by = False, str(error)
    return Outcome(mutation, caught, by, time.monotonic() - start)


def _run_check(mutation: Mutation, tree: Path) -> tuple[bool, str]:
    if mutation.settings:
        if error := forked(lambda: refusal(mutation.config, ()), tree):
            return False, f"the run is refused without the settings, too: {error}"
        error = forked(lambda: refusal(mutation.config, mutation.settings), tree)
        return mutation.says in error, error or "the preflight is silent"
    if mutation.records:
        text = forked(lambda: table(mutation.records), tree)
        line = next((line for line in text.splitlines() if mutation.says in line), "")
        return bool(line), line or "the table is silent"
    with applied(mutation, tree):
        files = tuple(edit.file for edit in mutation.edits)
        result = forked(lambda: failing_tests(mutation.tests, files), tree)
    if result["unused"]:
        return False, f"no test imports {', '.join(result['unused'])}"
    return bool(result["failed"]), ", ".join(result["failed"]) or "all its tests pass"


def check_baseline(mutations: list[Mutation], tree: Path) -> list[str]:
    """Return the tests that fail without any mutation, and so prove nothing."""
    by_file: dict[str, list[str]] = {}
    for test in sorted({test for mutation in mutations for test in mutation.tests}):
        by_file.setdefault(test.partition("::")[0], []).append(test)
    failed = []
    for tests in by_file.values():
        result = forked(lambda tests=tests: failing_tests(tuple(tests), ()), tree)
        failed += result["failed"] or ([] if result["passed"] else tests)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="ID", help="try these entries")
    parser.add_argument("--quick", action="store_true", help="try the entries of the test suite")
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not run the tests without mutations first"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the outcomes to this file")
    args = parser.parse_args()
    mutations = read_list()
    if misfits := problems(mutations):
        print("\n".join(misfits), file=sys.stderr)
        return 2
    if args.only:
        if unknown := set(args.only) - {mutation.id for mutation in mutations}:
            print(f"no mutation {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        mutations = [mutation for mutation in mutations if mutation.id in args.only]
    elif args.quick:
        mutations = [mutation for mutation in mutations if mutation.quick]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in _HEAVY:
        importlib.import_module(name)
    outcomes: list[Outcome] = []
    with copied_tree() as tree:
        if not args.no_baseline and (failed := check_baseline(mutations, tree)):
            print("these tests fail without a mutation: " + ", ".join(failed), file=sys.stderr)
            return 2
        for mutation in mutations:
            outcome = try_mutation(mutation, tree)
            outcomes.append(outcome)
            word = "caught " if outcome.caught else "SLIPPED"
            print(f"{word} {mutation.id} ({outcome.seconds:.1f} s): {outcome.by}", flush=True)
            if args.json:
                write(outcomes, args.json)
    caught = sum(outcome.caught for outcome in outcomes)
    print(f"{caught} of {len(outcomes)} mutations caught")
    return int(caught < len(outcomes))


def write(outcomes: list[Outcome], file: Path) -> None:
    """Write the outcomes: ``[{"id", "what", "caught_by", "caught", "seconds"}]``."""
    content = [
        {
            "id": outcome.mutation.id,
            "what": outcome.mutation.wrong,
            "caught_by": textwrap.shorten(outcome.by, 200, placeholder=" ..."),
            "caught": outcome.caught,
            "seconds": round(outcome.seconds, 1),
        }
        for outcome in outcomes
    ]
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
