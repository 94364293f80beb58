"""What the tests of a file no longer use goes back to the system as the file ends.

glibc keeps freed memory for the process, and pretraining on a CPU tells it to keep more.
"""

import ctypes
import gc
import sys

import pytest

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What has been imported and collected stays to the end: no collection looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    result = yield
    if _trim and (nextitem is None or nextitem.path != item.path):
        collect()
        _trim(0)
    return result


def collect() -> None:
    """Collect garbage, after the loaders that are still open have ended their workers.

    A loader whose test has failed, as it should, is in a traceback: the collector would end its
    queues before its workers, which then notice after 5 s.
    """
    if loader := sys.modules.get("moco_d2.engine.loader"):
        loader._close()
    gc.collect()
