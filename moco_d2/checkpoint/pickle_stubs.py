"""The names that a checkpoint's pickle may use: checked functions and classes of this module.

A pickle is a program that calls functions by name. Here each name stands for a function that checks
its arguments, whatever NumPy or torch would accept. A pickle never reaches `numpy.ndarray`, which
reads and writes memory at any offset, nor a tensor's `__setstate__`. The program builds stubs only.
Arrays and tensors are made from them after its end.
"""

import math
import pickle
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

_MOST_DIMENSIONS = 64
_LARGEST = 1 << 48  # limit of a size, a stride or an offset
_MOST_ARGUMENTS = 16
UNIQUE_BITS = 60  # numbers of at most this length have different hashes
_BYTES_AN_ITEM = 100  # estimate for an item of a dict
LATIN1 = "latin1"  # keeps every byte of Python 2's strings


class OversizedError(Exception):
    """A file would unpack to far more memory than it has bytes. The message says how much."""


class Budget:
    """The bytes that one file may take in memory, for arrays, tensors and its program's objects.

    The file's size is no bound: the same bytes may be used under many names, and a stride of 0
    repeats one value any number of times.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._taken = 0

    def take(self, count: int) -> None:
        """Take `count` bytes from the budget.

        Raises:
            OversizedError: If the budget is used up.
        """
        self._taken += count
        if self._taken > self._limit:
            raise OversizedError(f"{self._taken} bytes and more")


#: The budget of the file that is being read.
BUDGET: ContextVar[Budget] = ContextVar("BUDGET")


def refused(construct: str) -> pickle.UnpicklingError:
    """Return the error for a construct that no writer of checkpoints uses."""
    return pickle.UnpicklingError(f"{construct} is not allowed")


# ---- plain values and inert classes --------------------------------------------------------------


class _SealedType(type):
    """A class that a pickle cannot change. The opcode BUILD sets attributes of any object."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise refused("changing a class")


class Inert(metaclass=_SealedType):
    """Holds the state of an object whose class is not imported. None of that class's code runs."""

    def __init__(self, *args: object) -> None:
        _check_few(args)
        self.args = args

    def append(self, item: object) -> None:
        """Ignore the item of a list-like object."""

    def extend(self, items: object) -> None:
        """Ignore the items of a list-like object."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            BUDGET.get().take(len(state) * _BYTES_AN_ITEM)
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            self.__dict__.update(state)
        else:
            self.state = state


class _Dict(dict[Any, Any], metaclass=_SealedType):
    """Stands for subclasses of dict and becomes a plain dict. Their attributes are left out."""

    __slots__ = ()

    def __init__(self, *args: object) -> None:
        # An OrderedDict of Python 2 comes with its items, a Counter with a dict, and a defaultdict
        # with a type.
        _check_few(args)
        items = args[-1] if args and isinstance(args[-1], list | dict) else ()
        BUDGET.get().take(len(items) * _BYTES_AN_ITEM)
        pairs = items.items() if isinstance(items, dict) else items
        for key, value in pairs:
            number = isinstance(key, int) and key.bit_length() <= UNIQUE_BITS
            if not (number or isinstance(key, str)):
                raise refused("a key that is neither text nor a short number")
            self[key] = value

    def __setstate__(self, state: object) -> None:
        pass


class Stub:
    """An object that becomes a value after the pickle's end, and that the pickle cannot change."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise refused(f"a state for {type(self).__name__}")


class _Function(Stub):
    """A function that a pickle may call. A plain function has attributes that it could set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: object) -> Any:
        _check_few(args)
        return self._call(*args)


def _check_few(args: tuple[object, ...]) -> None:
    """Limit the arguments: each call copies them, and one tuple may be used for many calls."""
    if len(args) > _MOST_ARGUMENTS:
        raise refused(f"a call with {len(args)} arguments")


def _encode(text: object, encoding: object) -> bytes:
    # Protocol 2 has no bytes: Python 3 writes them as text to encode. Other codecs can take hours.
    if not isinstance(text, str) or encoding != LATIN1:
        raise refused(f"bytes in the encoding {encoding!r:.40}")
    BUDGET.get().take(len(text))
    return text.encode(LATIN1)


def _no_bytes(*args: object) -> bytes:
    if args:
        raise refused("bytes of something")
    return b""


def _as_bytes(value: object) -> bytes:
    if isinstance(value, str):  # Python 2 has one type for text and bytes
        BUDGET.get().take(len(value))
        return value.encode(LATIN1)
    if isinstance(value, bytearray):
        BUDGET.get().take(len(value))
        return bytes(value)
    if isinstance(value, bytes):
        return value
    raise refused("an array without bytes")


# ---- NumPy ---------------------------------------------------------------------------------------

# Number types that torch has too, and text. Python objects are excluded: their "bytes" are
# addresses.
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,7})")


class _DType(Stub):
    """Stands for a plain numpy.dtype."""

    __slots__ = ("value",)

    def __init__(self, code: object, *flags: object):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise refused(f"arrays of the type {code!r:.40}")
        self.value = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        # (version, byte order, subarray, names, fields, itemsize, alignment, flags ...)
        if (
            not isinstance(state, tuple)
            or state[2:5] != (None, None, None)
            or state[1] not in ("<", ">", "|", "=")
        ):
            raise refused("a type of several fields")
        self.value = self.value.newbyteorder(state[1])


def _plain_dtype(value: object) -> np.dtype:
    if not isinstance(value, _DType):
        raise refused("an array without a type")
    return value.value


class ArrayStub(Stub):
    """Stands for a numpy.ndarray, which its state fills."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: object) -> None:
        if self.value is not None or not isinstance(state, tuple) or len(state) != 5:
            raise refused("such a state of an array")
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    plain, content, sizes = _plain_dtype(dtype), _as_bytes(data), _numbers(shape)
    if order not in ("C", "F") or math.prod(sizes) * plain.itemsize != len(content):
        raise refused("an array of another size than its bytes")
    if not content:
        return np.empty(sizes, plain)
    return np.frombuffer(content, plain).reshape(sizes, order=order)


