"""Run a function right after a module is imported, so that `import moco_d2` stays as cheap as it is
complete.

Importing Detectron2's modeling package takes seconds. Registering a head in it from `import
moco_d2` would make every ``--help`` pay for that; a note to be acted on when Detectron2 itself is
imported costs nothing.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType


class _CallbackLoader(importlib.abc.Loader):
    """Executes a module with its own loader, then calls back."""

    def __init__(self, loader: importlib.abc.Loader, callback: Callable[[], None]):
        self._loader = loader
        self._callback = callback

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module looks as if we had never been there (inspect, pkgutil, pickling).
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._callback()


class _AfterImportFinder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.pending: dict[str, Callable[[], None]] = {}

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.pending:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _CallbackLoader(spec.loader, lambda: self._call_back(fullname))
                return spec
        return None

    def _call_back(self, fullname: str) -> None:
        # Not before the import has succeeded: many a library looks for the spec of Detectron2 only
        # to see whether it is installed.
        callback = self.pending.pop(fullname, None)
        if callback is not None:
            callback()


_finder = _AfterImportFinder()


def after_import(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` once: now if module `name` is already imported, else right after its import.

    A module that is never imported, or not installed, never triggers its callback.
    """
    if name in sys.modules:
        callback()
        return
    _finder.pending[name] = callback
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
