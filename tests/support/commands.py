"""Start Python programs without the seconds in which each imports torch.

multiprocessing's forkserver has imported what the tools import, and forks each program from there:
a clean process, unlike one that is forked from a process of tests. What a program itself imports,
and when, is seen only in a real start: those tests use subprocess.
"""

import _warnings
import atexit
import faulthandler
import gc
import importlib
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from support.first_filters import FIRST_FILTERS
from support.paths import ROOT

from moco_d2.engine.signals import STOP_SIGNALS

SECONDS = 600
_PRELOADED = [
    "moco_d2.transfer.main",
    "moco_d2.transfer.inference.predict",
    "moco_d2.pretrain.main",
    "moco_d2.pretrain.probe.main",
    "moco_d2.checkpoint.convert",
    "moco_d2.benchmark.report.page",
    "moco_d2.benchmark.runs.planning",
    "torch.utils.tensorboard",
    # What Detectron2's description of the environment needs, and its formatting of a config.
    *("torch.utils.cpp_extension", "pygments.lexers"),
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


def fork_server() -> None:
    """Make the server a fork of this process: it shares the memory of what both have imported.

    To be called before tests have run here. Else the first program starts a server, which imports
    all of it once more.
    """
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection would write to what is shared
    resource_tracker.ensure_running()
    with mock.patch.object(util, "spawnv_passfds", _forked):
        forkserver.ensure_running()


def _forked(_program: bytes, words: list[str], descriptors: list[int]) -> int:
    """Fork a process that executes the code which the new program would."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in map(int, os.listdir("/dev/fd")):
            if descriptor not in {0, 1, 2, nothing, *descriptors}:
                os.dup2(nothing, descriptor)  # no number is free to stand for another file
        _remove_pytest()
        exec(words[-1], {})
    finally:
        os._exit(1)


def _remove_pytest() -> None:
    """Replace what pytest has put in place by what a new program has."""
    captured = sys.stderr
    _open_streams()
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if getattr(handler, "stream", None) is captured:  # torch's, which it has imported
                handler.setStream(sys.stderr)
    imported = [one for one in warnings.filters if one not in FIRST_FILTERS]
    of_python = list(_warnings.filters)  # pytest works on a copy
    warnings.resetwarnings()
    warnings.filters[:] = [*imported, *of_python]
    faulthandler.disable()
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    sys.meta_path[:] = [finder for finder in sys.meta_path if "pytest" not in repr(finder)]


class Python(subprocess.Popen):
    """``subprocess.Popen([sys.executable, *words], text=True)``, forked from the server.

    Args:
        words: a script and its arguments, or ``-c``, code and its arguments.
        cwd: the folder that it runs in.
        env: all of its environment variables.
        start_new_session: whether it leads a session, and a process group, of its own.
        streams: `stdin`, `stdout` and `stderr` as for Popen.
    """

    def __init__(
        self,
        words: Iterable[object],
        *,
        cwd: str | Path = ".",
        env: Mapping[str, str] = os.environ,
        start_new_session: bool = False,
        **streams: Any,
    ):
        self._place = (str(Path(cwd).absolute()), dict(env), start_new_session)
        super().__init__([str(word) for word in words], text=True, **streams)

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        p2cread, _, _, c2pwrite, _, errwrite = pipes = rest[9:15]
        with open(os.devnull) as null:
            ends = (
                null.fileno() if p2cread == -1 else p2cread,
                1 if c2pwrite == -1 else c2pwrite,
                2 if errwrite == -1 else errwrite,
            )
            self._process = _context.Process(target=_run, args=(args, *self._place, _Files(ends)))
            self._process.start()
        self.pid = self._process.pid
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        self._process.join(timeout)
        if self._internal_poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


class _Files:
    """Open files that are handed to another process, where they have other descriptors."""

    def __init__(self, descriptors: Iterable[int]):
        self.descriptors = list(descriptors)

    def __reduce__(self) -> tuple:
        return _received, ([DupFd(descriptor) for descriptor in self.descriptors],)


def _received(sent: list[Any]) -> _Files:
    return _Files(one.detach() for one in sent)


def run_python(*words: object, **options: Any) -> subprocess.CompletedProcess:
    """Run ``python words`` to its end; `options` are those of Python."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Python(words, **streams, **options) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_tool(
    script: Path, *words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run ``python script words`` to its end.

    Args:
        cwd: the folder that it runs in.
        env: environment variables that it has besides those of this process.
    """
    return run_python(script, *words, cwd=cwd, env={**os.environ, **(env or {})})


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for an event of another process."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_processes(
    number: int, *words: object, env: Mapping[str, str] = os.environ, **options: Any
) -> list[Python]:
    """Start ``python words`` as `number` processes, with the variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(number))
    ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(number)]
    return [Python(words, env={**env, **common, **rank}, **options) for rank in ranks]


def run_processes(number: int, *words: object, **options: Any) -> list[str]:
    """Run ``python words`` as `number` processes; see start_processes.

    Returns:
        What each has printed.

    Raises:
        AssertionError: a process has failed; with what all have printed.
    """
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = start_processes(number, *words, **streams, **options)
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * number, "\n".join(outputs)
    return outputs


def _run(
    words: list[str], cwd: str, environment: dict[str, str], new_session: bool, files: _Files
) -> None:
    gc.freeze()  # no collection looks at what the server has imported
    if new_session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another here
    # The workers of a DataLoader would come from a fork server, which imports torch anew.
    multiprocessing.set_start_method("fork", force=True)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, descriptor in enumerate(files.descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    _open_streams()
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    try:
        _execute(words)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
        sys.stdout.flush()


def _open_streams() -> None:
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115


def _execute(words: list[str]) -> None:
    if words[0] != "-c":
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
        return
    sys.argv = ["-c", *words[2:]]
    sys.path.insert(0, "")
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(words[1], "<string>", "exec"), main.__dict__)
