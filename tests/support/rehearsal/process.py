"""Start a Python process in which autograd takes CUDA tensors without a driver.

Autograd asks how many devices there are, and whether each of them has been used. Two libraries of a
few lines, built here, answer: one counts as many devices as it is told, and one stands for the
driver, whose functions all fail, but for the question whether a device has been used.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from support.paths import ROOT, TESTS

# Module of the scene -> what its recipes are.
SCENES = {
    "pretraining": "The second pretraining step: 256 images, of 224 pixels for R50, else of 64",
    "compiled_steps": "The same step with compiled graphs; calls are those outside of them",
    "compiled_small": "The same of an R18 of a block a stage and 64 pixels, which the tests count",
    "fine_tuning": "A fine-tuning step with 2 small images in bf16, and the evaluation of 2 images",
    "evaluation": "Evaluations of features, of 4 batches or chunks",
    "collectives": "A pretraining step of a small network with 2 x 16 images in each process",
}
SLOW = ("compiled_steps",)  # minutes, so only the benchmark counts these

_COUNT = """
static signed char devices = 0;
void set_fake_devices(int number) { devices = number; }
signed char _ZN3c104cuda12device_countEv(void) { return devices; }
signed char _ZN3c104cuda28device_count_ensure_non_zeroEv(void) { return 1; }
"""
_DRIVER = """
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    return *flags = *active = 0;
}
"""
_USED = "cuDevicePrimaryCtxGetState"


def missing() -> str | None:
    """Return why no device can be rehearsed here, or None."""
    if not (shutil.which("gcc") and shutil.which("nm")):
        return "the stubs of the CUDA driver need gcc and nm"
    return None if _driver_user().exists() else "this build of torch has no CUDA"


def run(folder: Path, *scenes: str) -> dict[str, Any]:
    """Rehearse scenes of __main__.py. Return name of the recipe -> its counts.

    Args:
        folder: An empty folder for the stubs and the images.
    """
    count, driver = folder / "count.so", folder / "libcuda.so.1"
    _build(count, _COUNT)
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", _driver_user()], text=True)
    others = set(re.findall(r"\bU (cu[A-Z]\w*)", symbols)) - {_USED}
    _build(driver, _DRIVER + "".join(f"int {name}(void) {{ return 100; }}\n" for name in others))
    environment = os.environ | {
        "LD_PRELOAD": str(count),
        "LD_LIBRARY_PATH": str(folder),
        "REHEARSAL_STUB": str(count),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS))),
        "OMP_NUM_THREADS": "1",
        "DETECTRON2_DATASETS": str(folder),
    }
    words = [sys.executable, "-m", "support.rehearsal", *scenes]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    counts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return counts


def _driver_user() -> Path:
    return Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"


def _build(library: Path, code: str) -> None:
    options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-o", str(library)]
    subprocess.run(["gcc", *options, "-x", "c", "-"], input=code, text=True, check=True)
