"""A process that is silent ends the others with its rank, also where no exception reaches them."""

import datetime
import threading

import pytest
import torch.distributed as dist

from moco_d2.engine import heartbeat
from moco_d2.engine.heartbeat import Heartbeat
from moco_d2.errors import UserError


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(heartbeat, "_GRACE_S", 0)


class Group:
    """The heartbeats of several ranks, in threads of this process."""

    def __init__(self, size: int):
        self.host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.said = {rank: [] for rank in range(size)}
        self.ended = {rank: threading.Event() for rank in range(size)}
        self.beats = [self._beat(rank, size) for rank in range(size)]

    def _beat(self, rank: int, size: int) -> Heartbeat:
        def end(sentence: str) -> None:
            self.said[rank].append(sentence)
            self.ended[rank].set()

        connect = lambda: dist.TCPStore(  # noqa: E731
            "127.0.0.1", self.host.port, timeout=datetime.timedelta(seconds=60)
        )
        return Heartbeat(connect, rank=rank, world_size=size, limit_s=1, end=end)

    def __enter__(self) -> "Group":
        for beat in self.beats:
            beat.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for beat in self.beats:
            beat.__exit__()


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_silent_rank_is_named_by_all_others(silent):
    with Group(3) as group:
        group.beats[silent].__exit__()  # as a process that is killed or stands still
        for rank in {0, 1, 2} - {silent}:
            group.ended[rank].wait()
            assert group.said[rank][0].startswith(
                f"rank {silent} of this run does not answer (for 1 s): see its output, and start"
            )


def test_a_failure_is_told_to_all_others_and_the_first_one_counts():
    with Group(3) as group:
        group.beats[1].tell_failure(UserError("no\nspace"), wait_s=60)
        group.beats[1].tell_failure(KeyError("x"), wait_s=0)
        for rank in (0, 2):
            group.ended[rank].wait()
            assert group.said[rank][0].startswith("rank 1 of this run has ended (no space): see")
        assert group.said[1] == []


def test_a_failure_of_all_keeps_none_of_them_waiting():
    with Group(2) as group:
        tells = [
            threading.Thread(target=beat.tell_failure, args=(UserError("same"),), kwargs=wait)
            for beat, wait in zip(group.beats, [{"wait_s": 10_000}] * 2, strict=True)
        ]
        for tell in tells:
            tell.start()
        for tell in tells:
            tell.join()
    assert group.said == {0: [], 1: []}


class BlockingStore:
    """A store whose process stands still after the first operation."""

    def __init__(self):
        self.free = threading.Event()
        self.operations = 0

    def add(self, key: str, amount: int) -> int:
        self.operations += 1
        if self.operations > 1:
            self.free.wait()
        return self.operations

    def check(self, keys: list[str]) -> bool:
        return False


def test_a_store_that_blocks_names_rank_0():
    store, said, ended = BlockingStore(), [], threading.Event()

    def end(sentence: str) -> None:
        said.append(sentence)
        ended.set()

    with Heartbeat(lambda: store, rank=1, world_size=2, limit_s=1, end=end):
        ended.wait()
    store.free.set()
    assert said[0].startswith("rank 0 of this run does not answer (for 1 s): see")


@pytest.mark.parametrize(
    ("owner", "who"), [({}, "rank 0 of this run"), ({"owner": "the agent"}, "the agent")]
)
def test_a_store_that_is_gone_names_who_had_it(owner, who):
    class Gone(BlockingStore):
        def add(self, key: str, amount: int) -> int:
            self.operations += 1
            if self.operations > 1:
                raise RuntimeError("Connection reset by peer")
            return 1

    said, ended = [], threading.Event()

    def end(sentence: str) -> None:
        said.append(sentence)
        ended.set()

    with Heartbeat(Gone, rank=1, world_size=2, limit_s=1, end=end, **owner):
        ended.wait()
    assert said[0].startswith(f"{who} has ended (it had the store): see")