def _empty_array(shape: object = None, *more: object) -> ArrayStub:
    # Arrays are written empty and filled later. The real class also accepts a buffer, an offset and
    # strides.
    if shape != (0,) or more:
        raise refused("numpy.ndarray with arguments")
    return ArrayStub()


def _reconstruct(cls: object, shape: object, typecode: object) -> ArrayStub:
    if cls is not _NDARRAY:
        raise refused("a subclass of numpy.ndarray")
    return _empty_array(shape)


def _frombuffer(
    data: object, dtype: object, shape: object, order: object, *more: object
) -> ArrayStub:
    """Make an array as NumPy writes it in protocol 5."""
    if more:
        raise refused("numpy's _frombuffer with more arguments")
    stub = ArrayStub()
    stub.value = _array(data, dtype, shape, order)
    return stub


def _scalar(dtype: object, data: object) -> Any:
    plain, content = _plain_dtype(dtype), _as_bytes(data)
    if not content or len(content) != plain.itemsize:
        raise refused("a number of another size than its type")
    BUDGET.get().take(len(content))
    return np.frombuffer(content, plain)[0].item()


# ---- torch ---------------------------------------------------------------------------------------


class StorageType(Stub):
    """Stands for torch.FloatStorage and the other storage types."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype | None):
        self.dtype = dtype  # None in an untyped storage, whose elements are bytes


class Storage(Stub):
    """Numbers of a file, of which tensors are views.

    Attributes:
        dtype: The type of its elements; None in an untyped storage.
        count: The number of its elements, or of its bytes in an untyped storage.
        read: A function from a number of bytes to a uint8 tensor. It raises if the file has another
            number of bytes.
    """

    __slots__ = ("_flat", "count", "dtype", "read")

    def __init__(
        self, dtype: torch.dtype | None, count: int, read: Callable[[int], torch.Tensor]
    ) -> None:
        self.dtype, self.count, self.read = dtype, count, read
        self._flat: torch.Tensor | None = None

    @property
    def itemsize(self) -> int:
        return 1 if self.dtype is None else self.dtype.itemsize

    def flat(self) -> torch.Tensor:
        """Return all bytes."""
        if self._flat is None:
            self._flat = self.read(self.count * self.itemsize)
        return self._flat


def storage_of(pid: object) -> tuple[StorageType, str, int, Any]:
    """Return a persistent id of torch as type, key, number of elements, and view (or None).

    Raises:
        pickle.UnpicklingError: If `pid` is no persistent id of torch.
    """
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise refused("such a persistent id")
    _, kind, key, _, count, *more = pid
    if not isinstance(kind, StorageType) or not isinstance(key, str):
        raise refused("such a storage")
    (number,) = _numbers((count,))
    return kind, key, number, more[0] if more else None


def _numbers(values: object) -> tuple[int, ...]:
    """Return sizes, strides or offsets after checking that they are plausible integers."""
    if not isinstance(values, tuple | list) or len(values) > _MOST_DIMENSIONS:
        raise refused("such a size")
    for value in values:
        if type(value) is not int or not 0 <= value < _LARGEST:
            raise refused(f"the size {value!r:.40}")
    return tuple(values)


class TensorStub(Stub):
    """The position of a tensor in a storage, within the storage's bounds."""

    __slots__ = ("dtype", "offset", "size", "storage", "stride")

    def __init__(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        dtype: torch.dtype | None,
    ):
        if not isinstance(storage, Storage):
            raise refused("a tensor without a storage")
        dtype = dtype or storage.dtype
        if dtype is None:
            raise refused("a tensor without a type")
        (self.offset,) = _numbers((offset,))
        self.size, self.stride = _numbers(size), _numbers(stride)
        self.storage, self.dtype = storage, dtype
        if len(self.size) != len(self.stride):
            raise refused("a tensor of more sizes than strides")
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.size, self.stride, strict=True)
        )
        elements = storage.count * storage.itemsize // dtype.itemsize
        if math.prod(self.size) and last >= elements:
            raise refused("a tensor beyond its storage")

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.dtype.itemsize

    def make(self) -> torch.Tensor:
        flat = self.storage.flat()
        whole = flat[: len(flat) // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        if not math.prod(self.size):
            return torch.empty(self.size, dtype=self.dtype)
        return whole.as_strided(self.size, self.stride, self.offset)


def _rebuild_tensor(
    storage: object, offset: object, size: object, stride: object, *more: object
) -> TensorStub:
    return TensorStub(storage, offset, size, stride, None)


def _rebuild_tensor_v3(*arguments: object) -> TensorStub:
    # The unused arguments are requires_grad and hooks.
    storage, offset, size, stride, _, _, dtype = arguments[:7]
    if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES.values():
        raise refused("such a type of tensor")
    return TensorStub(storage, offset, size, stride, dtype)


def _first(data: object, *more: object) -> Any:
    """Return the tensor of a parameter or of a device tensor."""
    if not isinstance(data, TensorStub | ArrayStub):
        raise refused("a parameter without a tensor")
    return data


def _rebuild_from_type(function: object, cls: object, args: object, *state: object) -> Any:
    """Return a tensor without its Python attributes."""
    if (
        not isinstance(function, _Function)
        or function not in _REBUILD.values()
        or not isinstance(args, tuple)
    ):
        raise refused("such a function for a tensor")
    return function(*args)


def _text(value: object = "", *more: object) -> str:
    """Return the name of a device or a layout."""
    if not isinstance(value, str):
        raise refused("such a device")
    return value


def _size(values: object = ()) -> tuple[int, ...]:
    return _numbers(values)


# The names are those of pickles. A quantized number becomes the integer that is stored.
_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
}
_REBUILD = {
    "torch._utils._rebuild_tensor": _Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": _Function(_rebuild_tensor_v3),
    "torch._utils._rebuild_qtensor": _Function(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Function(_first),
    "torch._utils._rebuild_parameter_with_state": _Function(_first),
    "torch._utils._rebuild_device_tensor_from_numpy": _Function(_first),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _Function(_first),
}
_NDARRAY = _Function(_empty_array)

# Options and paths of the training command, hyperparameters of Lightning and the types that they
# name, and tensors without a storage.
_INERT = (
    "collections.deque",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"numpy.{name}" for name in ("float16", "float32", "float64", "int32", "int64", "uint8")),
    "torchvision.transforms.functional.InterpolationMode",
    "types.SimpleNamespace",
    "uuid.UUID",
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
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
    "builtins.bytearray",
    "builtins.complex",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.set",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_sparse_tensor",
)
_DICTS = (
    "addict.addict.Dict",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "detectron2.config.config.CfgNode",
    "easydict.EasyDict",
    "fvcore.common.config.CfgNode",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)
