"""Join the process group of a job, and leave it.

Before torch makes the group, the processes compare what a wrong start would turn into a wait
without end: their numbers, their backend and their GPUs.
"""

import contextlib
import datetime
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moco_d2.engine.device import take_own_gpu
from moco_d2.engine.heartbeat import Heartbeat
from moco_d2.engine.launcher_environment import AGENT, Place, of_agent, restarts
from moco_d2.errors import Stopped, UserError

_TIMEOUT_S = 1800  # seconds, Detectron2's default
_REPORT_S = 10  # seconds until the first line about missing processes; then it doubles
_POLL_S = 0.05
_LAST_WORD_S = 5.0  # seconds in which the other processes read why this one ends
_SILENT = "a program listens on this port, but does not answer as rank 0 does: choose another port"


def timeout() -> datetime.timedelta:
    """Return the time that a process waits for another one before the run fails.

    It is MOCO_D2_TIMEOUT seconds, by default Detectron2's half an hour. The main process may
    evaluate for so long while the others wait.

    Raises:
        UserError: If MOCO_D2_TIMEOUT is not a number greater than 0.
    """
    seconds = os.environ.get("MOCO_D2_TIMEOUT", str(_TIMEOUT_S))
    try:
        time = datetime.timedelta(seconds=float(seconds))
    except (ValueError, OverflowError) as error:
        raise UserError(f"MOCO_D2_TIMEOUT is {seconds!r}: give a number of seconds") from error
    if time <= datetime.timedelta(0):
        raise UserError(f"MOCO_D2_TIMEOUT is {seconds!r}: give a number greater than 0")
    return time


