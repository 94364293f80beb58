"""A DataLoader whose workers end with the process that started them, and not before.

A signal to a process group (timeout(1), systemd, scancel, a closed terminal) reaches the workers
too. Were they to die of it, the run would lose the step that it is about to save.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader

from moco_d2.engine.signals import held_back, ignore_stop_signals

if TYPE_CHECKING:
    from torch.utils.data.dataloader import _BaseDataLoaderIter

# Iterators with workers, in the process that has started them.
_OPEN: "weakref.WeakSet[Any]" = weakref.WeakSet()


class SteadyLoader(DataLoader[Any]):
    """torch's DataLoader; its workers ignore SIGINT, SIGTERM and SIGHUP.

    They end when the loader is closed, by SIGKILL if they do not answer, and when the process that
    started them ends, however it does.
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
            dataset: see torch.
            worker_init_fn: called with a worker's number when it begins.
            options: torch's.
        """
        self._begin = _WorkerBegin(worker_init_fn)
        super().__init__(dataset, worker_init_fn=self._begin, **options)

    def __iter__(self) -> "_BaseDataLoaderIter":
        self._begin.of_main_thread = threading.current_thread() is threading.main_thread()
        # Between its start and its first line a worker would have this process's handlers.
        with held_back():
            iterator = super().__iter__()
        workers = getattr(iterator, "_workers", ())
        for worker in workers:
            worker.terminate = worker.kill  # torch's last resort is SIGTERM
        if workers:
            _OPEN.add(iterator)
        return iterator


class _WorkerBegin:
    """What a worker does first."""

    def __init__(self, then: Callable[[int], None] | None):
        self.then = then
        self.of_main_thread = False

    def __call__(self, worker_id: int) -> None:
        ignore_stop_signals()
        if self.of_main_thread:  # the kernel tells of the end of the thread, not of the process
            _end_with_parent()
        if self.then is not None:
            self.then(worker_id)


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent ends. torch's workers ask every 5 seconds,
    and not while they are busy; elsewhere than on Linux that has to do.
    """
    torch.multiprocessing._prctl_pr_set_pdeathsig(  # type: ignore[attr-defined] # made in C++
        signal.SIGKILL
    )
    parent = multiprocessing.parent_process()
    if (
        parent is not None
        and multiprocessing.get_start_method() != "forkserver"  # which is the parent, then
        and os.getppid() != parent.pid
    ):
        os._exit(0)  # it has ended before the kernel was told


@atexit.register
def _close() -> None:
    """End the workers of loaders that are still open when Python ends: its own way is SIGTERM, and
    to wait.
    """
    for iterator in list(_OPEN):
        iterator._shutdown_workers()


os.register_at_fork(after_in_child=_OPEN.clear)


def build_loader(dataset: Any, *, num_workers: int, **kwargs: Any) -> DataLoader[Any]:
    """A DataLoader that leaves the process's random numbers and threads alone."""
    return SteadyLoader(
        dataset,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread_per_worker,
        # A loader draws a seed when it starts. From the process's generator, that would change the
        # order ShuffleBN draws next, and a resumed run starts a loader more.
        generator=torch.Generator(),
        **kwargs,
    )


def _one_thread_per_worker(worker_id: int) -> None:
    torch.set_num_threads(1)
