"""A test that exceeds its time fails, whatever it executes at that moment.

pytest-timeout raises an exception in the test. Code may swallow it: Python itself does in a
finalizer. So the time-out is recorded here, with the stack, and fails the test afterwards. It is
repeated, because a test that swallowed it may hang again, and where no exception can be raised (in
C code that never returns) the process is ended with the stacks of its threads on stderr.
"""

import faulthandler
import signal
import sys
import threading
import traceback

import pytest
import pytest_timeout
from _pytest.faulthandler import fault_handler_stderr_fd_key

_FIRED = pytest.StashKey[str]()
_REPEATS_EACH = 1 / 30  # of the time-out: 30 s where it is 900 s
_GRACE = 1 / 5  # of the time-out, before the process is ended
_SHORTEST_GRACE_SECONDS = 5.0


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item, settings):
    result = yield
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return result  # ends the process by itself
    raise_in_test = signal.getsignal(signal.SIGALRM)

    def record_and_raise(number, frame):
        if settings.disable_debugger_detection or not pytest_timeout.is_debugging():
            item.stash.setdefault(
                _FIRED,
                f"The test exceeded its time of {settings.timeout:g} s here, and what it executed "
                f"swallowed the exception:\n{_stacks(frame)}",
            )
        raise_in_test(number, frame)

    signal.signal(signal.SIGALRM, record_and_raise)
    repeat = max(settings.timeout * _REPEATS_EACH, 0.5)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, repeat)
    if not item.config.getoption("usepdb"):
        grace = max(settings.timeout * _GRACE, _SHORTEST_GRACE_SECONDS)
        stderr = item.config.stash.get(fault_handler_stderr_fd_key, 2)
        faulthandler.dump_traceback_later(settings.timeout + grace, exit=True, file=stderr)
    return result


def _stacks(frame):
    parts = ["".join(traceback.format_stack(frame))]
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, stack in sys._current_frames().items():
        if ident != threading.get_ident():
            parts.append(f"Thread {names.get(ident, ident)}:\n")
            parts.append("".join(traceback.format_stack(stack)))
    return "".join(parts)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    stacks = item.stash.get(_FIRED, None)
    if stacks is None:
        return report
    del item.stash[_FIRED]
    if report.failed:
        raised = call.excinfo is not None and "Timeout (>" in str(call.excinfo.value)
        if not raised:
            report.sections.append(("time-out", stacks))
    else:
        report.outcome, report.longrepr = "failed", stacks
        if hasattr(report, "wasxfail"):
            del report.wasxfail
    return report
