"""What this project needs besides torch and torchvision, with measured sizes: gpu.py --wheels.

gpu_wheels.json has the packages of the lock that a fresh install of torch and torchvision does not
bring, for Python 3.12 on Linux and x86-64, with the bytes of their wheels as downloaded (or built,
of the few that are published as sources only).
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("gpu_wheels.json")


def packages() -> list[dict[str, Any]]:
    """Return name, version, module and bytes of each package."""
    return json.loads(FILE.read_text())


def missing() -> list[dict[str, Any]]:
    """Return the packages whose module this Python does not find, in whatever version."""
    return [one for one in packages() if not _is_found(one["module"])]


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def describe_missing() -> str:
    """Return a line for each missing package, and their total."""
    lacking = missing()
    lines = [f"{one['bytes'] / 1e6:8.2f} MB  {one['name']}=={one['version']}" for one in lacking]
    total = sum(one["bytes"] for one in lacking) / 1e6
    return "\n".join([*lines, f"{total:8.2f} MB  in total: {len(lacking)} wheels are missing here"])


def table() -> str:
    """Return all packages as the Markdown table of docs/gpu_minutes.md."""
    rows = [
        f"| {one['name']} | {one['version']} | {one['bytes'] / 1e6:.2f} |" for one in packages()
    ]
    total = sum(one["bytes"] for one in packages()) / 1e6
    head = ["| package | version | MB |", "|---|---|---|"]
    return "\n".join([*head, *rows, f"| {len(rows)} wheels | | {total:.2f} |"])
