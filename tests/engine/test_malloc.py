import platform

import pytest
from support.commands import run_python

from moco_d2.engine import malloc

PAGES = 2**20 // 4096  # of a megabyte
PROGRAM = """if True:
    import resource, sys
    import torch
    from moco_d2.engine.malloc import keep_freed_memory
    how, megabytes = sys.argv[1], int(sys.argv[2])
    bounds = {"largest": 32 << 20, "kept": 64 << 20} if how == "bounded" else {}
    assert how == "given back" or keep_freed_memory(**bounds)
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(megabytes, 2**20, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(min(faults() for _ in range(20)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(
    ("how", "megabytes", "low", "high"),
    [
        ("given back", 100, 0.9, 1.1),
        ("kept", 100, 0, 0.1),
        ("bounded", 100, 0.9, 1.1),
        ("bounded", 16, 0, 0.1),
    ],
)
def test_what_was_freed_is_used_again(how, megabytes, low, high):
    found = int(run_python("-c", PROGRAM, how, str(megabytes)).stdout)
    assert low * megabytes * PAGES <= found <= high * megabytes * PAGES


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(malloc.platform, "libc_ver", lambda: ("", ""))
    assert malloc.keep_freed_memory() is False
