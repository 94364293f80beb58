"""Faults of the machine: no space, no permission to write, no folder, no worker, no memory."""

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fault_kinds.case import Kind, Outcome, check
from fault_kinds.jobs import Job, no_traceback, run, wait_until
from fault_kinds.kills import (
    conversions,
    differences,
    fine_tunings,
    pretrainings,
    same_result,
    tables,
)
from fault_kinds.workloads import POINTER, FineTuning, Pretraining, Training, Workload

REFUSED = 2  # errors.USER_ERROR_EXIT_CODE
_PLENTY_KIB = 256 * 1024
_PAGE_KIB = 4  # the smallest space of a file on tmpfs


def one_sentence(job: Job, *words: str) -> str:
    """Return the sentence with which a run ended.

    Raises:
        BrokenPromiseError: If it did not end with one sentence that contains `words`.
    """
    code, output = job.wait(), job.output()
    check(code == REFUSED, f"exit code {code}, not {REFUSED}: {output[-300:]}")
    no_traceback(output)
    # Findings of the preflight follow the sentence, one per line.
    sentences = re.split(r"^error: ", output, flags=re.MULTILINE)[1:]
    check(len(sentences) == 1, f"{len(sentences)} sentences: {output[-300:]}")
    sentence = sentences[0]
    missing = [word for word in words if word not in sentence]
    check(not missing, f"the sentence does not contain {missing}: {sentence}")
    return " ".join(sentence.split())


def _whole_again(workload: Workload, out: Path) -> None:
    broken = list(workload.broken(out)) if out.is_dir() else []
    check(not broken, f"half-written under a final name: {broken[:2]}")
    run(**workload.start_words(out), before=workload.before)
    same_result(workload, out)


def can_mount() -> bool:
    """Return whether this process may mount file systems."""
    return os.geteuid() == 0 and shutil.which("mount") is not None and _try_mount()


def _try_mount() -> bool:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", name], capture_output=True, check=False
        )
        if done.returncode:
            return False
        subprocess.run(["umount", name], check=True)
    return True


@contextlib.contextmanager
def _tmpfs(folder: Path, kib: int) -> Iterator[Callable[[str], None]]:
    """Mount a file system of `kib` KiB, and yield a function that mounts it again with options."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], check=True)
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", folder], check=True, capture_output=True
        )
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _kib(workload: Workload) -> int:
    """Return the final size of an undisturbed run's folder in KiB."""
    files = workload.reference_folder.rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file()) // 1024 + 1


def full_disk(workload: Workload, rng: random.Random, folder: Path) -> str:
    """Run on a disk with too little space, then give it more space and run again."""
    kib = int(0.9 * rng.random() * _kib(workload)) // _PAGE_KIB * _PAGE_KIB
    with _tmpfs(folder / "disk", kib + _PAGE_KIB) as remount:
        (folder / "disk" / "other").write_bytes(bytes(_PAGE_KIB * 1024))
        out = folder / "disk" / "out"
        job = Job(**{**workload.start_words(out), "log": folder / "log"}, before=workload.before)
        sentence = one_sentence(job, "cannot write")
        left = [path for path in folder.rglob("*") if ".tmp" in path.name]
        check(not left, f"left behind: {left}")
        remount(f"size={_PLENTY_KIB}k")
        _whole_again(workload, out)
    return f"{kib} KiB of space: {sentence[:90]}"


def read_only(workload: Workload, rng: random.Random, folder: Path) -> str:
    """Make the disk read-only before the run, or in the middle of a training."""
    out = folder / "disk" / "out"
    at_once = not isinstance(workload, Training) or rng.random() < 0.5
    with _tmpfs(folder / "disk", _PLENTY_KIB) as remount:
        words = {**workload.start_words(out), "log": folder / "log"}
        if at_once:
            remount("ro")
        job = Job(**words, before=workload.before)
        if not at_once:
            wait_until((out / POINTER).exists, job)
            # A bind mount over it, since a disk in use cannot be made read-only. Open files stay
            # writable.
            subprocess.run(["mount", "--bind", folder / "disk", folder / "disk"], check=True)
            remount("bind,ro")
        sentence = one_sentence(job, "cannot write")
        if at_once:
            remount("rw")
        else:
            subprocess.run(["umount", folder / "disk"], check=True)
        _whole_again(workload, out)
    return f"read-only {'from the start' if at_once else 'in the middle'}: {sentence[:90]}"