_QSCHEMES = (
    *("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric"),
    "per_channel_affine_float_qparams",
)

#: Every name that a pickle may use.
TABLE: dict[str, Any] = {
    "_codecs.encode": _Function(_encode),
    "builtins.bytes": _Function(_no_bytes),
    "numpy.dtype": _Function(_DType),
    "numpy.ndarray": _NDARRAY,
    # NumPy 2 renamed numpy.core.
    **{
        f"numpy.{core}.{name}": _Function(function)
        for core in ("core", "_core")
        for name, function in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
    **_REBUILD,
    **_DTYPES,
    **{
        f"torch.{module}{name}Storage": StorageType(dtype)
        for module in ("", "cuda.")
        for name, dtype in _STORAGES.items()
    },
    "torch.storage.UntypedStorage": StorageType(None),
    "torch._tensor._rebuild_from_type_v2": _Function(_rebuild_from_type),
    "torch.Size": _Function(_size),
    "torch.device": _Function(_text),
    "torch.serialization._get_layout": _Function(_text),
    **{f"torch.{name}": name for name in _QSCHEMES},
    **{name: type(name.rpartition(".")[2], (Inert,), {"__module__": __name__}) for name in _INERT},
    **dict.fromkeys(_DICTS, _Dict),
}


def allowed_names() -> tuple[str, ...]:
    """Return every name that a pickle may use, for the page about untrusted input."""
    return tuple(sorted(TABLE))
