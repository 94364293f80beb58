"""Tests and the commands they start use one thread: on tensors this small, more only get in the
way of each other.
"""

import os

import pytest
from support import (
    commands,  # noqa: F401  says what the fork server has imported, before it starts
    suite_memory,
    suite_order,
    suite_processes,
    suite_threads,
    suite_timeouts,
)

import moco_d2  # noqa: F401  a test file may import Detectron2 first, which needs our patches

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def loggers():
    """A command that runs in this process leaves no handler, whose stream would be closed."""
    from support.run_loggers import restored_loggers

    with restored_loggers():
        yield


def pytest_configure(config):
    for plugin in (suite_timeouts, suite_order, suite_memory, suite_threads, suite_processes):
        config.pluginmanager.register(plugin)
