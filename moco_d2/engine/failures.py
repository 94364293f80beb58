"""Describe failures of the machine in one sentence: no memory, no space, a lost process.

These are not faults of the run itself, and --resume continues it.
"""

import contextlib
import errno
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from moco_d2.engine.launcher_environment import of_agent
from moco_d2.errors import UserError

_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_NO_FILES = re.compile(r"Too many open files|received \d+ items of ancdata", re.IGNORECASE)
# Texts of the RuntimeErrors of torch's allocators.
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|CUDA out of memory")
_LOST_WORKER = re.compile(
    r"DataLoader worker \(pid.*?\) (?:exited unexpectedly|is killed by signal: \w+)"
)
# Texts of the RuntimeErrors of gloo and NCCL.
_NO_ANSWER = re.compile(r"[Tt]imed? ?out|Watchdog")
_LOST_PROCESS = re.compile(
    r"Connection (closed by|reset by|refused)|Broken pipe|Socket closed|closed by peer"
    r"|NCCL (communicator was aborted|error)|remote process exited|failed to recv|Watchdog"
)
_COLLECTIVE = re.compile(r"gloo|NCCL|ProcessGroup|TCPStore|c10d|DDP|pair closure", re.IGNORECASE)
_ROLL_CALL_S = 5.0  # seconds in which the other processes notice the failure, too
_LENGTH = 160  # characters that are quoted


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the errors that `describe` knows into UserErrors.

    Threads do not print these errors, nor any OSError, because TensorBoard's writer passes them on
    to the main thread.
    """
    excepthook = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        error = args.exc_value
        if error is None or not (isinstance(error, OSError) or describe(error)):
            excepthook(args)

    threading.excepthook = quiet
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = describe(error)
        if sentence is None:
            raise
        raise UserError(sentence + _silent_ranks(error)) from error
    finally:
        threading.excepthook = excepthook


def describe(error: BaseException) -> str | None:
    """Return the failure and its fix as a sentence, or None if the error is not a known failure."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package and package != "moco_d2" and package not in sys.stdlib_module_names:
            return f"{package} is not installed: moco-d2 doctor says how to install it"
    if isinstance(error, OSError) and error.errno in _NO_WRITING:
        where = f" {error.filename}" if error.filename else ""
        return (
            f"cannot write{where} ({error.strerror}): free some space, or choose another folder, "
            "and continue with --resume"
        )
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(text)
    ):
        return (
            f"out of memory ({_short(text)}): use less memory per step (MOCO.ACCUMULATION, smaller "
            "images, or more processes) and continue with --resume"
        )
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or (
        isinstance(error, RuntimeError | OSError) and _NO_FILES.search(text)
    ):
        return (
            f"too many open files ({_short(text)}): raise the limit (ulimit -n), or lower "
            "DATALOADER.NUM_WORKERS, and continue with --resume"
        )
    if (match := _LOST_WORKER.search(text)) or _is_lost_connection_to_worker(error):
        return (
            f"a process that loads images is gone ({match[0] if match else _short(text)}), perhaps "
            "for lack of memory: if so, lower DATALOADER.NUM_WORKERS; continue with --resume"
        )
    return _describe_collective(error, text) if isinstance(error, RuntimeError) else None


def _is_lost_connection_to_worker(error: BaseException) -> bool:
    """Return whether a DataLoader lost the connection to a worker while it received a batch.

    If the worker is killed then, the connection breaks before the loader notices the end.
    """
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    files = [Path(frame.f_code.co_filename).parts[-3:] for frame, _ in frames]
    return ("utils", "data", "dataloader.py") in files and any(
        parts[-2] == "multiprocessing" for parts in files
    )


def _describe_collective(error: RuntimeError, text: str) -> str | None:
    if _is_collective(error, text) and _NO_ANSWER.search(text):
        return (
            f"another process of this run does not answer ({_short(text)}): end all processes, "
            "find the cause, and start them again with --resume"
        )
    if _is_collective(error, text) and _LOST_PROCESS.search(text):
        return (
            f"another process of this run has ended ({_short(text)}): see the cause in its output, "
            "and start all processes again with --resume"
        )
    return None


def _is_collective(error: BaseException, text: str) -> bool:
    torch = sys.modules.get("torch")
    known = torch is not None and isinstance(error, torch.distributed.DistError)
    return known or _COLLECTIVE.search(text) is not None


def _short(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    # torch begins with a position in its source code.
    first = (
        re.sub(r"^\[\S+\] |^\[enforce fail at \S+ ", "", lines[0]) if lines else "no reason given"
    )
    return first if len(first) <= _LENGTH else first[:_LENGTH] + " ..."


def _silent_ranks(error: BaseException) -> str:
    """Name, as a clause, the processes that do not notice the end of the run.

    They have died, or they hang.
    """
    torch = sys.modules.get("torch")
    if torch is None or not _is_collective(error, str(error)):
        return ""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return ""
    # torch has only a private name for this. Without it, no rank is named.
    default_store = getattr(dist.distributed_c10d, "_get_default_store", None)
    if default_store is None:
        return ""
    # If the store does not answer, the process that has it is silent.
    silent: list[int] = [] if of_agent() else [0]

    def call_the_roll() -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone
            store = default_store()
            keys = [f"moco_d2/noticed/{rank}" for rank in range(dist.get_world_size())]
            store.set(keys[dist.get_rank()], "1")
            deadline = time.monotonic() + _ROLL_CALL_S
            while missing := [rank for rank, key in enumerate(keys) if not store.check([key])]:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            silent[:] = missing

    # The store may block forever if its process hangs, so another thread asks it.
    thread = threading.Thread(target=call_the_roll, daemon=True)
    thread.start()
    thread.join(2 * _ROLL_CALL_S)
    return f"; no word from rank {', '.join(map(str, silent))}" if silent else ""
