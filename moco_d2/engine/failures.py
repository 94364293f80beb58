"""What a machine does to a run (no memory, no space, a process that is gone), in one sentence.

Nothing of it is the run's own fault: it is continued with --resume.
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

from moco_d2.errors import UserError

_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
# What torch's allocator on the CPU raises is a RuntimeError with one of these.
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|CUDA out of memory")
_LOST_WORKER = re.compile(
    r"DataLoader worker \(pid.*?\) (?:exited unexpectedly|is killed by signal: \w+)"
)
# gloo's and NCCL's, which are RuntimeErrors, too.
_NO_ANSWER = re.compile(r"[Tt]imed? ?out|Watchdog")
_LOST_PROCESS = re.compile(
    r"Connection (closed by|reset by|refused)|Broken pipe|Socket closed|closed by peer"
    r"|NCCL (communicator was aborted|error)|remote process exited|failed to recv|Watchdog"
)
_COLLECTIVE = re.compile(r"gloo|NCCL|ProcessGroup|TCPStore|c10d|DDP", re.IGNORECASE)
_ROLL_CALL_S = 5.0  # for the others to notice, too
_LENGTH = 160  # of what is quoted


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise what `describe` knows as a UserError.

    Threads keep quiet about such errors, and of files that are gone: TensorBoard's writer passes
    them on to the main one.
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
    """What happened and what to do; None where the error is not of these."""
    text = str(error)
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
            f"out of memory ({_short(text)}): take fewer images at a time (MOCO.ACCUMULATION, "
            "smaller images, or more processes) and continue with --resume"
        )
    if (found := _LOST_WORKER.search(text)) or _in_handing_over(error):
        return (
            f"a process that loads images is gone ({found[0] if found else _short(text)}), as "
            "happens where memory is short: lower DATALOADER.NUM_WORKERS if so, and continue with "
            "--resume"
        )
    return _of_processes(error, text) if isinstance(error, RuntimeError) else None


def _in_handing_over(error: BaseException) -> bool:
    """Whether it came while a DataLoader took over what a worker had ready: if that is killed in
    between, the connection breaks before the loader has noticed.
    """
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    files = [Path(frame.f_code.co_filename).parts[-3:] for frame, _ in frames]
    return ("utils", "data", "dataloader.py") in files and any(
        parts[-2] == "multiprocessing" for parts in files
    )


def _of_processes(error: RuntimeError, text: str) -> str | None:
    if _is_collective(error, text) and _NO_ANSWER.search(text):
        return (
            f"another process of this run does not answer ({_short(text)}): end all processes, see "
            "what holds it up, and start them again with --resume"
        )
    if _is_collective(error, text) and _LOST_PROCESS.search(text):
        return (
            f"another process of this run has ended ({_short(text)}): its own output says why; "
            "start all again with --resume"
        )
    return None


def _is_collective(error: BaseException, text: str) -> bool:
    torch = sys.modules.get("torch")
    known = torch is not None and isinstance(error, torch.distributed.DistError)
    return known or _COLLECTIVE.search(text) is not None


def _short(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    # torch puts the place in its sources first.
    first = (
        re.sub(r"^\[\S+\] |^\[enforce fail at \S+ ", "", lines[0]) if lines else "no reason given"
    )
    return first if len(first) <= _LENGTH else first[:_LENGTH] + " ..."


def _silent_ranks(error: BaseException) -> str:
    """Which processes of a distributed run have not noticed by now that it is over, as a clause:
    they have died, or hang.
    """
    torch = sys.modules.get("torch")
    if torch is None or not _is_collective(error, str(error)):
        return ""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return ""
    # A private name of torch, which has no public one for it: without it, nobody is named.
    default_store = getattr(dist.distributed_c10d, "_get_default_store", None)
    if default_store is None:
        return ""
    silent: list[int] = [0]  # if it does not answer at all: it has the store

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

    # In a thread of its own: a store whose process stands still keeps one waiting.
    thread = threading.Thread(target=call_the_roll, daemon=True)
    thread.start()
    thread.join(2 * _ROLL_CALL_S)
    return f"; no word from rank {', '.join(map(str, silent))}" if silent else ""
