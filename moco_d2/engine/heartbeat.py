"""End a process when another process of its run hangs, is killed or fails.

gloo's operations fail by themselves then. NCCL's wait on the GPU until torch's watchdog aborts the
process without naming a rank. Therefore every process counts in the job's store while it lives, and
writes there why it fails.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

from moco_d2.errors import USER_ERROR_EXIT_CODE, UserError, printable

_PERIOD_S = 2.0  # seconds between two beats
_BEATS = 10  # fewest beats in the time limit
_GRACE_S = 10.0  # seconds for the main thread to end by itself, with its own sentence
_FAILURE = "failure"
_SEEN = "failure_seen"
_LENGTH = 500  # characters of a failure


class Heartbeat:
    """A context in which this process is watched by the others, and watches them."""

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        rank: int,
        world_size: int,
        limit_s: float,
        owner: str = "rank 0 of this run",
        end: Callable[[str], None] | None = None,
    ):
        """
        Args:
            connect: Returns a connection to the job's store for the use of one thread.
            rank: The rank of this process.
            world_size: The number of processes.
            limit_s: The seconds without a beat after which a process counts as silent.
            owner: Whose process has the store, in sentences.
            end: A function that ends this process with a sentence; None prints it and exits with
                code 2.
        """
        self._store = connect()
        self._rank, self._world_size = rank, world_size
        self._period_s = min(_PERIOD_S, limit_s / _BEATS)
        # A little less than the limit, so the rank is named before torch's watchdog aborts. Looks
        # are counted and not seconds, so a job that is suspended as a whole goes on.
        self._most_looks = max(3, int(limit_s / self._period_s) - 2)
        self._limit_s = limit_s
        self._owner = owner
        self._end = end or end_process
        self._stop = threading.Event()
        self._beats = 0
        self._counts: dict[int, int] = {}
        self._looks: dict[int, int] = {}

    def __enter__(self) -> "Heartbeat":
        self._store.add(self._key(self._rank), 1)
        for work in (self._beat, self._watch_store):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def tell_failure(self, error: BaseException, *, wait_s: float) -> None:
        """Tell the other processes why this one ends, and wait until they have read it.

        Only the first failure is told. Nothing happens if the store is gone.

        Args:
            error: What has ended this process.
            wait_s: The longest time to wait.
        """
        self._stop.set()
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        text = f"rank {self._rank} of this run has ended ({_short(reason)})"
        # The store may block forever if its process hangs.
        thread = threading.Thread(target=self._tell, args=(text, wait_s), daemon=True)
        thread.start()
        thread.join(wait_s + 1)

    def _tell(self, text: str, wait_s: float) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.compare_set(_FAILURE, "", text)
            self._store.add(_SEEN, 1)
            for _ in range(int(wait_s / 0.1)):
                if self._store.add(_SEEN, 0) >= self._world_size:
                    return
                threading.Event().wait(0.1)

    def _beat(self) -> None:
        """Count, look at the others, and end this process after a failure of one of them."""
        problem = None
        try:
            while problem is None and not self._stop.wait(self._period_s):
                self._store.add(self._key(self._rank), 1)
                self._beats += 1
                problem = self._failure() or self._silence()
            if problem is not None and not self._stop.is_set():
                self._store.compare_set(_FAILURE, "", problem)
                self._store.add(_SEEN, 1)
        except RuntimeError:  # the store is gone
            problem = problem or f"{self._owner} has ended (it had the store)"
        if problem is not None and not self._stop.wait(_GRACE_S):
            self._end(_with_advice(problem))

    def _failure(self) -> str | None:
        if not self._store.check([_FAILURE]):
            return None
        return str(self._store.get(_FAILURE).decode())

    def _silence(self) -> str | None:
        """Return a sentence if a process has not counted for the limit.

        Rank 0 looks at all, and the others at rank 0, so the store's load grows with the number of
        processes and not with its square.
        """
        for rank in range(1, self._world_size) if self._rank == 0 else (0,):
            count = self._store.add(self._key(rank), 0)
            self._looks[rank] = (
                self._looks.get(rank, 0) + 1 if count == self._counts.get(rank) else 0
            )
            self._counts[rank] = count
            if self._looks[rank] >= self._most_looks:
                return self._silent(f"rank {rank} of this run")
        return None

    def _silent(self, who: str) -> str:
        return f"{who} does not answer (for {self._limit_s:g} s)"

    def _watch_store(self) -> None:
        """End this process if the store blocks, because the process that has it stands still."""
        before, looks = -1, 0
        while not self._stop.wait(self._period_s):
            looks = looks + 1 if self._beats == before else 0
            before = self._beats
            # Two looks more: a failure that the other thread handles comes first.
            if looks >= self._most_looks + _GRACE_S / self._period_s + 2:
                self._end(_with_advice(self._silent(self._owner)))
                return

    @staticmethod
    def _key(rank: int) -> str:
        return f"beat/{rank}"


def end_process(sentence: str) -> None:
    """Print a sentence, and end this process and its workers with exit code 2.

    The main thread may wait for a GPU, where no exception reaches it.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"error: {printable(sentence)}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(USER_ERROR_EXIT_CODE)


def _with_advice(problem: str) -> str:
    return f"{problem}: see its output, and start all processes again with --resume"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LENGTH else line[:_LENGTH] + " ..."
