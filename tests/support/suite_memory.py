"""What the tests of a file no longer use goes back to the system as the file ends.

glibc keeps freed memory for the process, and pretraining on a CPU tells it to keep more.
"""

import ctypes
import gc

import pytest

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    result = yield
    if _trim and (nextitem is None or nextitem.path != item.path):
        gc.collect()
        _trim(0)
    return result
