"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM (schedulers, timeout(1)) and SIGHUP.

During training, hooks.StopOnSignal handles them and saves first. Before and after it, and in
commands that do not train, they end the process at once (`end_on_signals`). Workers that load
images ignore them (loader.py).
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from moco_d2.errors import printable

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Within this time, a second signal counts as the same request: timeout(1) signals the process and
#: its group, and a launcher passes on a signal that the group has already received.
SAME_SIGNAL_S = 2.0


@dataclasses.dataclass
class _Work:
    """The run of this process: its command line, and the newest checkpoint. Without a run, how a
    user goes on.
    """

    command: str | None = None
    saved: Path | None = None
    advice: str = "--resume continues a run that has a checkpoint"


_work = _Work()


def begin_work(command: str | None) -> None:
    """Remember the command line of a run, with which a user can continue it."""
    _work.command, _work.saved = command, None


def advise(words: str) -> None:
    """Remember how a user goes on after a signal, for a command that is no run."""
    _work.advice = words


def note_saved(path: Path) -> None:
    """Remember the checkpoint from which the run of this process can be continued."""
    _work.saved = path


def stop_message(number: int) -> str:
    """Return one line for a user whose signal has ended this process: what is saved, and how to go
    on.
    """
    stopped = f"stopped by {signal.Signals(number).name}"
    if _work.command is None:
        return f"{stopped}; {_work.advice}"
    command = printable(_work.command)
    if _work.saved is None:
        return f"{stopped}; nothing new was saved; start again with: {command}"
    resume = "" if "--resume" in command.split() else " --resume"
    return f"{stopped}; saved: {printable(str(_work.saved))}; continue with: {command}{resume}"


class _End:
    """A handler that prints one line and ends the process with exit code 128 + signal number.

    It raises no exception, because the interrupted code could catch or replace it.
    """

    def __call__(self, number: int, frame: object) -> NoReturn:
        try:
            answer(stop_message(number))
            for child in multiprocessing.active_children():
                child.kill()
        finally:
            os._exit(128 + number)


def answer(line: str) -> None:
    """Write a line to stderr from a handler. On a terminal it gets a line of its own, also if there
    is a progress bar.
    """
    with contextlib.suppress(OSError):
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}{line}\n".encode(errors="backslashreplace"))


def end_on_signals(numbers: Iterable[int] = STOP_SIGNALS) -> None:
    """Let signals end this process with one line, unless they are ignored (nohup) or handled.

    It does nothing outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in numbers:
        if is_default(number):
            signal.signal(number, _End())


def is_default(number: int) -> bool:
    """Return whether a signal has the handler of Python or of `end_on_signals`."""
    handler = signal.getsignal(number)
    return handler in (signal.SIG_DFL, signal.default_int_handler) or isinstance(handler, _End)


def end_silently() -> None:
    """Undo `end_on_signals` at the end of a process.

    A signal then ends it without a message, and without Python's traceback of a Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        if isinstance(signal.getsignal(number), _End):
            signal.signal(number, signal.SIG_DFL)


def end_workers() -> None:
    """Kill the workers that load images and are left at the end of a process.

    If one of them has died, the others wait for work. multiprocessing would send them SIGTERM,
    which they ignore, and would wait for them forever.
    """
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler reports each as lost
    for worker in workers:
        worker.kill()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Deliver the signals that arrive in a block at its end.

    A process that the block starts has them blocked until it calls `ignore_stop_signals` or
    installs its own handlers.

    Blocking alone is not enough, because only this thread has the mask. The kernel gives a signal
    to another thread of the process (OpenMP's, TensorBoard's), and Python then runs the handler in
    this thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            # None is a handler that is not Python's; signal.signal could not restore it.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                handlers[number] = signal.signal(number, lambda it, _: received.append(it))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for caught in dict.fromkeys(received):
            signal.raise_signal(caught)


def ignore_stop_signals() -> None:
    """Ignore stop signals in a process that was started in `held_back` and ends with its parent."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_with_parent() -> None:
    """Let the kernel end this process when the thread that forked it ends, whatever ends that.

    A parent cannot do this itself: SIGKILL gives it no time, and a signal can arrive between the
    fork and the entry in its list of children. This works only on Linux.
    """
    import torch.multiprocessing

    torch.multiprocessing._prctl_pr_set_pdeathsig(  # type: ignore[attr-defined] # defined in C++
        signal.SIGKILL
    )
    parent = multiprocessing.parent_process()
    if (
        parent is not None
        and multiprocessing.get_start_method() != "forkserver"  # its server is the parent then
        and os.getppid() != parent.pid
    ):
        os._exit(0)  # the parent has ended before the call above
