"""benchmarks/gpu.py: its CPU form from beginning to end, and what becomes of steps that fail."""

import importlib
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from support.commands import SECONDS, run_python
from support.paths import BENCHMARKS, ROOT

PAGE = ROOT / "docs" / "gpu_minutes.md"


@pytest.fixture(autouse=True)
def in_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(*words, code=0):
    done = run_python(*words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_every_step_runs_on_a_cpu_and_its_checks_pass(tmp_path):
    file = tmp_path / "gpu.json"
    said = run(BENCHMARKS / "gpu.py", "--cpu", "--out", file)
    result = json.loads(file.read_text())
    steps = result["steps"]
    assert list(steps) == list(importlib.import_module("gpu").STEPS)
    assert {name: step["state"] for name, step in steps.items()} == dict.fromkeys(steps, "passed")
    assert all(step["checks"] for step in steps.values())
    compared = [c["what"] for c in steps["losses"]["checks"] if "largest difference" in c["what"]]
    checks = importlib.import_module("gpu_checks")
    some = importlib.import_module("gpu_common").Run("cpu", tmp_path, file, 0.0)
    assert len(compared) == 2 * len(checks.mechanisms(some)) * len(checks.PRECISIONS)
    # The updates move each loss more than fp32 may differ, so a missing one would be seen.
    moved = [f["value"] for f in steps["losses"]["figures"] if "change of the loss" in f["what"]]
    assert min(moved) > 4 * checks.PRECISIONS["fp32"][1][1]
    for name, words in {"waits": "Waits of the host need CUDA", "group": "NCCL needs CUDA"}.items():
        assert any(words in note for note in steps[name]["notes"])
    assert said.splitlines()[-1].count("passed") == len(steps)


FAULTS = """
import os, pathlib, signal, time
from gpu_common import SkippedError

def raises(run):
    run.check("before", 1, at_most=2)
    raise ValueError("this is wrong")
def hangs(run):
    run.note("it hangs")
    if os.fork() == 0:
        pathlib.Path(__file__).with_name("child").write_text(str(os.getpid()))
    time.sleep(1000)
def dies(run):
    os.write(2, b"last words")
    os.kill(os.getpid(), signal.SIGKILL)
def misses(run):
    run.check("too much", 3, at_most=2)
def misses_a_goal(run):
    run.goal("slow", 3, unit="s", at_most=2)
def skips(run):
    raise SkippedError("not here")
def works(run):
    run.holds("it is so", True)
"""
DRIVER = """
import gpu, sys
gpu._SLOW = 1
gpu.STEPS = {name: gpu.Step(f"{module}:{name}", seconds, name) for module, name, seconds in (
    ("faults", "raises", 60), ("faults", "hangs", 2), ("faults", "dies", 60),
    ("faults", "misses", 60), ("faults", "misses_a_goal", 60), ("faults", "skips", 60),
    ("faults", "works", 60),
)}
gpu.LEAST_IMPORTANT = tuple(gpu.STEPS)
sys.exit(gpu.main())
"""


def test_a_step_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)
    driver = tmp_path / "driver.py"
    driver.write_text(f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})" + DRIVER)
    run(driver, "--cpu", "--out", tmp_path / "gpu.json", code=1)
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert {name: step["state"] for name, step in steps.items()} == {
        "raises": "error",
        "hangs": "out of time",
        "dies": "error",
        "misses": "failed",
        "misses_a_goal": "passed",
        "skips": "skipped",
        "works": "passed",
    }
    assert "ValueError: this is wrong" in steps["raises"]["error"]
    assert steps["raises"]["checks"][0]["what"] == "before"  # what was found until then stays
    assert steps["hangs"]["notes"] == ["it hangs"] and "2 s" in steps["hangs"]["error"]
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not child.exists() or ") Z" in child.read_text()  # what it has started ends with it
    assert "ended with -9: last words" in steps["dies"]["error"]
    assert steps["skips"]["notes"] == ["not here"]


def test_a_step_whose_packages_are_missing_is_skipped(tmp_path):
    file = tmp_path / "step.jsonl"
    code = f"import gpu_common, pathlib; r = gpu_common.Run('cpu', pathlib.Path({str(tmp_path)!r}) "
    code += f"/ 'f', pathlib.Path({str(file)!r}), 0.0); r.perform('module_that_is_not_there:f')"
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); {code}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS)
    found = importlib.import_module("gpu").lines_of(file)
    assert found["end"] == "skipped"
    assert "No module named 'module_that_is_not_there': --wheels" in found["notes"][0]


def test_the_least_important_steps_are_dropped_first():
    gpu = importlib.import_module("gpu")
    assert sorted(gpu.LEAST_IMPORTANT) == sorted(gpu.STEPS)
    page = PAGE.read_text()
    assert all(f"| `{name}` | {step.seconds} s |" in page for name, step in gpu.STEPS.items())
    names = list(gpu.STEPS)
    assert gpu.plan(names, 9 * 60 - gpu._SPARE_S) == (names, [])
    kept, dropped = gpu.plan(names, 300)
    assert dropped == list(gpu.LEAST_IMPORTANT[: len(dropped)]) and dropped
    assert kept == [name for name in names if name not in dropped]
    assert sum(gpu.STEPS[name].seconds for name in kept) <= 300
    assert gpu.plan(["losses", "group"], 80) == (["losses"], ["group"])


def test_waits_are_counted_by_place_and_other_warnings_are_not():
    checks = importlib.import_module("gpu_checks")
    with checks.counted_waits(on_gpu=False) as places:
        for _ in range(2):
            warnings.warn(
                "called a synchronizing CUDA operation (Triggered internally)", stacklevel=1
            )
        warnings.warn("something else", stacklevel=1)
    ((place, number),) = places.items()
    assert number == 2 and place.startswith("tests/test_gpu_script.py:")


def test_packages_that_are_not_there_are_missing(monkeypatch):
    wheels = importlib.import_module("gpu_wheels")
    names = ("json", "not_there", "not_there.inside")
    packages = [{"name": n, "version": "1", "module": n, "bytes": 10**6} for n in names]
    monkeypatch.setattr(wheels, "packages", lambda: packages)
    assert [one["name"] for one in wheels.missing()] == ["not_there", "not_there.inside"]
    lines = wheels.describe_missing().splitlines()
    assert " ".join(lines[-1].split()) == "2.00 MB in total: 2 wheels are missing here"


def test_the_wheels_are_those_of_the_lock_and_the_page_lists_them():
    wheels = importlib.import_module("gpu_wheels")
    assert wheels.missing() == []  # as all are installed where the tests run
    assert wheels.describe_missing().endswith("0 wheels are missing here")
    locked = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text()))
    listed = {one["name"]: one["version"] for one in wheels.packages()}
    assert listed == {name: locked[name] for name in listed}
    project = (ROOT / "pyproject.toml").read_text()
    _, dependencies = project.split("\ndependencies = [", 1)
    names = set(re.findall(r'(?m)^    "([\w-]+)', dependencies.split("\n]")[0])) | {
        "pb1-detectron2"
    }
    assert len(names) > 20
    brought = {"torch", "torchvision", "numpy", "pillow", "filelock", "jinja2", "markupsafe"}
    assert names - listed.keys() <= brought
    assert wheels.table() in PAGE.read_text()
