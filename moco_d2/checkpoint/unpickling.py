"""Pickles without their code: NumPy arrays, and inert stand-ins for harmless classes."""

import _codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray


class Inert:
    """Holds the state of a class that is not imported; none of that class's code runs."""

    def __init__(self, *args: object) -> None:
        self.args = args


def _stand_in(name: str) -> tuple[type, str]:
    # torch's restricted unpickler calls a class only if it is listed; listed under the foreign
    # name, ours is what it calls.
    return type(name.rpartition(".")[2], (Inert,), {"__module__": __name__}), name


# Options and paths of the training command, beside the tensors.
STAND_INS = [
    _stand_in(name)
    for name in (
        "argparse.Namespace",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
    )
]
# NumPy's numbers, by the names of both its major versions.
NUMBERS: list[Any] = [
    *((multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?SU"},
]

# All that a pickle of NumPy arrays calls; NumPy 2 renamed `numpy.core`.
_NUMPY_GLOBALS = {
    (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Protocol 2 has no bytes: Python 3 writes them as text to be encoded. Other codecs are code.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return _codecs.encode(text, encoding)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        try:
            return _NUMPY_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None


def load_arrays(path: Path) -> Any:
    """Read a pickle of plain values and NumPy arrays (Detectron2, Caffe2), arrays as tensors.

    Raises:
        pickle.UnpicklingError: it needs any other class or function; none is imported.
    """
    with path.open("rb") as f:
        return as_tensors(_ArrayUnpickler(f, encoding="latin1").load())


def as_tensors(value: Any) -> Any:
    """Turn the numeric NumPy arrays of nested dicts into tensors; the rest stays as it is."""
    if isinstance(value, dict):
        return {key: as_tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    return value
