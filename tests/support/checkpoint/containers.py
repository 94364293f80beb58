"""Containers of checkpoints: torch's two formats, pickles, safetensors, npz."""

import contextlib
import io
import itertools
import pickle
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

_FOREIGN: dict[str, type] = {}


def foreign(path: str, *bases: type) -> type:
    """A class of a package that the reader of the file does not have."""
    module, _, name = path.rpartition(".")
    if path not in _FOREIGN:
        _FOREIGN[path] = type(name, bases, {"__module__": module})
    return _FOREIGN[path]


@contextlib.contextmanager
def foreign_importable() -> Iterator[None]:
    """Pickle names a class only if it can be imported: while writing, it can."""
    added, before = [], []
    for path, cls in _FOREIGN.items():
        parts = path.split(".")[:-1]
        for name in itertools.accumulate(parts, "{}.{}".format):
            if name not in sys.modules:
                sys.modules[name] = types.ModuleType(name)
                added.append(name)
        module = sys.modules[cls.__module__]
        before.append((module, cls.__name__, getattr(module, cls.__name__, None)))
        setattr(module, cls.__name__, cls)
    try:
        yield
    finally:
        for module, name, value in reversed(before):  # of a package that is installed
            setattr(module, name, value)
        for name in added:
            del sys.modules[name]


def torch_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def torch_legacy(content: Any, path: Path) -> None:
    """The format of torch before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def pickled_by_numpy_1(content: Any, path: Path) -> None:
    path.write_bytes(_numpy_1(pickle.dumps(content, protocol=2)))


def pickled_by_python_2(content: Any, path: Path) -> None:
    with io.BytesIO() as buffer:
        _Python2Pickler(buffer, protocol=2).dump(content)
        path.write_bytes(_numpy_1(buffer.getvalue()))


def _numpy_1(data: bytes) -> bytes:
    # NumPy 2 moved the function that its pickles name.
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


class _Python2Pickler(pickle._Pickler):
    """Python 2 has one type for str and bytes, of which Python 3 writes neither."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _save_string(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = _save_string


def safetensors(content: dict[str, Tensor], path: Path) -> None:
    save_file(content, path, metadata={"format": "pt"})


def npz(content: dict[str, np.ndarray], path: Path) -> None:
    np.savez_compressed(path, **content)
