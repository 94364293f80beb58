"""Tune the memory allocation of a process that trains on a CPU."""

import ctypes
import platform

# Parameters of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_TENSOR = 2**30  # bytes; larger blocks are always given back to the system
_KEPT = 2**31 - 1  # bytes, the maximum of mallopt


def keep_freed_memory(*, largest: int = _LARGEST_TENSOR, kept: int = _KEPT) -> bool:
    """Let this process reuse freed memory instead of giving it back to the system.

    glibc gives large blocks back at once. Then every 4 kB of the next step's activations cost a
    page fault: 250,000 in a step of a ResNet-50 with 32 images. Use this only if all steps have the
    same shapes, because changing shapes may fragment the memory, or with small bounds.

    Args:
        largest: Bytes; larger blocks are given back all the same.
        kept: Bytes that are kept at most at the end of the memory.

    Returns:
        Whether the C library has accepted this; only glibc can.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, largest) and mallopt(_M_TRIM_THRESHOLD, kept))
