"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM (schedulers, timeout(1)) and SIGHUP (the
terminal is closed).

While a run trains, hooks.StopOnSignal has them: it saves first. Before and after, and in commands
that do not train, they end the process at once (`end_on_signals`). The workers that load images
leave them to the process that started them (loader.py).
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: One wish to stop may arrive twice: timeout(1) signals the process and its group, and a launcher
#: passes on what the kernel has sent to the whole group already.
SAME_SIGNAL_S = 2.0


class _End:
    """A handler that ends the process with exit code 128 + the signal's number, and one line.

    It raises nothing: an exception may be swallowed, or become another one, wherever it arrives.
    """

    def __call__(self, number: int, frame: object) -> NoReturn:
        try:
            name = signal.Signals(number).name
            line = f"stopped by {name}; --resume continues a run that has saved something\n"
            with contextlib.suppress(OSError):
                os.write(2, line.encode())
            for child in multiprocessing.active_children():
                child.kill()
        finally:
            os._exit(128 + number)


def end_on_signals(numbers: Iterable[int] = STOP_SIGNALS) -> None:
    """Let signals end this process in one line, unless they are ignored (nohup) or somebody else
    handles them. Does nothing outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in numbers:
        if is_default(number):
            signal.signal(number, _End())


def is_default(number: int) -> bool:
    """Whether nobody but Python, or `end_on_signals`, handles a signal, and it is not ignored."""
    handler = signal.getsignal(number)
    return handler in (signal.SIG_DFL, signal.default_int_handler) or isinstance(handler, _End)


def end_silently() -> None:
    """Undo `end_on_signals` in a process whose work is done: what a signal now ends says nothing,
    not even with Python's traceback of a Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        if isinstance(signal.getsignal(number), _End):
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Deliver signals that arrive within at the end. A process that is started within begins
    with them blocked, until it calls `ignore_stop_signals` or installs its own handlers.

    Blocking alone is not enough: the mask is this thread's, the kernel gives a signal to any other
    thread of the process (OpenMP's, TensorBoard's), and Python then runs the handler in this one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            # None: a handler that is not Python's, which signal.signal could not give back.
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
    """For a process that was started in `held_back`, and ends when its parent says so, or ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
