"""Pickles without their code: NumPy arrays, and inert stand-ins for harmless classes."""

import _codecs
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy._core import multiarray


class Inert:
    """Holds the state of a class that is not imported; none of that class's code runs."""

    def __init__(self, *args: object) -> None:
        self.args = args


class _AsDict:
    # torch's restricted unpickler fills a dict, but no subclass of it.
    def __new__(cls, *args: object) -> dict[Any, Any]:
        return {}


def _stand_in(name: str, base: type) -> tuple[type, str]:
    # torch's restricted unpickler calls a class only if it is listed; listed under the foreign
    # name, ours is what it calls.
    return type(name.rpartition(".")[2], (base,), {"__module__": __name__}), name


_INERT = (
    # Options and paths of the training command.
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    # Hyper-parameters that Lightning keeps, and the types that they name.
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "typing.Any",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
)
_DICTS = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)

# All that a pickle of NumPy arrays calls; NumPy 2 renamed `numpy.core`.
_NUMPY_GLOBALS = {
    (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}

# What torch's restricted unpickler may call besides its own.
SAFE_GLOBALS: list[Any] = [
    *(_stand_in(name, Inert) for name in _INERT),
    *(_stand_in(name, _AsDict) for name in _DICTS),
    *((value, ".".join(name)) for name, value in _NUMPY_GLOBALS.items()),
    # It sets the state of a dtype only if the dtype's own class is listed.
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?OSU"},
]

_TORCH_TYPES = "?bhilqBHILQefd"

# CPython computes the hash of a tuple in a tuple in C, without a limit: some hundred thousand of
# them overflow the stack and end the process.
_DEEPEST_TUPLE = 1000
# Of what an object is filled with, nothing or None leaves even a tuple as it is.
_IN_PLACE = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_ENCODE = ("_codecs", "encode")
_ENCODING = "latin1"


class _Tuple:
    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)


def check_pickle(file: BinaryIO) -> None:
    """Go through one pickle without building anything, and refuse what the unpickler would not.

    Raises:
        pickle.UnpicklingError: tuples are nested without end, or bytes are encoded by another codec
            than the one that pickle uses (some of them take hours).
        ValueError: it is no pickle.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, arg, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
            continue
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
            continue
        popped = _pop(stack, opcode)
        if name == "GLOBAL":
            stack.append(_ENCODE if tuple(arg.split(" ")) == _ENCODE else None)
        elif name == "MARK":
            stack.append(pickletools.markobject)
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(_Tuple(popped))
            if stack[-1].depth > _DEEPEST_TUPLE:
                raise pickle.UnpicklingError("tuples nested too deep")
        elif name in _IN_PLACE:
            stack.append(popped[0])
        elif name == "DUP":
            stack += popped * 2
        elif opcode.stack_after:
            stack.append(arg if isinstance(arg, str) else None)
        encodes = name == "REDUCE" and popped[0] is _ENCODE
        if (_ENCODE in popped) and not (encodes and _is_latin1(popped[1])):
            raise pickle.UnpicklingError("bytes in another encoding than pickle's")


def _pop(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[Any]:
    """Remove what `opcode` takes, without the mark."""
    before = opcode.stack_before
    items: list[Any] = []
    if pickletools.markobject in before:
        while (item := stack.pop()) is not pickletools.markobject:
            items.append(item)
        before = before[: before.index(pickletools.markobject)]
    items += [stack.pop() for _ in before]
    return items[::-1]


def _is_latin1(args: Any) -> bool:
    return isinstance(args, _Tuple) and args.items[1:] == [_ENCODING]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == _ENCODE:
            return _encoder()
        try:
            return _NUMPY_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None


def _encoder() -> Any:
    # Made anew each time: a pickle may set attributes of what it has found.
    def encode(text: str, encoding: str) -> bytes:
        # Protocol 2 has no bytes: Python 3 writes them as text to be encoded.
        if encoding != _ENCODING:
            raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
        return _codecs.encode(text, _ENCODING)

    return encode


def load_arrays(path: Path) -> Any:
    """Read a pickle of plain values and NumPy arrays (Detectron2, Caffe2), arrays as tensors.

    Raises:
        pickle.UnpicklingError: it needs any other class or function, of which none is imported, or
            its arrays declare more numbers than it holds.
    """
    with path.open("rb") as f:
        check_pickle(f)
        f.seek(0)
        content = _ArrayUnpickler(f, encoding=_ENCODING).load()
    arrays = {id(array): array.nbytes for _, _, array in _arrays(content)}
    if sum(arrays.values()) > path.stat().st_size:
        raise pickle.UnpicklingError("arrays larger than the file")
    return as_tensors(content)


def as_tensors(content: Any) -> Any:
    """Replace the numeric NumPy arrays in nested dicts by tensors, in place and without a copy
    where there can be one memory; the rest stays as it is.
    """
    tensors: dict[int, torch.Tensor] = {}
    for owner, key, array in list(_arrays(content)):
        if id(array) not in tensors:
            native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
            tensors[id(array)] = torch.from_numpy(np.ascontiguousarray(native))
        owner[key] = tensors[id(array)].reshape(array.shape)
    return content


def _arrays(content: Any) -> Iterator[tuple[dict[Any, Any], Any, np.ndarray]]:
    """(dict, key, array) of every numeric array; a dict that is there twice, once."""
    pending, seen = [content], set()
    while pending:
        node = pending.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        for key, value in node.items():
            if isinstance(value, dict):
                pending.append(value)
            elif isinstance(value, np.ndarray) and value.dtype.char in _TORCH_TYPES:
                yield node, key, value
