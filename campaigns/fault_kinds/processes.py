"""Faults in runs of two and three processes (gloo, CPU).

One process is killed, hangs, dies in the middle of a gather, or is started with other inputs than
the others. The campaign starts the processes itself. Unlike torchrun, it ends no process when
another one fails, so the processes must notice the failure themselves.
"""

import functools
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fault_kinds.case import BrokenPromiseError, Kind, Outcome, check
from fault_kinds.jobs import Job, last_line, no_traceback, wait_until
from fault_kinds.kills import differences
from fault_kinds.machine import REFUSED, at_step
from fault_kinds.workloads import (
    POINTER,
    FineTuning,
    Pretraining,
    Training,
    class_folders,
    ground,
    voc_year,
)

TIMEOUT_S = 6  # MOCO_D2_TIMEOUT: gloo gives up
# DistributedDataParallel changes the order of gradients after its first step, which a restarted run
# takes again. This changes sums of three numbers, but not of two.
_ROUNDING = 1e-3
_MARGIN_S = 40  # for the roll call, the last messages, and three processes on two cores


@functools.cache
def runs() -> tuple[tuple[Training, int], ...]:
    """Return the runs to disturb, each with its number of processes."""
    # Two and three processes divide this batch.
    batch = {"SOLVER.IMS_PER_BATCH": 6}
    pretraining = Pretraining(
        "pretraining", **{"MOCO.BN_SPLITS": 1, "SOLVER.MAX_ITER": 60}, **batch
    )
    return (
        (pretraining, 2),
        (FineTuning("fine-tuning", **{"MODEL.RESNETS.NORM": "BN"}, **batch), 2),
        (pretraining, 3),
    )


class Group:
    """The processes of one run."""

    def __init__(
        self,
        workload: Training,
        size: int,
        out: Path,
        *,
        before: Callable[[int], None] = lambda rank: None,
        words: Callable[[int], list[str]] | None = None,
    ):
        """Start the processes.

        Args:
            workload: The run.
            size: The number of processes.
            out: The output folder.
            before: A function that each process calls with its rank.
            words: Rank -> arguments; None uses those of the workload.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        out.parent.mkdir(exist_ok=True, parents=True)
        self.jobs = []
        for rank in range(size):

            def prepare(rank: int = rank) -> None:
                workload.before()
                before(rank)

            self.jobs.append(
                Job(
                    workload.tool,
                    words(rank) if words else workload.words(out),
                    out.with_name(f"{out.name}.rank{rank}.log"),
                    before=prepare,
                    environment={
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "WORLD_SIZE": str(size),
                        "LOCAL_WORLD_SIZE": str(size),
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port),
                        "MOCO_D2_TIMEOUT": str(TIMEOUT_S),
                    },
                )
            )

    def wait(self, seconds: float) -> list[int]:
        """Return all exit codes.

        Raises:
            BrokenPromiseError: If a process has not ended within `seconds`. All are ended then.
        """
        deadline = time.monotonic() + seconds
        codes: list[int] = []
        hanging: list[int] = []
        for rank, job in enumerate(self.jobs):
            try:
                codes.append(job.wait(max(0.1, deadline - time.monotonic())))
            except BrokenPromiseError:
                hanging.append(rank)
        if hanging:
            lines = [last_line(job.output()) for job in self.jobs]
            raise BrokenPromiseError(f"rank {hanging} still ran after {seconds:.0f} s: {lines}")
        return codes

    def sentences(self) -> list[str]:
        """Return the last `error:` line of every rank, or "" for a rank without one."""
        sentences = []
        for job in self.jobs:
            lines = [line for line in job.output().splitlines() if line.startswith("error: ")]
            sentences.append(lines[-1].removeprefix("error: ") if lines else "")
        return sentences


@functools.cache
def _reference(number: int) -> tuple[float, Any]:
    """Return the seconds and the result of the undisturbed run."""
    workload, size = runs()[number]
    out = ground() / f"distributed{number}" / "out"
    started = time.monotonic()
    group = Group(workload, size, out)
    codes = group.wait(180)
    check(not any(codes), f"undisturbed, exit codes {codes}: {group.jobs[0].output()[-500:]}")
    return time.monotonic() - started, workload.result(out)


def _restart(number: int, out: Path) -> None:
    workload, size = runs()[number]
    group = Group(workload, size, out)
    codes = group.wait(180)
    check(not any(codes), f"restarted, exit codes {codes}: {group.jobs[0].output()[-500:]}")
    tolerance = 0.0 if size == 2 else _ROUNDING
    unequal = differences(workload.result(out), _reference(number)[1], tolerance=tolerance)
    check(not unequal, f"{len(unequal)} difference(s) to the undisturbed run, first {unequal[:3]}")


def _survivors(group: Group, victim: int, *words: str) -> str:
    """Check that all other processes end with one sentence that names the cause, and return one."""
    codes = group.wait(TIMEOUT_S + _MARGIN_S)
    sentences = group.sentences()
    for rank, (code, sentence) in enumerate(zip(codes, sentences, strict=True)):
        if rank == victim:
            continue
        output = group.jobs[rank].output()
        check(code == REFUSED, f"rank {rank}: exit code {code}: {output[-400:]}")
        no_traceback(output)
        check(
            any(word in sentence for word in words),
            f"rank {rank} does not say {' or '.join(words)}: {sentence}",
        )
    named = [sentence for rank, sentence in enumerate(sentences) if rank != victim]
    # Rank 0 has the store for the roll call. A process that notices its end later names rank 0.
    check(any(f"rank {victim}" in s for s in named), f"no process names rank {victim}: {named}")
    check(all(f"rank {victim}" in s or "rank 0" in s for s in named), f"others are named: {named}")
    return max(named, key=lambda sentence: f"rank {victim}" in sentence)


_GONE = ("has ended", "does not answer")


def killed(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Kill one process with SIGKILL during training."""
    number = i % len(runs())
    (workload, size), out = runs()[number], folder / "out"
    seconds, _ = _reference(number)
    victim = rng.randrange(size)
    group = Group(workload, size, out)
    wait_until((out / POINTER).exists, group.jobs[0])
    time.sleep(rng.random() * 0.2 * seconds)
    group.jobs[victim].kill()
    if group.jobs[victim].wait() == 0:
        group.wait(TIMEOUT_S + _MARGIN_S)
        outcome = "the run was over"
    else:
        outcome = _survivors(group, victim, *_GONE)
    _restart(number, out)
    return Outcome(
        f"{workload.name} on {size}, rank {victim} killed: {outcome[:110]}; restarted, same"
    )


