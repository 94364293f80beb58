"""Whether torch.compile is used here, and how convolutions find their fastest algorithm."""

import contextlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator

import torch

logger = logging.getLogger(__name__)

_OLDEST_GPU = (7, 0)  # compute capability that Triton supports


def should_compile(setting: bool | None, device: torch.device) -> bool:
    """Return whether networks on `device` are compiled, and log why not on a GPU.

    Args:
        setting: MOCO.COMPILE. None means on every GPU where compiling works.
        device: The device of the networks.
    """
    if setting is not None:
        reason = None if setting else "MOCO.COMPILE is False"
    elif device.type != "cuda":
        return False
    else:
        reason = _obstacle(device)
    if reason and device.type == "cuda":
        logger.info("the encoders are not compiled, so steps are slower: %s", reason)
    return reason is None


def _obstacle(device: torch.device) -> str | None:
    """Return why torch.compile cannot work on a GPU, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not any(map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang"))):
        return "there is no C compiler, which Triton needs: install gcc"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_GPU:
        found, needed = (".".join(map(str, one)) for one in (capability, _OLDEST_GPU))
        return f"the GPU has compute capability {found}, and Triton needs {needed}"
    return None


@contextlib.contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms for each new shape of a block, and keep the fastest.

    In deterministic mode nothing changes, because the choice depends on times. Elsewhere the
    setting would cost a search for every new shape: detectors and evaluations see many.
    """
    before = torch.backends.cudnn.benchmark
    deterministic = (
        torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    )
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
