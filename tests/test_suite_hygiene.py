"""The suite reports a test that exceeds its time, and threads and processes that tests leave; it
ends the processes.
"""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import TESTS

XDIST = pytest.mark.parametrize("words", [(), ("-n", "1")], ids=["alone", "xdist"])
WITH_XDIST = (("-n", "1"), ())


@pytest.fixture(scope="module")
def run_pytest(tmp_path_factory):
    """Run pytest on a generated file, with the suite's plugins; return its exit code and text.

    Each waits more than it works, so all of them are started together.
    """
    started = {}
    for code, options, ways in RUNS:
        for words in ways:
            started[code, words] = _start(tmp_path_factory.mktemp("run"), code, *options, *words)

    def run_pytest(code: str, words: tuple[str, ...] = ()) -> tuple[int, str]:
        process, output = started[code, words]
        return process.wait(timeout=600), output.read_text()

    yield run_pytest
    for process, _ in started.values():
        process.kill()
        process.wait()


def _start(folder: Path, code: str, *words: str) -> tuple[subprocess.Popen, Path]:
    """Start pytest; return it and the file of what it prints."""
    (folder / "test_generated.py").write_text(code)
    (folder / "conftest.py").write_text(
        "from support import suite_processes, suite_threads, suite_timeouts\n"
        "def pytest_configure(config):\n"
        "    for plugin in (suite_timeouts, suite_threads, suite_processes):\n"
        "        config.pluginmanager.register(plugin)\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\n")
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "MOCO_D2_"))}
    output = folder / "output.txt"
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words, str(folder)],
            env={**outside, "PYTHONPATH": str(TESTS)},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    return process, output


SWALLOWED = """
import contextlib, gc, threading, time, weakref
import pytest

class Slow:
    def __del__(self):
        time.sleep(3)  # too long

def test_finalizer():
    Slow()

def test_collected():
    one = Slow()
    one.itself = one
    del one
    gc.collect()

def test_weak_reference():
    class Plain: pass
    one = Plain()
    weakref.finalize(one, time.sleep, 3)
    del one

def test_except():
    try:
        time.sleep(3)
    except BaseException:
        pass

def test_hangs_again():
    for _ in range(3):
        with contextlib.suppress(BaseException):
            time.sleep(60)

@pytest.mark.xfail
def test_expected_to_fail():
    try:
        time.sleep(3)
    except BaseException:
        pass

def test_thread():
    thread = threading.Thread(target=time.sleep, args=(3,))
    thread.start()
    thread.join()

@pytest.fixture
def slow_fixture():
    yield
    Slow()

def test_teardown(slow_fixture):
    pass

def test_in_time():
    pass
"""


@XDIST
def test_a_time_out_fails_whatever_swallows_it(run_pytest, words):
    code, text = run_pytest(SWALLOWED, words)
    assert code == 1, text
    failed = set(re.findall(r"^(?:FAILED|ERROR) .*::test_(\w+)", text, re.MULTILINE))
    assert failed == {
        *("finalizer", "collected", "weak_reference", "except", "hangs_again"),
        *("expected_to_fail", "thread", "teardown"),
    }, text
    assert "The test exceeded its time of 1 s here" in text
    assert "time.sleep(3)  # too long" in text


DEAF = """
import _imp, threading

def test_deaf():
    thread = threading.Thread(target=_imp.acquire_lock)
    thread.start()
    thread.join()
    _imp.acquire_lock()  # waits in C, where no handler of a signal is called
"""


def test_code_that_takes_no_signal_is_ended_with_its_stack(run_pytest):
    code, text = run_pytest(DEAF)
    assert code != 0
    assert "in test_deaf" in text


LEAVES = """
import subprocess, sys, multiprocessing, os, time

def test_child():
    subprocess.Popen(["sleep", "2345"], start_new_session=True)

def test_orphan():
    subprocess.run(["sh", "-c", "sleep 3456 >/dev/null 2>&1 &"], check=True)

def test_forked_orphan():
    middle = os.fork()
    if not middle:
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.waitpid(middle, 0)

def test_last():
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@XDIST
def test_processes_that_are_left_are_ended_and_fail_the_run(run_pytest, words):
    code, text = run_pytest(LEAVES, words)
    assert code == 1, text
    assert re.search(r"ERROR .*::test_last", text), text
    left = re.findall(r"^(?:E +)?(\d+): (.*)$", text, re.MULTILINE)
    assert len({pid for pid, _ in left}) == 3, text
    assert {"sleep 2345", "sleep 3456"} < {command for _, command in left}
    assert not any(Path("/proc", pid).exists() and not _is_zombie(pid) for pid, _ in left)


def _is_zombie(pid: str) -> bool:
    return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"


TIDY = """
import multiprocessing, subprocess, sys

def test_finished():
    subprocess.run([sys.executable, "-c", ""], check=True)
    subprocess.Popen(["true"])  # ends by itself

def test_helpers_stay():
    context = multiprocessing.get_context("forkserver")
    lock = context.Lock()
    process = context.Process(target=print)
    process.start()
    process.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@XDIST
def test_what_ends_by_itself_and_helpers_are_not_left(run_pytest, words):
    code, text = run_pytest(TIDY, words)
    assert code == 0, text


THREADS = """
import threading
import pytest

end = threading.Event()

@pytest.fixture(scope="module")
def server():
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()

def test_uses(server):
    pass

def test_leaves(server):
    threading.Thread(target=threading.Event().wait, daemon=True, name="lonely").start()

def test_joins():
    thread = threading.Thread(target=print)
    thread.start()
    thread.join()
"""


def test_a_thread_that_is_left_fails_its_test(run_pytest):
    code, text = run_pytest(THREADS)
    assert code == 1, text
    assert re.findall(r"^ERROR .*::test_(\w+)", text, re.MULTILINE) == ["leaves"], text
    assert "the test left threads: lonely (Thread)" in text


# What the tests above run: a file, options of pytest, and with which further ones.
RUNS = [
    (SWALLOWED, ("--timeout=1",), WITH_XDIST),
    (DEAF, ("--timeout=1",), ((),)),
    (THREADS, (), ((),)),
]
if sys.platform == "linux":
    RUNS += [(LEAVES, (), WITH_XDIST), (TIDY, (), WITH_XDIST)]


@pytest.fixture(scope="module")
def run_of_a_fixture():
    """Like a run that many tests share: Detectron2 stops its logger's way up."""
    logging.getLogger("moco_d2").propagate = False


def test_caplog_hears_each_line_once_after_a_run_of_a_shared_fixture(run_of_a_fixture, caplog):
    logging.getLogger("moco_d2.engine").warning("heard")
    assert caplog.messages == ["heard"] and logging.getLogger("moco_d2").propagate
