"""Reads pickles without running their code: it calls only the functions of pickle_stubs."""

import pickle
import pickletools
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch

from moco_d2.checkpoint.pickle_stubs import (
    BUDGET,
    LATIN1,
    TABLE,
    UNIQUE_BITS,
    ArrayStub,
    Budget,
    Inert,
    Stub,
    TensorStub,
    refused,
)

# A state_dict with its optimizer takes about 100,000 opcodes, and a list of a million numbers must
# be readable.
MOST_OPCODES = 2_000_000
# CPython computes the hash of nested tuples recursively in C, without a limit.
DEEPEST_TUPLE = 100
# A file could choose keys other than text and integers so that all collide in a dict.
MOST_ODD_KEYS = 10_000
_MOST_BITS = 512  # limit of an integer; states of random generators have 128
# No writer of checkpoints uses these: the registry of extensions, and other forms of calls.
_REFUSED_OPCODES = frozenset(
    ("EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER")
)
_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}
_AS_TORCH = "?bhilqBHILQefd"  # codes of NumPy types that become tensors


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, persistent: Callable[[object], object] | None):
        super().__init__(file, encoding=LATIN1)
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module == "__builtin__":  # protocol 2 uses Python 2's names
            full = f"builtins.{_PYTHON_2.get(name, name)}"
        try:
            return TABLE[full]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None

    def persistent_load(self, pid: object) -> object:
        if self._persistent is None:
            raise refused("a persistent id")
        return self._persistent(pid)


def load_pickle(
    data: bytes, budget: Budget, persistent: Callable[[object], object] | None = None
) -> Any:
    """Return the content of a checked pickle: plain types, tensors and `Inert` objects.

    Args:
        data: A pickle that check_pickle has accepted.
        budget: The budget for arrays and tensors.
        persistent: A function from a persistent id to a Storage; None refuses persistent ids.

    Raises:
        pickle.UnpicklingError: If the pickle needs a class or function that is not in the table, or
            calls one with arguments that no writer uses.
        OversizedError: If its arrays and tensors exceed the budget.
    """
    before = BUDGET.set(budget)
    try:
        return _Finished(budget).value(_Unpickler(BytesIO(data), persistent).load())
    finally:
        BUDGET.reset(before)