@contextlib.contextmanager
def joined(place: Place, *, on_gpu: bool, flags: Mapping[str, str]) -> Iterator[None]:
    """Join the group of all processes for a block, with NCCL on GPUs and gloo on CPUs.

    All processes must have the same flags (name -> value).

    An error in the block is told to the other processes, which end, too.

    Raises:
        UserError: If the processes do not fit together, or some of them do not come.
    """
    import torch.distributed as dist
    from detectron2.utils import comm
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    from moco_d2.plugin import compat

    limit = timeout()
    backend = "nccl" if on_gpu else "gloo"
    gpu = take_own_gpu(place.local_rank, place.local_world_size) if on_gpu else None
    store = _meet(place, {"backend": backend, "gpu": gpu, "flags": dict(flags)}, limit)
    dist.init_process_group(
        backend,
        store=PrefixStore("group", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=limit,
    )
    compat.set_local_process_group(place.local_world_size)
    compat.set_timeout_of_gloo_group(limit)
    heartbeat = Heartbeat(
        lambda: _connect(place, limit, host=False),
        rank=place.rank,
        world_size=place.world_size,
        limit_s=limit.total_seconds(),
        owner=AGENT if of_agent() else "rank 0 of this run",
    )
    with heartbeat:
        try:
            yield
            comm.synchronize()  # rank 0 has the store, so it must not end first
        except Stopped:  # all processes stop together
            raise
        except BaseException as error:
            heartbeat.tell_failure(error, wait_s=_LAST_WORD_S)
            raise
    dist.destroy_process_group()


def _meet(place: Place, facts: dict[str, Any], limit: datetime.timedelta) -> Any:
    """Wait for all processes, and return the store in which they have met.

    Rank 0 decides for all whether they fit together.

    Raises:
        UserError: In all processes, if they do not fit together or some do not come.
    """
    store = _connect(place, limit, host=place.rank == 0)
    own = {**vars(place), **facts}
    try:
        number = store.add("arrivals", 1)
        store.set(f"arrival/{number}", json.dumps(own))
        if place.rank == 0:
            problem = _wait_for_all(store, place, limit)
            store.set("verdict", problem)
            if problem:  # those that are on their way, or come twice, read it, too
                expected = max(place.world_size, store.add("arrivals", 0)) - 1
                _wait(lambda: store.add("read", 0) >= expected, _LAST_WORD_S)
        else:
            _wait(lambda: store.check(["verdict"]), limit.total_seconds() + _LAST_WORD_S)
            if not store.check(["verdict"]):
                raise _unanswered([0], place, limit)
            problem = store.get("verdict").decode()
            store.add("read", 1)
    except RuntimeError as error:  # torch's, when the store has gone
        raise UserError(
            f"rank 0 of this run at {place.address}:{place.port} has ended before rank "
            f"{place.rank} could meet it: see its output, and start all processes again"
        ) from error
    if number > place.world_size:  # rank 0 has decided without this process
        problem = problem or _twice(place.rank)
    if problem:
        raise UserError(problem)
    return store


def _connect(place: Place, limit: datetime.timedelta, *, host: bool) -> Any:
    """Return a connection to the job's store, which rank 0 or torchrun's agent has.

    Raises:
        UserError: If there is none.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    serves = host and not of_agent()
    deadline = time.monotonic() + limit.total_seconds()
    report = _Report(place)
    where = f"{place.address}:{place.port}"
    while True:
        hint = _why_unreachable(place, serves=serves)
        if hint is None:
            step = min(_REPORT_S, max(deadline - time.monotonic(), 1))
            try:
                store = _in_time(
                    lambda step=step: TCPStore(  # type: ignore[misc]
                        place.address,
                        place.port,
                        is_master=serves,
                        timeout=datetime.timedelta(seconds=step),
                        wait_for_workers=False,
                    ),
                    lambda: time.monotonic() > deadline,
                    lambda: report.waiting_for([0], _SILENT),
                )
                break
            except (RuntimeError, ValueError) as error:
                hint = _SILENT
                if serves or isinstance(error, ValueError):
                    raise _cannot_meet(where, str(error).splitlines()[0]) from error
        if serves:
            raise _cannot_meet(where, hint)
        if time.monotonic() > deadline:
            raise _no_store(place, limit, hint)
        report.waiting_for([0], hint)
        time.sleep(_POLL_S)
    store.set_timeout(limit)
    # torchrun's agent keeps its store when it restarts the processes.
    return PrefixStore(f"moco_d2/{restarts()}", store)


def _why_unreachable(place: Place, *, serves: bool) -> str | None:
    """Return why no connection to the place's address can be made, or None.

    torch would wait for one, and print its stack.
    """
    try:
        if serves:  # nobody listens there yet
            socket.getaddrinfo(place.address, place.port)
        else:
            socket.create_connection((place.address, place.port), _REPORT_S).close()
    except (socket.gaierror, UnicodeError):
        return f"the address {place.address} (MASTER_ADDR or --dist-url) is not known here"
    except OSError as error:  # of a wait that goes on, if nobody listens yet
        return "" if isinstance(error, ConnectionRefusedError) else str(error)
    return None


def _in_time(make: Callable[[], Any], is_late: Callable[[], bool], wait: Callable[[], None]) -> Any:
    """Return what `make` returns. It may block forever, so another thread calls it.

    Raises:
        RuntimeError: If it is late.
        Exception: If `make` raises it.
    """
    made: list[Any] = []
    problems: list[Exception] = []

    def work() -> None:
        try:
            made.append(make())
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while not is_late():
        thread.join(_POLL_S)
        if problems:
            raise problems[0]
        if made:
            return made[0]
        wait()
    raise RuntimeError(_SILENT)


def _cannot_meet(where: str, reason: str) -> UserError:
    return UserError(
        f"the processes of this run cannot meet at {where} ({reason}): set MASTER_PORT (or "
        "--dist-url) to a free port of rank 0's machine, and MASTER_ADDR to its address"
    )


def _wait_for_all(store: Any, place: Place, limit: datetime.timedelta) -> str:
    """Wait until all processes have arrived, and return a problem or ""."""
    arrivals: list[dict[str, Any]] = []
    report = _Report(place)
    deadline = time.monotonic() + limit.total_seconds()
    while True:
        for number in range(len(arrivals), store.add("arrivals", 0)):
            arrivals.append(json.loads(store.get(f"arrival/{number + 1}")))
        problem = _misfit(arrivals)
        missing = sorted(set(range(place.world_size)) - {one["rank"] for one in arrivals})
        if problem or not missing:
            return problem
        if time.monotonic() > deadline:
            return str(_unanswered(missing, place, limit))
        report.waiting_for(missing)
        time.sleep(_POLL_S)


def _misfit(arrivals: list[dict[str, Any]]) -> str:
    """Return why these processes cannot be those of one run, or ""."""
    arrivals = sorted(arrivals, key=lambda one: one["rank"])
    reasons = {
        "world_size": "start the same number of processes on each machine, and all machines once",
        "local_world_size": "start the same number of processes on each machine",
        "backend": "let all machines have usable GPUs, or set MODEL.DEVICE cpu for all",
    }
    names = {
        "world_size": "the number of processes",
        "local_world_size": "the number of processes on a machine",
        "backend": "the backend of torch.distributed",
    }
    for fact, advice in reasons.items():
        if problem := _difference(names[fact], {one["rank"]: one[fact] for one in arrivals}):
            return f"{problem}: {advice}"
    for flag in dict.fromkeys(flag for one in arrivals for flag in one["flags"]):
        values = {one["rank"]: one["flags"].get(flag) for one in arrivals}
        if problem := _difference(flag, values):
            return f"{problem}: start all processes with the same flags"
    ranks_of_gpu: dict[str, int] = {}
    for before, one in zip([None, *arrivals], arrivals, strict=False):
        rank, gpu = one["rank"], one["gpu"]
        if before is not None and before["rank"] == rank:
            return _twice(rank)
        if gpu is not None and ranks_of_gpu.setdefault(gpu, rank) != rank:
            return (
                f"rank {ranks_of_gpu[gpu]} and rank {rank} would share the GPU {gpu}: start one "
                "process per GPU"
            )
    return ""


def _difference(name: str, values: Mapping[int, Any]) -> str:
    """Return which ranks have which value (rank -> value), or "" if all have the same."""
    ranks: dict[Any, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(value, []).append(rank)
    parts = [f"{value} for rank {_listed(of)}" for value, of in ranks.items()]
    return f"{name} is {' and '.join(parts)}" if len(parts) > 1 else ""


def _twice(rank: int) -> str:
    return f"two processes have the rank {rank}: start each process once, with its own RANK"


def _unanswered(
    missing: list[int], place: Place, limit: datetime.timedelta, hint: str = ""
) -> UserError:
    return UserError(
        f"rank {_listed(missing)} of {place.world_size} processes did not come to {place.address}:"
        f"{place.port} within {limit.total_seconds():g} s{hint and f' ({hint})'}: start all "
        "processes, or for a single one unset WORLD_SIZE"
    )


def _no_store(place: Place, limit: datetime.timedelta, hint: str) -> UserError:
    if not of_agent():
        return _unanswered([0], place, limit, hint)
    return UserError(
        f"{AGENT}, which has the store of this run, does not answer at "
        f"{place.address}:{place.port} within {limit.total_seconds():g} s{hint and f' ({hint})'}: "
        "start torchrun again on all machines, or unset TORCHELASTIC_USE_AGENT_STORE"
    )


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown} and {len(ranks) - 8} more" if len(ranks) > 8 else shown


class _Report:
    """Prints, ever more seldom, which processes are missing."""

    def __init__(self, place: Place):
        self._place = place
        self._started = time.monotonic()
        self._next_s = float(_REPORT_S)

    def waiting_for(self, missing: list[int], hint: str = "") -> None:
        waited = time.monotonic() - self._started
        if waited < self._next_s:
            return
        self._next_s = 2 * waited
        place = self._place
        print(
            f"waiting for rank {_listed(missing)} of {place.world_size} processes at "
            f"{place.address}:{place.port}{hint and f' ({hint})'}, as WORLD_SIZE is "
            f"{place.world_size}; if this is the only process, stop it and unset WORLD_SIZE",
            file=sys.stderr,
            flush=True,
        )


def _wait(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
