"""What a result was computed with: versions, device, memory."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import moco_d2


def versions() -> dict[str, str]:
    """Of Python, this package and what computes."""
    packages = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    return {"python": platform.python_version(), "moco_d2": moco_d2.__version__, **packages}


def hardware(device: str) -> dict[str, Any]:
    """``{"device", "name", "cpu_count"}`` of a torch device of this machine."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "cpu_count": os.cpu_count(),
    }


def peak_memory_gib(device: str) -> float | None:
    """The most memory that torch held on this process's GPU, GiB; None on a CPU."""
    import torch

    if torch.device(device).type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
