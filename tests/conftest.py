"""Tests and the commands they start use one thread: on tensors this small, more only get in the
way of each other.
"""

import os

import pytest
from support import (
    commands,  # says what the fork server has imported, before it starts
    suite_memory,
    suite_order,
    suite_processes,
    suite_threads,
    suite_timeouts,
)

import moco_d2  # noqa: F401  a test file may import Detectron2 first, which needs our patches

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def first_loggers():
    from support.run_loggers import logger_states

    return logger_states()


@pytest.fixture(autouse=True)
def loggers(first_loggers):
    """A test begins and ends without what commands did to the loggers of this process.

    A fixture of a larger scope may have run one, and Detectron2 then lets "moco_d2" no longer
    propagate, so that caplog would hear a line once or twice, by the order of the tests.
    """
    from support.run_loggers import set_loggers

    set_loggers(first_loggers)
    yield
    set_loggers(first_loggers)


def pytest_configure(config):
    for plugin in (suite_timeouts, suite_order, suite_memory, suite_threads, suite_processes):
        config.pluginmanager.register(plugin)
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist
        capture = config.pluginmanager.getplugin("capturemanager")
        capture.resume_global_capture()  # what its programs say belongs to their test
        commands.fork_server()
        capture.suspend_global_capture()
