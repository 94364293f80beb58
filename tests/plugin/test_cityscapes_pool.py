"""Cityscapes' annotations are read without a pool that outlives its use."""

import functools
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
from detectron2.data.datasets import cityscapes
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from support.commands import SECONDS, Python, run_python
from support.transfer.dataset_files import make_cityscapes

from moco_d2.plugin import cityscapes_pool
from moco_d2.plugin.cityscapes_pool import ShortLivedPool


@pytest.fixture
def folders(tmp_path):
    make_cityscapes(tmp_path)
    return [str(tmp_path / kind / "train") for kind in ("leftImg8bit", "gtFine")]


@pytest.fixture
def fresh_interpreter(monkeypatch):
    monkeypatch.setattr(cityscapes_pool, "_FEW", 0)


@pytest.fixture
def readers(tmp_path, monkeypatch, fresh_interpreter):
    """Functions of a module without Detectron2, which a fresh interpreter imports at once."""
    (tmp_path / "light_readers.py").write_text(_READERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("light_readers")
    del sys.modules["light_readers"]


_READERS = """
import os, signal

def describe(files):
    return os.path.basename(files[0]), os.getpid(), signal.getsignal(signal.SIGTERM)

def open_missing(files):
    open(files[0] + ".missing")

def die(files):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def files(tmp_path):
    names = [tmp_path / str(i) for i in range(10)]
    for name in names:
        name.touch()
    return [(str(name),) for name in names]


@pytest.mark.parametrize(("from_json", "interpreter"), [(True, "fresh"), (False, "forked")])
def test_both_ways_read_what_detectron2s_pool_reads(folders, from_json, interpreter, monkeypatch):
    load = functools.partial(load_cityscapes_instances, *folders, from_json=from_json)
    in_this_process = load()
    monkeypatch.setattr(cityscapes_pool, "_FEW", 0)
    if interpreter == "forked":  # one import of Detectron2 by a fresh one is enough
        monkeypatch.setattr(cityscapes_pool, "subprocess", _FORKED)
    in_others = load()
    monkeypatch.setattr(cityscapes.mp.__class__, "Pool", _JoinedForkPool)
    expected = load()
    assert len(expected) > 1 and all(d["annotations"] for d in expected)
    assert repr(in_this_process) == repr(in_others) == repr(expected)


def _run_forked(words, *, input, **_):
    """subprocess.run of bytes, for an interpreter that is forked from the server of tests."""
    with tempfile.TemporaryFile() as files, tempfile.TemporaryFile() as results:
        files.write(input)
        files.seek(0)
        with Python(words[1:], stdin=files, stdout=results) as process:
            code = process.wait(SECONDS)
        results.seek(0)
        return subprocess.CompletedProcess(words, code, results.read())


_FORKED = SimpleNamespace(run=_run_forked, PIPE=subprocess.PIPE)


class _JoinedForkPool:
    """Detectron2's pool, but joined."""

    def __init__(self, processes):
        self.processes = processes

    def map(self, function, items):
        pool = multiprocessing.get_context("fork").Pool(self.processes)
        try:
            return pool.map(function, items)
        finally:
            pool.close()
            pool.join()


def test_the_processes_inherit_no_handler(files, readers):
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        results = ShortLivedPool(4).map(readers.describe, files)
    finally:
        signal.signal(signal.SIGTERM, before)
    names, processes, handlers = zip(*results, strict=True)
    assert list(names) == [str(i) for i in range(10)]
    assert len(set(processes)) == 4 and os.getpid() not in processes
    assert set(handlers) == {signal.SIG_DFL}


def test_an_error_is_raised_here(files, readers):
    with pytest.raises(FileNotFoundError) as raised:
        ShortLivedPool(4).map(readers.open_missing, files)
    assert raised.value.filename == files[0][0] + ".missing"


def test_a_killed_process_is_an_error(files, readers, capfd):
    with pytest.raises(RuntimeError, match="annotations of 10 Cityscapes images failed"):
        ShortLivedPool(2).map(readers.die, files)
    assert "one of the processes ended with exit code -9" in capfd.readouterr().err


# What a fine-tuning run does: it loads the data while its handler of SIGTERM is installed, and
# collects garbage. Detectron2's pool waits here for workers that the handler keeps alive.
_LIKE_A_RUN = """
import gc, signal, sys
{imports}
from detectron2.data.datasets import cityscapes
signal.signal(signal.SIGTERM, lambda *_: None)
for _ in range(3):
    assert cityscapes.load_cityscapes_instances(*sys.argv[1:])
    gc.collect()
import multiprocessing
print(type(cityscapes.mp).__name__, multiprocessing.active_children())
"""


def test_garbage_collection_waits_for_no_worker(folders):
    result = run_python("-c", _LIKE_A_RUN.format(imports="import moco_d2"), *folders)
    assert result.stdout == "_MultiprocessingWithoutPools []\n", result.stderr


def test_garbage_collection_waits_for_no_worker_of_stock_train_net(folders):
    result = subprocess.run(
        [sys.executable, "-c", _LIKE_A_RUN.format(imports=""), *folders],
        env={**os.environ, "DETECTRON2_ENV_MODULE": "moco_d2"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.stdout == "_MultiprocessingWithoutPools []\n", result.stderr


def test_a_detectron2_without_the_pool_is_left_alone(monkeypatch):
    monkeypatch.delattr(cityscapes, "mp")
    cityscapes_pool.leave_no_pool_behind()
    assert not hasattr(cityscapes, "mp")
