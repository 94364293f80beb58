"""A DataLoader whose workers end with their parent process, and not before.

A signal to a process group (timeout(1), systemd, scancel, a closed terminal) also reaches the
workers. If it ended them, the run would lose the step that it is about to save.
"""

import atexit
import functools
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader

from moco_d2.engine.device import usable_cores
from moco_d2.engine.malloc import keep_freed_memory
from moco_d2.engine.signals import end_with_parent, held_back, ignore_stop_signals
from moco_d2.errors import UserError

if TYPE_CHECKING:
    from torch.utils.data.dataloader import _BaseDataLoaderIter

_LARGEST_IMAGE = 32 << 20  # bytes; the memory of a larger one is given back to the system

logger = logging.getLogger(__name__)

# torch warns of more workers than cores in four lines; SteadyLoader does so in one.
warnings.filterwarnings("ignore", message="This DataLoader will create")

# On any machine. Each takes hundreds of megabytes, and a signal waits until all are started.
_MOST_WORKERS = 64
# Iterators with workers that this process has started.
_OPEN: "weakref.WeakSet[Any]" = weakref.WeakSet()


class SteadyLoader(DataLoader[Any]):
    """torch's DataLoader, but its workers ignore SIGINT, SIGTERM and SIGHUP.

    The workers end when the loader is closed, by SIGKILL if they do not answer. They also end with
    their parent process, whatever ends it.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        worker_init_fn: Callable[[int], None] | None = None,
        **options: Any,
    ):
        """
        Args:
            dataset: See torch's DataLoader.
            worker_init_fn: A worker calls this with its number when it starts.
            options: Further arguments of torch's DataLoader.
        """
        self._begin = _WorkerBegin(worker_init_fn)
        super().__init__(dataset, worker_init_fn=self._begin, **options)
        _check_cores(self.num_workers)

    def __iter__(self) -> "_BaseDataLoaderIter":
        self._begin.of_main_thread = threading.current_thread() is threading.main_thread()
        # Until a worker sets its own handlers, it has those of this process.
        with held_back():
            iterator = super().__iter__()
        workers = getattr(iterator, "_workers", ())
        for worker in workers:
            worker.terminate = worker.kill  # torch calls this at last, and SIGTERM is ignored
        if workers:
            _OPEN.add(iterator)
        return iterator


class _WorkerBegin:
    """The first actions of a worker."""

    def __init__(self, then: Callable[[int], None] | None):
        self.then = then
        self.of_main_thread = False

    def __call__(self, worker_id: int) -> None:
        ignore_stop_signals()
        if self.of_main_thread:  # the kernel reports the end of the thread, not of the process
            end_with_parent()
        if self.then is not None:
            self.then(worker_id)


@functools.cache  # warns once for each number
def _check_cores(workers: int) -> None:
    """
    Raises:
        UserError: If there are so many workers that starting them would stop the machine.
    """
    cores = usable_cores()
    key = "DATALOADER.NUM_WORKERS (--workers of a linear evaluation)"
    if workers > max(_MOST_WORKERS, 2 * cores):
        raise UserError(f"{workers} workers are too many for {cores} core(s): lower {key}")
    if workers > cores:
        logger.warning(
            "%d workers load images on %d core(s): if that is slow, lower %s", workers, cores, key
        )


@atexit.register
def _close() -> None:
    """End the workers of open loaders when Python ends. Python would send SIGTERM and wait."""
    for iterator in list(_OPEN):
        iterator._shutdown_workers()


os.register_at_fork(after_in_child=_OPEN.clear)


def build_loader(dataset: Any, *, num_workers: int, **kwargs: Any) -> DataLoader[Any]:
    """Return a DataLoader that does not change the random numbers and threads of this process."""
    return SteadyLoader(
        dataset,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=begin_worker,
        # A loader draws a seed when it starts, and a resumed run starts one more. If both used one
        # generator, this would change the next order of ShuffleBN.
        generator=torch.Generator(),
        **kwargs,
    )


def begin_worker(worker_id: int) -> None:
    """Let a worker use one thread, and keep the memory of one image for the next one."""
    torch.set_num_threads(1)
    keep_freed_memory(largest=_LARGEST_IMAGE, kept=2 * _LARGEST_IMAGE)
