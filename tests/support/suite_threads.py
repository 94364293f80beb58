"""No test leaves a thread behind: it fails with the names of those that it does."""

import threading
import time

import pytest
from support.suite_memory import collect

_OF_PROCESS = {"tqdm_monitor"}  # threads that a library starts once, for all of its users
_SECONDS_TO_END = 5.0  # for a thread that is told to end as the test ends, on a busy machine
_BEFORE_FILE = pytest.StashKey[set[threading.Thread]]()
_BEFORE_CALL = pytest.StashKey[set[threading.Thread]]()


def pytest_configure(config):
    config.stash[_BEFORE_FILE] = set(threading.enumerate())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    item.stash[_BEFORE_CALL] = set(threading.enumerate())
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    result = yield
    # What a fixture of the file has started may go on until the file ends.
    ends_file = nextitem is None or nextitem.path != item.path
    before = item.config.stash[_BEFORE_FILE] if ends_file else item.stash.get(_BEFORE_CALL, None)
    if before is not None and (left := _left(before)):
        item.config.stash[_BEFORE_FILE] |= left  # they are reported once
        names = sorted(f"{thread.name} ({type(thread).__name__})" for thread in left)
        pytest.fail(f"the test left threads: {', '.join(names)}", pytrace=False)
    return result


def _left(before: set[threading.Thread]) -> set[threading.Thread]:
    new = _new(before)
    if not new:
        return new
    for thread in new:
        # TensorBoard's, of a trainer that was built and never trained: only training closes it.
        if type(thread).__name__ == "_AsyncWriterThread":
            thread.stop()
    collect()  # a pool ends its threads when it is collected
    until = time.monotonic() + _SECONDS_TO_END
    while (left := _new(before)) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def _new(before: set[threading.Thread]) -> set[threading.Thread]:
    threads = set(threading.enumerate()) - before
    return {thread for thread in threads if thread.name not in _OF_PROCESS}
