"""Run a script of tools/ as a process of its own, without the seconds in which it imports torch.

multiprocessing's forkserver has imported what the tools import, and forks each command from there:
a clean process, unlike one that is forked from a process of tests. What a command itself imports,
and when, is seen only by a real start: those tests use subprocess.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from support.paths import ROOT

from moco_d2.engine.signals import STOP_SIGNALS

SECONDS = 600
_PRELOADED = [
    "moco_d2.transfer.main",
    "moco_d2.transfer.inference.predict",
    "moco_d2.pretrain.main",
    "moco_d2.pretrain.probe.linear_eval",
    "moco_d2.checkpoint.convert",
    "moco_d2.benchmark.report.page",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


def run_tool(
    script: Path, *words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run ``python script words`` and wait for its end.

    Args:
        cwd: the folder that it runs in.
        env: variables that it has besides those of this process.
    """
    environment = {**os.environ, **(env or {})}
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name) / "stdout", Path(name) / "stderr"
        process = _context.Process(
            target=_run,
            args=(str(script), [str(w) for w in words], str(cwd), environment, out, err),
        )
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([script, *words], SECONDS, err.read_text())
        texts = (file.read_text("utf-8") if file.exists() else "" for file in (out, err))
        return subprocess.CompletedProcess([script, *words], process.exitcode, *texts)


def _run(
    script: str, words: list[str], cwd: str, environment: dict[str, str], out: Path, err: Path
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another here
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file, descriptor in ((out, 1), (err, 2)):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, descriptor)
        os.close(handle)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
        sys.stdout.flush()
