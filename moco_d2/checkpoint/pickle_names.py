"""What a pickle of a checkpoint may name: checked functions and classes of this module.

A pickle is a program that calls what it names. Here each name stands for a function that checks its
arguments, whatever NumPy or torch would accept: neither `numpy.ndarray` (which reads and writes
memory at an offset that it is given) nor a tensor's `__setstate__` is ever within its reach. What
the program builds are stubs; arrays and tensors are made from them when it has ended.
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
_LARGEST = 1 << 48  # of a size, a stride or an offset
_MOST_ARGUMENTS = 16
UNIQUE_BITS = 60  # no two shorter numbers have one hash
_BYTES_AN_ITEM = 100  # of a dict
LATIN1 = "latin1"  # gives every byte of Python 2's strings back


class OversizedError(Exception):
    """What a file stands for takes far more memory than it has bytes. The message says how much."""


class Budget:
    """Bytes that one file may take in memory: arrays and tensors, and what its program makes.

    The same bytes may be used under many names, and a stride of 0 repeats a value without end.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._taken = 0

    def take(self, count: int) -> None:
        """
        Raises:
            OversizedError: they are used up.
        """
        self._taken += count
        if self._taken > self._limit:
            raise OversizedError(f"{self._taken} bytes and more")


#: The budget of the file that is read at this moment.
BUDGET: ContextVar[Budget] = ContextVar("BUDGET")


def refused(what: str) -> pickle.UnpicklingError:
    """The error for something that no writer of checkpoints does."""
    return pickle.UnpicklingError(f"{what} is not allowed")


# ---- what a pickle may name ----------------------------------------------------------------------


class _SealedType(type):
    """A class that a pickle cannot change: BUILD sets attributes of whatever it is given."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise refused("changing a class")


class Inert(metaclass=_SealedType):
    """Holds the state of a class that is not imported; none of that class's code runs."""

    def __init__(self, *args: object) -> None:
        _few(args)
        self.args = args

    def append(self, item: object) -> None:
        """Items of something like a list are left out."""

    def extend(self, items: object) -> None:
        """As `append`."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            BUDGET.get().take(len(state) * _BYTES_AN_ITEM)
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            self.__dict__.update(state)
        else:
            self.state = state


class _Dict(dict[Any, Any], metaclass=_SealedType):
    """Stands for the subclasses of dict; becomes a plain one. Their attributes are left out."""

    __slots__ = ()

    def __init__(self, *args: object) -> None:
        # An OrderedDict of Python 2 is given its items, a Counter a dict, a defaultdict a type.
        _few(args)
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
    """Something that becomes a value when the pickle has ended, and that it cannot change."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise refused(f"a state for {type(self).__name__}")


class _Function(Stub):
    """A function that a pickle may call; as an object of its own, because a function of Python has
    attributes that can be set.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: object) -> Any:
        _few(args)
        return self._call(*args)


def _few(args: tuple[object, ...]) -> None:
    """Each call copies its arguments, and one tuple may be used for many calls."""
    if len(args) > _MOST_ARGUMENTS:
        raise refused(f"a call with {len(args)} arguments")


def _encode(text: object, encoding: object) -> bytes:
    # Protocol 2 has no bytes: Python 3 writes them as text to be encoded. Other codecs take hours.
    if not isinstance(text, str) or encoding != LATIN1:
        raise refused(f"bytes in the encoding {encoding!r:.40}")
    BUDGET.get().take(len(text))
    return text.encode(LATIN1)


def _no_bytes(*args: object) -> bytes:
    if args:
        raise refused("bytes of something")
    return b""


def _as_bytes(value: object) -> bytes:
    if isinstance(value, str):  # of Python 2, which has one type for both
        BUDGET.get().take(len(value))
        return value.encode(LATIN1)
    if isinstance(value, bytearray):
        BUDGET.get().take(len(value))
        return bytes(value)
    if isinstance(value, bytes):
        return value
    raise refused("an array without bytes")


# ---- NumPy ---------------------------------------------------------------------------------------

# Numbers that torch has too, and text. No Python objects: their "bytes" are addresses.
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,7})")


class _DType(Stub):
    """numpy.dtype, of a plain type."""

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
    """numpy.ndarray, which is filled by its state."""

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
    # Written so, and filled later. The real class also takes a buffer, an offset and strides.
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
    """What NumPy writes in protocol 5."""
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
    """torch.FloatStorage and the others."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype | None):
        self.dtype = dtype  # None: untyped, counted in bytes


