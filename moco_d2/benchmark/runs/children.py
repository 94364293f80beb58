"""Child processes that have the heavy imports already."""

import importlib
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from moco_d2.benchmark.runs.execution import MODULES
from moco_d2.engine.signals import end_with_parent
from moco_d2.errors import UserError

_T = TypeVar("_T")


def in_child(tools: set[str], function: Callable[..., _T], *args: Any) -> _T:
    """Return ``function(*args)`` of a child process that has the imports of `tools`. The datasets
    that it registers, and its memory, end with it. It computes with one thread.

    What computes with torch belongs into such a child: OpenMP's threads do not survive a fork, so
    the runs that this process forks later would wait for them forever.

    Raises:
        UserError: If the function raises it, or if the system ends the child process.
    """
    try:
        context = warmed(tools)
        with ProcessPoolExecutor(1, mp_context=context, initializer=_begin) as pool:
            return pool.submit(function, *args).result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads datasets or weights was ended by the system, probably for lack "
            "of memory; close other programs, or use a smaller dataset"
        ) from error


def _begin() -> None:
    import torch

    end_with_parent()  # a pool's process waits for its next task forever
    torch.set_num_threads(1)


def warmed(tools: set[str]) -> Any:
    """Return a multiprocessing context whose processes have the imports of `tools` already.

    On a CPU these imports take as long as a small run. This process imports the modules and forks.
    The imports neither initialize CUDA nor start Python threads.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    for tool in tools & MODULES.keys():
        importlib.import_module(MODULES[tool])
    # From 3.12, Python warns of the threads of numerical libraries, which are idle.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    return multiprocessing.get_context("fork")
