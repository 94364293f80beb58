"""Let Detectron2's default_setup write OUTPUT_DIR/config.yaml completely or not at all.

It opens the file and writes into it, so a kill in between would leave a part under the final name.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from detectron2.engine import defaults

from moco_d2.files import atomic_write


class _WholeFiles:
    """A PathManager that writes text files atomically."""

    def __init__(self, manager: Any):
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **options: Any) -> Any:
        return _whole(path) if mode == "w" else self._manager.open(path, mode, **options)


@contextlib.contextmanager
def _whole(path: str) -> Iterator[Any]:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def whole_config_file() -> Iterator[None]:
    """Make default_setup write atomically in a block."""
    manager = defaults.PathManager
    defaults.PathManager = _WholeFiles(manager)
    try:
        yield
    finally:
        defaults.PathManager = manager
