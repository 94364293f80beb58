"""Data workers leave signals to their parent, and end when it ends, however it does."""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from support.commands import Python, run_python, wait_for
from support.paths import ROOT, TESTS
from torch.utils.data import Dataset

from moco_d2.cli import run_command
from moco_d2.engine.loader import SteadyLoader
from moco_d2.engine.signals import STOP_SIGNALS
from moco_d2.errors import UserError

_SIGNALLED_WHEN_STARTED: list[int] = []


def _signal_a_new_process() -> None:
    for number in _SIGNALLED_WHEN_STARTED:
        os.kill(os.getpid(), number)


os.register_at_fork(after_in_child=_signal_a_new_process)


class Numbers(Dataset):
    """The numbers 0 to 19, and who has read each."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return index, os.getpid()


class Stuck(Numbers):
    """Reads the first number, and then nothing more."""

    def __getitem__(self, index):
        while index:
            time.sleep(0.01)
        return super().__getitem__(index)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_workers_leave_signals_to_their_parent(number):
    batches = iter(SteadyLoader(Numbers(), num_workers=2, batch_size=1))
    first, reader = next(batches)
    workers = [worker.pid for worker in batches._workers]
    assert int(reader) in workers
    for pid in workers:
        os.kill(pid, number)
    assert [int(first), *(int(n) for n, _ in batches)] == list(range(20))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_does_not_end_a_worker_that_is_just_starting(number):
    _SIGNALLED_WHEN_STARTED.append(number)
    try:
        batches = iter(SteadyLoader(Numbers(), num_workers=2, batch_size=1))
    finally:
        _SIGNALLED_WHEN_STARTED.clear()
    assert [int(n) for n, _ in batches] == list(range(20))


def test_this_process_has_its_signals_back_afterwards():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        batches = iter(SteadyLoader(Numbers(), num_workers=1, batch_size=1))
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: received)
        next(batches)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_worker_that_is_stuck_ends_with_its_loader(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    batches = iter(SteadyLoader(Stuck(), num_workers=2, batch_size=1))
    next(batches)
    workers = [worker.pid for worker in batches._workers]
    del batches
    wait_for(lambda: not any(map(is_alive, workers)))


SCRIPT = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(TESTS)!r}, {str(TESTS / "engine")!r}]
import torch.utils.data
from moco_d2.engine.loader import SteadyLoader
from test_loader import {{dataset}}
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2
batches = iter(SteadyLoader({{dataset}}(), num_workers=2, batch_size=1))
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
{{end}}
"""


def start(dataset: str, end: str) -> tuple[Python, list[int]]:
    """A process with an open loader, and the loader's workers."""
    process = Python(
        ["-c", SCRIPT.format(dataset=dataset, end=end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_a_parent_that_is_killed(number):
    process, workers = start("Stuck", "input()")
    assert len(workers) == 2 and all(map(is_alive, workers))
    process.send_signal(number)
    process.communicate(timeout=600)
    assert process.returncode == -number
    wait_for(lambda: not any(map(is_alive, workers)))


@pytest.mark.parametrize("end", ["", "raise ValueError('planted')"])
@pytest.mark.parametrize("dataset", ["Numbers", "Stuck"])
def test_a_program_ends_with_its_loader_open(dataset, end):
    process, workers = start(dataset, end)
    _, said = process.communicate(timeout=600)
    assert len(workers) == 2
    assert process.returncode == bool(end)
    assert said.count("Traceback") == said.count("planted") == bool(end)
    wait_for(lambda: not any(map(is_alive, workers)))


def test_more_workers_than_cores_are_one_sentence():
    """torch's warning has four lines, and names no key."""
    code = (
        "import logging, os; logging.basicConfig(format='%(message)s')\n"
        "from moco_d2.engine.loader import SteadyLoader\n"
        "cores = len(os.sched_getaffinity(0))\n"
        "for workers in (0, cores, cores + 1, cores + 1):\n"
        "    SteadyLoader(range(9), num_workers=workers)\n"
    )
    ended = run_python("-c", code)
    cores = len(os.sched_getaffinity(0))
    assert ended.stdout + ended.stderr == (
        f"{cores + 1} workers load images on {cores} core(s): if that is slow, lower "
        "DATALOADER.NUM_WORKERS (--workers of a linear evaluation)\n"
    )


def test_so_many_workers_that_the_machine_would_stop_are_refused():
    with pytest.raises(UserError, match="5000 workers are too many for .* lower DATALOADER.NUM_WO"):
        SteadyLoader(range(9), num_workers=5000)


def test_a_killed_worker_is_noticed():
    batches = iter(SteadyLoader(Stuck(), num_workers=2, batch_size=1))
    next(batches)
    for worker in batches._workers:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(batches)


def test_a_command_in_a_child_process_ends_after_one_of_its_workers_was_killed():
    """As a suite and --num-gpus run it. The other worker ignores the SIGTERM that multiprocessing
    sends at the end of a child, which would then wait for it.
    """

    def child():
        batches = iter(SteadyLoader(Stuck(), num_workers=2, batch_size=1))
        next(batches)
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        run_command(lambda: list(batches))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(600)
    assert process.exitcode == 2