def folder_removed(workload: Training, rng: random.Random, folder: Path) -> str:
    """Remove OUTPUT_DIR during the run, which creates it again and ends without an error."""
    out = folder / "out"
    job = Job(**workload.start_words(out), before=workload.before)
    wait_until((out / POINTER).exists, job)
    time.sleep(rng.random() * workload.reference.seconds * 0.3)
    running = job.process.is_alive()
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)  # files that were written meanwhile
    code = job.wait()
    if code == REFUSED:
        errors = [line for line in job.output().splitlines() if line.startswith("error: ")]
        no_traceback(job.output())
        check(len(errors) == 1, job.output()[-400:])
        _whole_again(workload, out)
        return f"removed: {errors[0][:90]}; started again, same result"
    check(code == 0, f"exit code {code}: {job.output()[-400:]}")
    no_traceback(job.output())
    if not running or not out.is_dir():
        return "removed when the run was over"
    unequal = differences(
        workload.result(out)["checkpoint"], workload.reference.result["checkpoint"]
    )
    check(not unequal, f"other weights: {unequal[:3]}")
    return "removed: created again, same weights; the earlier metrics are lost, as the log says"


def worker_killed(workload: Training, rng: random.Random, folder: Path) -> str:
    """Kill one of the processes that load images."""
    out = folder / "out"
    job = Job(**workload.start_words(out), before=workload.before)
    wait_until((out / POINTER).exists, job)
    for _ in range(100):
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        if children:
            os.kill(int(rng.choice(children)), signal.SIGKILL)
            break
        time.sleep(0.02)
    code = job.wait()
    if code == 0:
        outcome = "the worker had loaded all its images"
    else:
        outcome = one_sentence(job, "a process that loads images is gone", "--resume")
    _whole_again(workload, out)
    return outcome[:120]


def at_step(workload: Training, step: int, act: Callable[[], None]) -> None:
    """Make the run of this process call `act` before a step."""
    if isinstance(workload, Pretraining):
        from moco_d2.pretrain.pretrainer import Pretrainer as Engine
    else:
        from moco_d2.transfer.trainer import Trainer as Engine
    run_step = Engine.run_step

    def acting(self: Any) -> None:
        if self.iter == step:
            act()
        run_step(self)

    Engine.run_step = acting


def _allocate_torch() -> None:
    torch.empty(2**50, dtype=torch.uint8)


def _allocate_numpy() -> None:
    np.empty(2**50, np.uint8)


def _allocate_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")


_ALLOCATIONS = (_allocate_torch, _allocate_numpy, _allocate_on_a_gpu)


def out_of_memory(workload: Training, rng: random.Random, folder: Path) -> str:
    """Allocate more memory in one step than the machine has."""
    out = folder / "out"
    allocate, step = rng.choice(_ALLOCATIONS), rng.randint(2, 5)
    name = allocate.__name__.removeprefix("_allocate_").replace("_", " ")

    def before() -> None:
        workload.before()
        at_step(workload, step, allocate)

    sentence = one_sentence(Job(**workload.start_words(out), before=before), "out of memory")
    _whole_again(workload, out)
    return f"{name} in step {step}: {sentence[:100]}"


@functools.cache
def with_workers() -> tuple[Training, ...]:
    """Return a pretraining and a fine-tuning with two data workers."""
    two = {"DATALOADER.NUM_WORKERS": 2}
    return Pretraining("queue, workers", **two), FineTuning("voc_C4, workers", **two)


_TRAININGS: tuple[Callable[[], Training], ...] = (
    lambda: pretrainings()[0],
    lambda: fine_tunings()[0],
)
_WRITERS: tuple[Callable[[], Workload], ...] = (
    *_TRAININGS,
    lambda: conversions()[0],
    lambda: tables()[0],
)


def _deal(
    fault: Callable[[Workload, random.Random, Path], str],
    workloads: tuple[Callable[[], Workload], ...],
    *,
    mounts: bool = False,
) -> Callable[[random.Random, Path, int], Outcome]:
    def deal(rng: random.Random, folder: Path, i: int) -> Outcome:
        if mounts and not can_mount():
            return Outcome("not tried: this user may not mount a file system", 0)
        workload = workloads[i % len(workloads)]()
        return Outcome(f"{workload.name}, {fault(workload, rng, folder)}")

    return deal


_AGAIN = "and after the fault is fixed the same command continues, to the same result"
KINDS = (
    Kind(
        "full disk",
        "A full disk stops a run with one sentence; no file is half-written or left over, "
        f"{_AGAIN}.",
        16,
        _deal(full_disk, _WRITERS, mounts=True),
    ),
    Kind(
        "read-only disk",
        "A disk that cannot be written, from the start or suddenly, stops a run with one sentence, "
        f"{_AGAIN}.",
        12,
        _deal(read_only, _WRITERS, mounts=True),
    ),
    Kind(
        "folder removed",
        "A run whose OUTPUT_DIR is removed creates it again, logs this, and ends with the same "
        "weights.",
        6,
        _deal(folder_removed, _TRAININGS),
    ),
    Kind(
        "data worker killed",
        f"A killed data worker stops a run with one sentence, {_AGAIN}.",
        6,
        _deal(worker_killed, (lambda: with_workers()[0], lambda: with_workers()[1])),
    ),
    Kind(
        "out of memory",
        "A batch that does not fit into memory stops a run with one sentence that names the key, "
        f"{_AGAIN}.",
        9,
        _deal(out_of_memory, _TRAININGS),
    ),
)
