"""Describes the environment of a result: versions, device, memory."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from moco_d2.version import __version__


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, this package, torch, torchvision, numpy and `more` packages.

    The version of a package that is not installed is "absent".
    """
    installed = {"python": platform.python_version(), "moco_d2": __version__}
    for package in ("torch", "torchvision", "numpy", *more):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "absent"
    return installed


def hardware(device: str) -> dict[str, Any]:
    """Return ``{"device", "name", "cpu_count"}`` for a torch device of this machine."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "cpu_count": os.cpu_count(),
    }


def peak_memory_gib(device: str) -> float | None:
    """Return the peak memory of torch on this process's GPU in GiB; None on a CPU."""
    import torch

    if torch.device(device).type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def cpu_name() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