def slow(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Stop one process forever."""
    number = i % len(runs())
    (workload, size), out = runs()[number], folder / "out"
    _reference(number)
    victim = rng.randrange(size)
    step = rng.randint(8, 20) if isinstance(workload, Pretraining) else rng.randint(2, 4)

    def before(rank: int) -> None:
        if rank == victim:
            at_step(workload, step, lambda: os.kill(os.getpid(), signal.SIGSTOP))

    group = Group(workload, size, out, before=before)
    _wait_stopped(group.jobs[victim])
    started = time.monotonic()
    others = [job for rank, job in enumerate(group.jobs) if rank != victim]
    for job in others:
        job.process.join(TIMEOUT_S + _MARGIN_S)
    took = time.monotonic() - started
    group.jobs[victim].kill()
    sentence = _survivors(group, victim, "does not answer", "has ended")
    _restart(number, out)
    return Outcome(
        f"{workload.name} on {size}, rank {victim} stands still: noticed after {took:.0f} s, "
        f"{sentence[:110]}; restarted, same"
    )


def in_a_gather(rng: random.Random, folder: Path, i: int) -> Outcome:
    """End one process at a collective operation that the others have started."""
    number = i % len(runs())
    (workload, size), out = runs()[number], folder / "out"
    _reference(number)
    victim, nth = rng.randrange(size), rng.randint(1, 60)

    def before(rank: int) -> None:
        if rank == victim:
            _die_in_collective(nth)

    group = Group(workload, size, out, before=before)
    code = group.jobs[victim].wait()
    if code == 0:
        group.wait(TIMEOUT_S + _MARGIN_S)
        outcome = f"the run was over before its {nth}th"
    else:
        outcome = _survivors(group, victim, *_GONE)
    _restart(number, out)
    return Outcome(
        f"{workload.name} on {size}, rank {victim} died in collective operation {nth}: "
        f"{outcome[:110]}; restarted, same"
    )


def _die_in_collective(nth: int) -> None:
    """Make this process kill itself in its nth collective operation."""
    import torch.distributed as dist

    counter = [0]

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counter[0] += 1
            if counter[0] == nth:
                time.sleep(0.3)  # by now the others have started it and wait
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return call

    for name in ("all_gather", "gather", "broadcast", "all_reduce", "all_to_all_single"):
        setattr(dist, name, counted(getattr(dist, name)))


def _wait_stopped(job: Job) -> None:
    def stopped() -> bool:
        state = Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in ("T", "t")

    wait_until(stopped, job)


def disagree(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Start one process with another config, weight file, data, code, or checkpoint."""
    name = list(_DISAGREEMENTS)[i % len(_DISAGREEMENTS)]
    workload, words, before, named, prepare = _DISAGREEMENTS[name]()
    size = 2 + (i // len(_DISAGREEMENTS)) % 2
    odd = rng.randrange(size)
    out = folder / "out"
    prepare(folder, out, odd, size)
    old = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    group = Group(
        workload,
        size,
        out,
        before=lambda rank: before(folder, rank, rank == odd),
        words=lambda rank: words(folder, out, rank == odd),
    )
    codes = group.wait(TIMEOUT_S + _MARGIN_S + 30)
    sentences = group.sentences()
    for rank, (code, sentence) in enumerate(zip(codes, sentences, strict=True)):
        output = group.jobs[rank].output()
        check(code == REFUSED, f"rank {rank}: exit code {code}: {output[-500:]}")
        check("do not agree" in sentence and named in sentence, f"rank {rank} says {sentence!r}")
        check(f"on rank {odd}" in sentence, f"rank {rank} does not name rank {odd}: {sentence}")
        no_traceback(output)
    new = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    allowed = {"config.yaml", "log.txt"} | {f"log.txt.rank{rank}" for rank in range(size)}
    check(set(new) - allowed == set(old) - allowed, f"written: {sorted(set(new) - set(old))}")
    return Outcome(f"{name}, rank {odd} of {size}: {sentences[0][:130]}")


def _nothing(*_: Any) -> None:
    pass


def _with(out: Path, workload: Training, **settings: Any) -> list[str]:
    return [*workload.words(out), *(str(w) for pair in settings.items() for w in pair)]


def _enter_folder(folder: Path, rank: int, odd: bool) -> None:
    os.chdir(folder / ("odd" if odd else "same"))


def _other_config(number: int, key: str, value: float, named: str) -> tuple:
    workload = runs()[number][0]

    def words(folder: Path, out: Path, odd: bool) -> list[str]:
        return _with(out, workload, **{key: value} if odd else {})

    return workload, words, _nothing, named, _nothing


def _other_weights() -> tuple:
    """Give the odd rank another weights.pth, as on another machine: ranks have other folders."""
    workload = runs()[1][0]

    def prepare(folder: Path, out: Path, odd: int, size: int) -> None:
        from detectron2.modeling import build_model

        from moco_d2.config.load import load_config

        cfg = load_config(workload.config, workload.words(out)[3:])
        for name, seed in (("same", 0), ("odd", 1)):
            torch.manual_seed(seed)
            tensors = build_model(cfg).backbone.state_dict()
            (folder / name).mkdir()
            content = {"model": {f"backbone.{k}": v for k, v in tensors.items()}}
            content |= {"__author__": "campaign", "matching_heuristics": True}
            torch.save(content, folder / name / "weights.pth")

    def words(folder: Path, out: Path, odd: bool) -> list[str]:
        return _with(out, workload, **{"MODEL.WEIGHTS": "weights.pth"})

    return workload, words, _enter_folder, "the content of MODEL.WEIGHTS", prepare


def _other_images() -> tuple:
    workload = runs()[0][0]

    def prepare(folder: Path, out: Path, odd: int, size: int) -> None:
        for name in ("same", "odd"):
            shutil.copytree(class_folders(), folder / name / "images")
        images = folder / "odd" / "images" / "dark"
        (images / "3.png").rename(images / "33.png")

    def words(folder: Path, out: Path, odd: bool) -> list[str]:
        return _with(out, workload, **{"DATASETS.TRAIN": "('./images',)"})

    return workload, words, _enter_folder, "the training data", prepare


def _other_annotations() -> tuple:
    workload = runs()[1][0]

    def prepare(folder: Path, out: Path, odd: int, size: int) -> None:
        for name in ("same", "odd"):
            shutil.copytree(voc_year(), folder / name / "VOC")
        file = folder / "odd" / "VOC" / "Annotations" / "trainval000.xml"
        text = file.read_text()
        start = text.index("<xmax>") + len("<xmax>")
        file.write_text(text[:start] + "60" + text[text.index("</xmax>") :])

    def words(folder: Path, out: Path, odd: bool) -> list[str]:
        data = {"DATASETS.TRAIN": "('voc:VOC:trainval',)", "DATASETS.TEST": "('voc:VOC:test',)"}
        return _with(out, workload, **data)

    return workload, words, _enter_folder, "the training data", prepare


def _other_code() -> tuple:
    workload = runs()[0][0]

    def before(folder: Path, rank: int, odd: bool) -> None:
        if odd:
            from moco_d2.engine import consistency

            copy = folder / "moco_d2"
            shutil.copytree(consistency._PACKAGE, copy)
            file = copy / "pretrain" / "model" / "moco.py"
            file.write_text(file.read_text().replace("T temperature", "t temperature"))
            consistency._PACKAGE = copy

    def words(folder: Path, out: Path, odd: bool) -> list[str]:
        return workload.words(out)

    return workload, words, before, "the code of moco_d2", _nothing


def _other_checkpoint() -> tuple:
    """Let the odd rank read another queue, as from the stale cache of a network file system."""
    workload = runs()[0][0]

    def prepare(folder: Path, out: Path, odd: int, size: int) -> None:
        _reference(0)
        source = ground() / "distributed0" / "out"
        out.mkdir(parents=True)
        newest = sorted(source.glob("checkpoint_0*.pth.tar"))[-1]
        shutil.copyfile(newest, out / newest.name)
        (out / POINTER).write_text(newest.name)

    def before(folder: Path, rank: int, odd: bool) -> None:
        if odd:
            from moco_d2.pretrain import checkpointing

            original = checkpointing.load_checkpoint

            def load(path: Path) -> dict[str, Any]:
                content = original(path)
                content["state_dict"]["module.queue"] += 0.001
                return content

            checkpointing.load_checkpoint = load

    def words(folder: Path, out: Path, odd: bool) -> list[str]:
        return workload.words(out)

    return workload, words, before, "the content of the dictionary", prepare


_DISAGREEMENTS: dict[str, Callable[[], tuple]] = {
    "another learning rate": lambda: _other_config(0, "SOLVER.BASE_LR", 0.06, "SOLVER.BASE_LR is "),
    "another key of a detector": lambda: _other_config(
        1, "MODEL.RPN.NMS_THRESH", 0.5, "MODEL.RPN.NMS_THRESH is 0."
    ),
    "another weight file": _other_weights,
    "another list of images": _other_images,
    "other annotations": _other_annotations,
    "other code": _other_code,
    "another queue": _other_checkpoint,
}

_AGAIN = "the same command continues, to the same result"
KINDS = (
    Kind(
        "process killed",
        "If one of several processes is killed, the others end by themselves, each with one "
        f"sentence that names its rank; {_AGAIN}, bit for bit on two processes (on three, up to "
        "rounding).",
        9,
        killed,
    ),
    Kind(
        "process stands still",
        "If one of several processes stands still, the others wait MOCO_D2_TIMEOUT seconds "
        f"(default: 1800) and end with one sentence that names it; {_AGAIN}.",
        6,
        slow,
    ),
    Kind(
        "process dies in a gather",
        "If one process dies at a collective operation that the others have started, they end with "
        f"one sentence that names it; {_AGAIN}.",
        12,
        in_a_gather,
    ),
    Kind(
        "processes disagree",
        "Before the first step, processes compare config, code, weights, data, and the checkpoint "
        "that they resume from. If one differs, all end with one sentence that names the "
        "difference and its rank.",
        14,
        disagree,
    ),
)