class _Finished:
    """Replaces stubs by their values, in new containers. Shared objects stay shared."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._made: dict[int, Any] = {}
        self._open: list[tuple[Any, Any]] = []

    def value(self, root: Any) -> Any:
        result = self._finished(root)
        while self._open:  # no recursion, because a file may nest without limit
            old, new = self._open.pop()
            if isinstance(old, dict):
                new.update((key, self._finished(value)) for key, value in old.items())
            elif isinstance(old, list):
                new.extend(map(self._finished, old))
            else:
                state = {key: self._finished(value) for key, value in vars(old).items()}
                vars(old).update(state)
        return result

    def _finished(self, value: Any) -> Any:
        if value is None or isinstance(value, str | int | float):
            return value
        if id(value) not in self._made:
            self._made[id(value)] = self._make(value)
        return self._made[id(value)]

    def _make(self, value: Any) -> Any:
        if isinstance(value, TensorStub):
            self._budget.take(value.nbytes)
            return value.make()
        if isinstance(value, ArrayStub):
            if value.value is None:
                raise refused("an array that is never filled")
            self._budget.take(value.value.nbytes)
            return as_tensor(value.value)
        if isinstance(value, Stub):
            raise refused(f"a {type(value).__name__} as a value")
        if isinstance(value, tuple):  # check_pickle limits the depth of tuples
            return tuple(map(self._finished, value))
        if isinstance(value, dict | list):
            new: Any = {} if isinstance(value, dict) else []
            self._open.append((value, new))
            return new
        if isinstance(value, Inert):
            self._open.append((value, value))
        return value


def as_tensor(array: np.ndarray) -> torch.Tensor | np.ndarray:
    """Return a numeric array as a tensor, without a copy if possible, and other arrays as is."""
    if array.dtype.char not in _AS_TORCH:
        return array
    native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native)).reshape(array.shape)


# ---- checking before reading ---------------------------------------------------------------------


class _TupleOf:
    __slots__ = ("depth",)
    depth: int

    def __init__(self, items: Iterable[Any]):
        depths = [item.depth for item in items if isinstance(item, _TupleOf)]
        self.depth = 1 + (max(depths) if depths else 0)


_NUMBER = object()
# These opcodes fill an object in place.
_IN_PLACE = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
# These opcodes only put their argument, or an empty container, on the stack.
_LITERALS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.stack_after and not opcode.stack_before
    if opcode.name not in {"MARK", *_GET, *_REFUSED_OPCODES}
)
_BY_CODE = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# Code of an opcode -> whether it takes all behind the mark, and how many operands before it.
_OPERANDS = {
    opcode.code: (True, opcode.stack_before.index(pickletools.markobject))
    if pickletools.markobject in opcode.stack_before
    else (False, len(opcode.stack_before))
    for opcode in pickletools.opcodes
}
# The operands of these opcodes that are keys of a dict or items of a set.
_KEYS = {
    "DICT": slice(0, None, 2),
    "SETITEM": slice(1, None, 2),
    "SETITEMS": slice(1, None, 2),
    "ADDITEMS": slice(1, None),
    "FROZENSET": slice(0, None),
}


def check_pickle(file: BinaryIO) -> None:
    """Check one pickle without building anything, and move `file` behind it.

    It refuses pickles that would crash or block the unpickler.

    Raises:
        pickle.UnpicklingError: If the pickle has too many opcodes, or one that no checkpoint needs;
            if tuples nest too deep; if all keys could collide; or if a number or a memo index is
            absurd.
        ValueError: If it is no pickle.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    odd_keys = 0
    for count, (opcode, arg) in enumerate(_opcodes(file)):
        name = opcode.name
        if count > MOST_OPCODES:
            raise refused("so long a pickle")
        if name in _LITERALS:
            stack.append(None if arg is None else _literal(arg))
        elif name in _REFUSED_OPCODES:
            raise refused(f"the opcode {name}")
        elif name in _PUT:
            index = len(memo) if name == "MEMOIZE" else arg
            # The unpickler allocates memory for all indices up to it.
            if not isinstance(index, int) or not 0 <= index <= count:
                raise refused("such an index in the memo")
            memo[index] = stack[-1]
        elif name in _GET:
            stack.append(memo[arg])
        else:
            odd_keys += _step(stack, opcode, arg)
            if odd_keys > MOST_ODD_KEYS:
                raise refused("so many keys that are no text")


def _opcodes(file: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Yield the opcodes and arguments of a pickle.

    It is a faster pickletools.genops, because a long pickle has millions of opcodes.
    """
    read, code = file.read, b""
    while code != pickle.STOP:
        code = read(1)
        if code not in _BY_CODE:
            raise ValueError(f"{code!r} is no opcode")
        opcode = _BY_CODE[code]
        yield opcode, None if opcode.arg is None else opcode.arg.reader(file)


def _step(stack: list[Any], opcode: pickletools.OpcodeInfo, arg: Any) -> int:
    """Apply the opcode to the stack, and return the number of keys that are no text or number."""
    name, popped = opcode.name, _pop(stack, opcode)
    if name == "MARK":
        stack.append(pickletools.markobject)
    elif name in _TUPLES:
        stack.append(_TupleOf(popped))
        if stack[-1].depth > DEEPEST_TUPLE:
            raise refused("a tuple so deep")
    elif name in _IN_PLACE:
        stack.append(popped[0])
    elif name == "DUP":
        stack += popped * 2
    elif opcode.stack_after:
        stack.append(_literal(arg))
    if name not in _KEYS:
        return 0
    return sum(1 for key in popped[_KEYS[name]] if key is not _NUMBER and not isinstance(key, str))


def _literal(arg: Any) -> Any:
    """Return the kind of an opcode's argument as a key."""
    if isinstance(arg, int):
        if arg.bit_length() > _MOST_BITS:
            raise refused("so large a number")
        return _NUMBER if arg.bit_length() <= UNIQUE_BITS else None
    return "" if isinstance(arg, str) else None


def _pop(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[Any]:
    """Remove and return the operands of `opcode`, without the mark."""
    marked, others = _OPERANDS[opcode.code]
    items: list[Any] = []
    if marked:
        while (item := stack.pop()) is not pickletools.markobject:
            items.append(item)
    for _ in range(others):
        items.append(stack.pop())
    items.reverse()
    return items
