"""Pickles without their code: an unpickler that can call nothing but what is in pickle_names."""

import pickle
import pickletools
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch

from moco_d2.checkpoint.pickle_names import (
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

# A state_dict with its optimizer takes some 100,000 opcodes; lists of a million numbers are read.
MOST_OPCODES = 2_000_000
# CPython computes the hash of a tuple in a tuple in C, without a limit.
DEEPEST_TUPLE = 100
# Keys other than text and whole numbers may be chosen so that all collide in a dict.
MOST_ODD_KEYS = 10_000
_MOST_BITS = 512  # of a whole number; generators' states have 128
# What no writer of checkpoints uses: a registry of extensions, and calls in other words.
_REFUSED_OPCODES = frozenset(
    ("EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER")
)
_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}
_AS_TORCH = "?bhilqBHILQefd"  # codes of NumPy's types that become tensors


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, persistent: Callable[[object], object] | None):
        super().__init__(file, encoding=LATIN1)
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module == "__builtin__":  # protocol 2 has Python 2's names
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
    """The content of a checked pickle: plain types, tensors, `Inert`.

    Args:
        data: that check_pickle has passed.
        budget: for arrays and tensors.
        persistent: persistent id -> Storage; None: there are none.

    Raises:
        pickle.UnpicklingError: it needs any class or function that is not in the table, or gives
            one of these other arguments than their writers do.
        OversizedError: its arrays and tensors are more than the budget.
    """
    before = BUDGET.set(budget)
    try:
        return _Finished(budget).value(_Unpickler(BytesIO(data), persistent).load())
    finally:
        BUDGET.reset(before)


class _Finished:
    """Replaces stubs by what they stand for, in new containers; what is there twice stays one."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._made: dict[int, Any] = {}
        self._open: list[tuple[Any, Any]] = []

    def value(self, root: Any) -> Any:
        result = self._of(root)
        while self._open:  # no recursion: nesting is anybody's
            old, new = self._open.pop()
            if isinstance(old, dict):
                new.update((key, self._of(value)) for key, value in old.items())
            elif isinstance(old, list):
                new.extend(map(self._of, old))
            else:
                state = {key: self._of(value) for key, value in vars(old).items()}
                vars(old).update(state)
        return result

    def _of(self, value: Any) -> Any:
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
        if isinstance(value, tuple):  # not deep: check_pickle
            return tuple(map(self._of, value))
        if isinstance(value, dict | list):
            new: Any = {} if isinstance(value, dict) else []
            self._open.append((value, new))
            return new
        if isinstance(value, Inert):
            self._open.append((value, value))
        return value


def as_tensor(array: np.ndarray) -> torch.Tensor | np.ndarray:
    """A numeric array as a tensor, without a copy where there can be one memory; others as they
    are.
    """
    if array.dtype.char not in _AS_TORCH:
        return array
    native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native)).reshape(array.shape)


# ---- checking before reading ---------------------------------------------------------------------


class _TupleOf:
    __slots__ = ("depth",)
    depth: int

    def __init__(self, items: Iterable[Any]):
        depths = (item.depth for item in items if isinstance(item, _TupleOf))
        self.depth = 1 + max(depths, default=0)


_NUMBER = object()
# Of what an object is filled with, nothing or None leaves even a tuple as it is.
_IN_PLACE = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
# Of what these opcodes take, the keys of a dict or a set.
_KEYS = {
    "DICT": slice(0, None, 2),
    "SETITEM": slice(1, None, 2),
    "SETITEMS": slice(1, None, 2),
    "ADDITEMS": slice(1, None),
    "FROZENSET": slice(0, None),
}


def check_pickle(file: BinaryIO) -> None:
    """Go through one pickle without building anything, and refuse what the unpickler would not
    survive. `file` is behind it afterwards.

    Raises:
        pickle.UnpicklingError: it has too many opcodes, or one that no checkpoint needs; tuples are
            nested too deep; keys could all collide; a number or a place in the memo is absurd.
        ValueError: it is no pickle.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    odd_keys = 0
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count > MOST_OPCODES:
            raise refused("so long a pickle")
        if name in _REFUSED_OPCODES:
            raise refused(f"the opcode {name}")
        if name in _PUT:
            place = len(memo) if name == "MEMOIZE" else arg
            # The unpickler makes room for all places up to it.
            if not isinstance(place, int) or not 0 <= place <= count:
                raise refused("such a place in the memo")
            memo[place] = stack[-1]
        elif name in _GET:
            stack.append(memo[arg])
        else:
            odd_keys += _step(stack, opcode, arg)
        if odd_keys > MOST_ODD_KEYS:
            raise refused("so many keys that are no text")


def _step(stack: list[Any], opcode: pickletools.OpcodeInfo, arg: Any) -> int:
    """Do to the stack what the opcode does, and count the keys that are no text or number."""
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
    keys = popped[_KEYS[name]] if name in _KEYS else ()
    return sum(1 for key in keys if key is not _NUMBER and not isinstance(key, str))


def _literal(arg: Any) -> Any:
    """What an opcode's own value can be as a key."""
    if isinstance(arg, int):
        if arg.bit_length() > _MOST_BITS:
            raise refused("so large a number")
        return _NUMBER if arg.bit_length() <= UNIQUE_BITS else None
    return "" if isinstance(arg, str) else None


def _pop(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[Any]:
    """Remove what `opcode` takes, without the mark."""
    before = opcode.stack_before
    if not before:
        return []
    items: list[Any] = []
    if pickletools.markobject in before:
        while (item := stack.pop()) is not pickletools.markobject:
            items.append(item)
        before = before[: before.index(pickletools.markobject)]
    items += [stack.pop() for _ in before]
    return items[::-1]
