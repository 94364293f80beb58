"""A CUDA device that is not there: tensors that say ``cuda:0``, and a count of what a GPU would
do.

Code that runs under a `Rehearsal` meets the same devices as on a GPU, so a mixture that CUDA
refuses raises here, too. What is counted is what decides the speed of a GPU apart from its kernels:
the ATen calls, the bytes that they touch, the waits of the host, and the copies from the host.

Autograd takes CUDA tensors only in a process of process.py; elsewhere there is no backward pass.
"""

import collections
import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch.optim import optimizer
from torch.optim.optimizer import _foreach_supported_types as _foreach_types
from torch.utils._python_dispatch import TorchDispatchMode

STUB = "REHEARSAL_STUB"  # environment variable: the library of process.py that counts devices
_RESULTS: dict[Any, Any] = {}  # of operators on "meta", which depend on the shapes alone
_DEVICE = torch.device("cuda:0")
_FREE = {"_unsafe_view", "detach", "alias", "lift_fresh", "set_", "_has_same_storage_numel"}
_FREE |= {"empty", "empty_like", "empty_strided", "new_empty"}  # memory that nothing touches yet
# The host has to know how many elements there are.
_SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "nms", "equal"}
_COPIES = {"copy_", "_to_copy"}
_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}  # CUDA fetches indices on the CPU