class Storage(Stub):
    """Numbers of a file that tensors are views of.

    Attributes:
        dtype: None in an untyped storage.
        count: of its elements, or bytes in an untyped one.
        read: gives its bytes, a tensor of uint8.
    """

    __slots__ = ("_flat", "count", "dtype", "read")

    def __init__(
        self, dtype: torch.dtype | None, count: int, read: Callable[[int], torch.Tensor]
    ) -> None:
        """
        Args:
            read: number of bytes -> a tensor of them; raises where the file has another number.
        """
        self.dtype, self.count, self.read = dtype, count, read
        self._flat: torch.Tensor | None = None

    @property
    def itemsize(self) -> int:
        return 1 if self.dtype is None else self.dtype.itemsize

    def flat(self) -> torch.Tensor:
        """All bytes."""
        if self._flat is None:
            self._flat = self.read(self.count * self.itemsize)
        return self._flat


def storage_of(pid: object) -> tuple[StorageType, str, int, Any]:
    """A persistent id of torch: type, key, number of elements, and what follows them.

    Raises:
        pickle.UnpicklingError: it is none.
    """
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise refused("such a persistent id")
    _, kind, key, _, count, *more = pid
    if not isinstance(kind, StorageType) or not isinstance(key, str):
        raise refused("such a storage")
    (number,) = _numbers((count,))
    return kind, key, number, more[0] if more else None


def _numbers(values: object) -> tuple[int, ...]:
    """Sizes, strides or offsets: whole numbers that a file can mean."""
    if not isinstance(values, tuple | list) or len(values) > _MOST_DIMENSIONS:
        raise refused("such a size")
    for value in values:
        if type(value) is not int or not 0 <= value < _LARGEST:
            raise refused(f"the size {value!r:.40}")
    return tuple(values)


class TensorStub(Stub):
    """A tensor's place in a storage, within its bounds."""

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
    storage, offset, size, stride, _, _, dtype = arguments[:7]  # and requires_grad, hooks
    if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES.values():
        raise refused("such a type of tensor")
    return TensorStub(storage, offset, size, stride, dtype)


def _first(data: object, *more: object) -> Any:
    """A parameter, or a tensor of a device, is the tensor itself."""
    if not isinstance(data, TensorStub | ArrayStub):
        raise refused("a parameter without a tensor")
    return data


def _rebuild_from_type(function: object, cls: object, args: object, *state: object) -> Any:
    """A tensor with attributes of Python, which are left out."""
    if not isinstance(function, _Function) or function not in _REBUILD.values():
        raise refused("such a function for a tensor")
    if not isinstance(args, tuple):
        raise refused("such a function for a tensor")
    return function(*args)


def _text(value: object = "", *more: object) -> str:
    """A device or a layout, by name."""
    if not isinstance(value, str):
        raise refused("such a device")
    return value


def _size(values: object = ()) -> tuple[int, ...]:
    return _numbers(values)


# Under the names that a pickle has for them. Quantized numbers become the whole ones that they are
# stored as.
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

# Options and paths of the training command; hyper-parameters that Lightning keeps, and the types
# that they name; tensors without numbers of their own.
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

#: Everything that a pickle may name.
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
        f"torch.{place}{name}Storage": StorageType(dtype)
        for place in ("", "cuda.")
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
    """Everything that a pickle may name, for the page about untrusted input."""
    return tuple(sorted(TABLE))
