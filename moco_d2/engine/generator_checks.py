"""Check the states of random number generators in a checkpoint.

NumPy and torch do not check a state. With a position beyond its end, they read other memory or
crash at the next random number.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco_d2.engine.resume_checks import check_count, entry, require, shown

_WORDS = 624  # words in the state of the Mersenne twister, which all three use on the CPU
_WORD = 2**32
_PYTHON_VERSION = 3  # version of the state of random.getstate
# Layout of the state of torch's CPU generator (CPUGeneratorImplState in
# aten/src/ATen/CPUGeneratorImpl.cpp).
_TORCH_STATE = np.dtype(
    [
        ("seed", "<u8"),
        ("left", "<i4"),
        ("seeded", "<i4"),
        ("next", "<u8"),
        ("words", "<u8", (_WORDS,)),
        ("normal", "<f8", (3,)),
        ("normal_is_valid", "<i4"),
        ("padding", "<i4"),
        ("next_normal", "<f4"),
        ("next_normal_is_valid", "<i4"),
    ]
)


def check_rng_state(state: Any) -> None:
    """Check a result of process_state.rng_state.

    Raises:
        UnusableError: If a generator must not be set to the state.
    """
    _check_torch(entry(state, "torch", Tensor, "rng"))
    _check_python(entry(state, "python", list, "rng"))
    _check_numpy(entry(state, "numpy", list, "rng"))
    _check_gaussian(entry(state, "numpy_cached_gaussian", float, "rng"))
    if "cuda" in state:
        _check_cuda(entry(state, "cuda", Tensor, "rng"))


def _check_torch(state: Tensor) -> None:
    size = _TORCH_STATE.itemsize
    good = state.dtype == torch.uint8 and tuple(state.shape) == (size,)
    require(good, f"its state of torch's generator is not a tensor of {size} bytes")
    fields = np.frombuffer(state.numpy().tobytes(), _TORCH_STATE)[0]
    left, following = int(fields["left"]), int(fields["next"])
    # `left` - 1 words are unused. After seeding, (left, next) is (1, 0).
    good = 1 <= left <= _WORDS and (left + following == _WORDS + 1 or (left, following) == (1, 0))
    require(
        good and int(fields["seeded"]) == 1 and int(fields["words"].max()) < _WORD,
        "its state of torch's generator is impossible",
    )
    finite = np.isfinite(fields["normal"]).all() and np.isfinite(fields["next_normal"])
    require(bool(finite), "its state of torch's generator has a number that is not finite")


def _check_cuda(state: Tensor) -> None:
    require(
        state.dtype == torch.uint8 and state.dim() == 1,
        "its state of the GPU's generator is not a tensor of bytes",
    )
    if torch.cuda.is_available():
        size = torch.cuda.get_rng_state().numel()
        require(
            state.numel() == size, f"its state of the GPU's generator does not have {size} bytes"
        )


def _check_python(state: list[Any]) -> None:
    require(len(state) == 3, "its state of Python's generator does not have 3 parts")
    version, internal, cached = state
    require(
        type(version) is int and version == _PYTHON_VERSION,
        f"its state of Python's generator has the version {shown(version)}",
    )
    good = type(internal) in (list, tuple) and len(internal) == _WORDS + 1
    require(good, f"its state of Python's generator is not {_WORDS + 1} numbers")
    for word in internal:
        check_count(word, "state of Python's generator", most=_WORD - 1)
    check_count(internal[-1], "position in the state of Python's generator", most=_WORDS)
    if cached is not None:
        _check_gaussian(cached)


def _check_numpy(state: list[Any]) -> None:
    require(len(state) == 4, "its state of NumPy's generator does not have 4 parts")
    name, keys, position, has_gauss = state
    require(
        type(name) is str and name == "MT19937",
        f"its state of NumPy's generator is of {shown(name)} instead of 'MT19937'",
    )
    good = isinstance(keys, Tensor) and keys.dtype == torch.int64 and keys.shape == (_WORDS,)
    require(good, f"its state of NumPy's generator is not {_WORDS} int64 numbers")
    good = int(keys.min()) >= 0 and int(keys.max()) < _WORD
    require(good, "its state of NumPy's generator has numbers of more than 32 bits")
    check_count(position, "position in the state of NumPy's generator", most=_WORDS)
    check_count(has_gauss, "flag has_gauss of NumPy's generator", most=1)


def _check_gaussian(value: Any) -> None:
    good = type(value) is float and math.isfinite(value)
    require(good, f"its cached gaussian is {shown(value)}, not a finite number")