class CudaTensor(torch.Tensor):
    """A tensor that says it is on a GPU. `elem` has its shape, strides and type.

    `elem` is on "meta", where nothing is computed, or on the CPU, where values are.
    """

    elem: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> "CudaTensor":
        made: CudaTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=_DEVICE,
        )
        made.elem = elem
        return made

    def __repr__(self) -> str:
        return f"CudaTensor({self.elem})"

    def tolist(self) -> Any:
        """Return the values as torch does: in one copy."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} is called on a CUDA tensor after the rehearsal")


class Rehearsal(TorchDispatchMode):
    """Counts what happens on the device while it is active.

    Attributes:
        calls: Name of an ATen operator -> number of calls. Views are not counted.
        bytes: Name of an ATen operator -> bytes of its inputs and results.
        waits: Line of code -> how often the host waits there for the device.
        copies: (whether non-blocking, whether from pinned memory) -> copies from the host.
        copied: Bytes of these copies.
        places: Line of this project or "backward" -> [calls, bytes].
    """

    def __init__(self, *, values: bool = False):
        """
        Args:
            values: Whether values are computed, on the CPU. Without them, the host reads made-up
                ones.
        """
        super().__init__()
        self.home = torch.device("cpu" if values else "meta")
        self.values = values
        self.pinned: dict[int, torch.Tensor] = {}  # kept, so that no other memory has the address
        self.queued = 0  # calls since the beginning
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.calls: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()
        self.copies: collections.Counter[tuple[bool, bool]] = collections.Counter()
        self.copied = 0
        self.places: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])

    def summary(self) -> dict[str, Any]:
        """Return the counts that have budgets, and where the host waits."""
        return {
            "calls": self.calls.total(),
            "waits": self.waits.total(),
            "copies": self.copies.total(),
            "pageable copies": sum(n for (_, pinned), n in self.copies.items() if not pinned),
            "MB copied": round(self.copied / 1e6, 2),
            "GB": round(self.bytes.total() / 1e9, 2),
            "places": dict(self.waits.most_common()),
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors(*args, *kwargs.values())
        on_cuda = [t for t in tensors if isinstance(t, CudaTensor)]
        device = kwargs.get("device")
        target = None if device is None else torch.device(device).type
        operator = _operator(func)
        name = operator.name
        if name == "_pin_memory":  # as pinned memory needs a driver, it is only noted
            self.pinned[args[0].untyped_storage().data_ptr()] = args[0].detach()
            return args[0].detach()
        if not on_cuda and target != "cuda":
            return func(*args, **kwargs)
        on_cpu = [t for t in tensors if not isinstance(t, CudaTensor)]
        mixed = on_cuda and any(t.dim() for t in on_cpu) and name not in _COPIES
        if mixed and name not in _INDEX:
            raise RuntimeError(f"{func} mixes tensors on cuda and on the CPU, in {_place()}")
        answer = self._exchange(name, func, args, kwargs, on_cuda, target)
        if answer is not None:
            return answer
        if name in _SIZED_BY_VALUES or mixed or (name in _INDEX and _has_mask(args[1])):
            self.waits[f"{name} in {_place()}"] += 1
        out = self._compute(func, operator, args, kwargs)
        if not operator.is_free:
            # What an operator writes into its argument `out` is among the tensors already.
            written = [] if operator.out else _tensors(out)
            touched = sum(map(_size, tensors + written))
            self.queued += 1
            self.calls[name] += 1
            self.bytes[name] += touched
            place = self.places[_place(ours=True)]
            place[0] += 1
            place[1] += touched
        return out

    def _exchange(
        self, name: str, func: Any, args: Any, kwargs: Any, on_cuda: list[Any], target: str | None
    ) -> Any:
        """Count an exchange with the host. Return what the host reads, or None."""
        if name == "_local_scalar_dense":
            self.waits[f"item in {_place()}"] += 1
            return func(args[0].elem) if self.values else _number(args[0].dtype)
        if name not in _COPIES:
            return None
        to_host = target == "cpu" if name == "_to_copy" else not isinstance(args[0], CudaTensor)
        if on_cuda and to_host:
            # A new tensor of a non-blocking copy is in pinned memory, and an event tells its time.
            if not (name == "_to_copy" and kwargs.get("non_blocking")):
                self.waits[f"copy to the host in {_place()}"] += 1
            source = on_cuda[0].elem
            if not self.values:
                source = torch.ones_like(source, device="cpu")
            if name == "copy_":
                return args[0].copy_(source)
            return func(source, **kwargs)
        source = args[0] if name == "_to_copy" else args[1]
        if not isinstance(source, CudaTensor):
            # In its schema, copy_ has the flag as its third argument.
            non_blocking = kwargs.get("non_blocking", (*args, False, False)[2] is True)
            self.copies[non_blocking, source.untyped_storage().data_ptr() in self.pinned] += 1
            self.copied += _size(source)
            if not non_blocking:
                self.waits[f"copy to the device in {_place()}"] += 1
        return None

    def _compute(self, func: Any, operator: "_Operator", args: Any, kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = self.home
        if self.values and operator.name == "_to_copy":
            kwargs.pop("non_blocking", None)
        kwargs.pop("pin_memory", None)
        key = (func, _key(args), _key(kwargs)) if not self.values else None
        if key in _RESULTS:
            out = _RESULTS[key]
        else:
            out = func(*self._unwrapped(args), **self._unwrapped(kwargs))
            if key:
                _RESULTS[key] = out
        if operator.out:
            written = [kwargs[name] for name in operator.out]
            return written[0] if len(written) == 1 else tuple(written)
        if operator.is_mutable:
            return args[0] if isinstance(args[0], torch.Tensor) else out
        return _wrapped(out)

    def _unwrapped(self, value: Any) -> Any:
        if isinstance(value, CudaTensor):
            return value.elem
        if isinstance(value, torch.Tensor):
            return value if self.values else value.to("meta")
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._unwrapped, value))
        if isinstance(value, dict):
            return {name: self._unwrapped(one) for name, one in value.items()}
        return value


class _Event:
    """A place in the device's queue, as torch.cuda.Event.

    To wait for it is a wait if nothing is queued behind it, so that the device stands idle then.
    """

    def __init__(self, rehearsal: Rehearsal):
        self.rehearsal = rehearsal
        self.queued = -1

    def record(self) -> None:
        self.queued = self.rehearsal.queued

    def synchronize(self) -> None:
        if self.queued == self.rehearsal.queued:
            self.rehearsal.waits[f"event in {_place()}"] += 1


def _attention(*qkv: torch.Tensor) -> torch.Tensor:
    """Attention in 16 bits, by the kernel that torch takes on a GPU after asking its driver."""
    return torch.ops.aten._scaled_dot_product_flash_attention(*qkv)[0]


class _Operator(NamedTuple):
    """What the schema of an ATen operator says; reading one takes as long as a small call.

    Attributes:
        name: The name without its namespace and overload.
        out: The arguments that it writes into and returns.
        is_mutable: Whether it changes an argument.
        is_free: Whether it touches no memory.
    """

    name: str
    out: tuple[str, ...]
    is_mutable: bool
    is_free: bool


@functools.cache
def _operator(func: Any) -> _Operator:
    schema = func._schema
    name = schema.name.split("::")[1]
    return _Operator(
        name,
        tuple(argument.name for argument in schema.arguments if argument.is_out),
        schema.is_mutable,
        getattr(func, "is_view", False) or name in _FREE,
    )


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(one)) for name, one in value.items())
    return type(value), value


def _wrapped(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return CudaTensor(out)
    return type(out)(map(_wrapped, out)) if isinstance(out, (list, tuple)) else out


def _tensors(*values: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(*value)
        elif isinstance(value, dict):
            found += _tensors(*value.values())
    return found


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _has_mask(indices: Any) -> bool:
    return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices)


def _number(dtype: torch.dtype) -> bool | float | int:
    """Return what the host reads: a scaler of gradients finds no infinity, and True is no error."""
    if dtype == torch.bool:
        return True
    return 0.0 if dtype.is_floating_point else 1


def _place(*, ours: bool = False) -> str:
    """Return the file and the function that call torch; with `ours`, those of this project."""
    packages = ("/moco_d2/",) if ours else ("/moco_d2/", "/detectron2/", "/fvcore/")
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        for package in packages:
            at = file.rfind(package)
            if at >= 0:
                return f"{file[at + 1 :]} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "backward"


@contextlib.contextmanager
def rehearsal(*, values: bool = False) -> Iterator[Rehearsal]:
    """Make ``cuda`` usable as a device for the length of a block; see Rehearsal."""
    torch._C._ensureCUDADeviceGuardSet()
    if STUB in os.environ:
        ctypes.CDLL(os.environ[STUB]).set_fake_devices(127)  # autograd asks for each index
    counted = Rehearsal(values=values)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch.cuda, "get_device_name", lambda *_: "a GPU that is not there"),
            (torch.cuda, "max_memory_allocated", lambda *_: 0),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (torch.cuda, "Event", lambda: _Event(counted)),
            (F, "scaled_dot_product_attention", _attention),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            # Parameters become CudaTensors, too: their old objects would stay of another class.
            (torch.__future__, "_overwrite_module_params_on_conversion", True),
            # Optimizers take all parameters in one call, as they do on a GPU.
            (optimizer, "_foreach_supported_types", [*_foreach_types, CudaTensor]),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        # torch.tensor(..., device="cuda") copies where the rehearsal sees it.
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        # cuDNN's version would be asked for. Its BatchNorm is one call, too.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        yield stack.enter_context(counted)
