"""The memory of a process that trains on a CPU."""

import ctypes
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_TENSOR = 2**30  # bytes; what is larger comes from the system, and goes back to it
_KEPT = 2**31 - 1  # bytes, the most that mallopt takes


def keep_freed_memory() -> bool:
    """Let this process use again what a step has freed, instead of giving it back to the system.

    glibc gives large blocks back at once, and every 4 kB of the next step's activations then cost a
    page fault: 250,000 in a step of a ResNet-50 with 32 images. For steps that all have the same
    shapes; with changing ones, the memory might fall to pieces.

    Returns:
        Whether the C library could be told; only glibc can.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_TENSOR) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
