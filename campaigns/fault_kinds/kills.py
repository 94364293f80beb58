"""Faults by kill -9 and SIGTERM at random moments, with checks of the files and the result."""

import functools
import math
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from support.toy_shards import make_shards

from fault_kinds.case import BrokenPromiseError, Kind, Outcome, check
from fault_kinds.jobs import Job, Operations, last_line, no_traceback, run, wait_until
from fault_kinds.workloads import (
    POINTER,
    BenchmarkRun,
    Converting,
    FineTuning,
    LinearEvaluation,
    Pretraining,
    Tables,
    Training,
    Workload,
    class_folders,
    ground,
    held_out_folders,
)

_ATTEMPTS = 20  # tries to hit a run before its end
_TWICE = 0.3  # fraction of the runs that are killed again after the restart
_AT_AN_OPERATION = 0.6  # fraction of the kills at a write, rename, fsync ...
_DAMAGED = 0.25  # fraction of the runs whose newest checkpoint is also damaged
GROUP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE_S = 30  # SLURM's KillWait and Kubernetes' terminationGracePeriodSeconds
TERMINATED = 128 + signal.SIGTERM
REFUSED = 2
_BUSY = re.compile(r"another run is at work|another process is writing|another suite is at work")
# Log lines at the start of training and of reading features.
_BEGUN = re.compile(r"Starting training from|protocol linear-fast")


@functools.cache
def pretrainings() -> tuple[Pretraining, ...]:
    """Return pretrainings on files and shards, with every dictionary, without and with a worker."""
    knn = {
        "MOCO.KNN.TRAIN": class_folders(),
        "MOCO.KNN.TEST": held_out_folders(),
        "MOCO.KNN.PERIOD": 12,
    }
    folder = ground() / "shards"
    folder.mkdir()
    shards = {"DATASETS.TRAIN": f"('shards:{make_shards(folder, [6] * 4)}',)"}
    # With rare checkpoints, a kill may come after lines of metrics but before the first checkpoint.
    rare = {"SOLVER.CHECKPOINT_PERIOD": 31}
    return (
        Pretraining("queue", **knn),
        Pretraining("memory bank", **{"MOCO.DICTIONARY.NAME": "MemoryBank", **rare}),
        Pretraining("shards, a worker", **shards, **{"DATALOADER.NUM_WORKERS": 1}),
        Pretraining("end to end, accumulated", **{
            "MOCO.DICTIONARY.NAME": "EndToEnd", "MOCO.ACCUMULATION": 2, "MOCO.BN_SPLITS": 1,
        }),
    )  # fmt: skip


@functools.cache
def fine_tunings() -> tuple[FineTuning, ...]:
    return (
        FineTuning("voc_C4"),
        FineTuning("voc_C4, one checkpoint", **{"SOLVER.CHECKPOINT_PERIOD": 6}),
    )


_WORKERS = {"DATALOADER.NUM_WORKERS": 2}


@functools.cache
def pretrainings_with_workers() -> tuple[Pretraining, ...]:
    longer = {"SOLVER.MAX_ITER": 63, **_WORKERS}
    return (Pretraining("queue, two workers", **longer),)


@functools.cache
def fine_tunings_with_workers() -> tuple[FineTuning, ...]:
    return (FineTuning("voc_C4, two workers", **_WORKERS),)


@functools.cache
def linear_evaluations() -> tuple[LinearEvaluation, ...]:
    return (
        LinearEvaluation("linear", "--epochs", "8"),
        LinearEvaluation("fine-tuning", "--protocol", "finetune", "--epochs", "4"),
        LinearEvaluation("on features", "--fast", "--crops", "3", "--epochs", "60"),
    )


@functools.cache
def conversions() -> tuple[Converting, ...]:
    return (Converting(),)


@functools.cache
def tables() -> tuple[Tables, ...]:
    return tuple(Tables(fine_tunings()[0], format) for format in Tables.FORMATS)


@functools.cache
def suites() -> tuple[BenchmarkRun, ...]:
    return (BenchmarkRun(),)


def differences(  # noqa: PLR0911 - one for each type
    a: Any, b: Any, where: str = "", *, tolerance: float = 0.0
) -> list[str]:
    """Return the paths at which nested dicts, lists, tensors and plain values differ.

    Values differ if a bit differs, and floats if they differ by more than `tolerance`.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        pairs = ((f"{where}/{key}", a[key], b[key]) for key in a)
        return [d for at, x, y in pairs for d in differences(x, y, at, tolerance=tolerance)]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        pairs = ((f"{where}/{i}", *pair) for i, pair in enumerate(zip(a, b, strict=True)))
        return [d for at, x, y in pairs for d in differences(x, y, at, tolerance=tolerance)]
    if isinstance(a, torch.Tensor):
        return [] if _same_tensor(a, b, tolerance) else [where]
    if tolerance and isinstance(a, float) and isinstance(b, float):
        return [] if math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) else [f"{where}: {a}"]
    # Compared as text, since NaN (of a class without detections) must equal NaN.
    return [] if repr(a) == repr(b) else [f"{where}: {a!r:.60} and {b!r:.60}"]


def _same_tensor(a: torch.Tensor, b: Any, tolerance: float) -> bool:
    if not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    if tolerance and a.is_floating_point():
        return torch.allclose(a, b, rtol=tolerance, atol=tolerance)
    return torch.equal(a, b)


def same_result(workload: Workload, out: Path) -> None:
    """Check that a finished run has the result of the undisturbed run.

    Raises:
        BrokenPromiseError: If the results differ.
    """
    unequal = differences(workload.result(out), workload.reference.result)
    check(not unequal, f"{len(unequal)} difference(s) to the undisturbed run, first {unequal[:3]}")


def _nothing_half_written(workload: Workload, out: Path) -> None:
    broken = list(workload.broken(out))
    check(not broken, f"half-written under a final name: {broken[:2]}")


def _kill_once(workload: Workload, rng: random.Random, out: Path) -> str:
    """Start or continue a run, kill it, and return the moment of the kill."""
    for _ in range(_ATTEMPTS):
        if rng.random() < _AT_AN_OPERATION:
            at = rng.randint(1, workload.reference.operations)
            operations = Operations(out, crash_at=at, fraction=rng.random())

            def before(operations: Operations = operations) -> None:
                workload.before()
                operations.watch()

            job = Job(**workload.start_words(out), before=before)
            where = f"change {at} of {workload.reference.operations}"
        else:
            job = Job(**workload.start_words(out), before=workload.before)
            moment = rng.random() * workload.reference.seconds
            job.kill_after(moment)
            where = f"{moment:.2f} s"
        code = job.wait()
        # If the kill hit a runner's run, the runner reports it and goes on.
        if code == -signal.SIGKILL or "killed by SIGKILL" in job.output()[-300:]:
            _nothing_half_written(workload, out)
            return where
        if code:
            raise BrokenPromiseError(
                f"exit code {code} of a run before it was killed: {job.output()[-300:]}"
            )
        if isinstance(workload, BenchmarkRun | Training):  # finished, it would do nothing more
            shutil.rmtree(out)
    raise BrokenPromiseError(f"the run was over before each of {_ATTEMPTS} kills")


def _damage_newest(workload: Training, rng: random.Random, out: Path) -> str:
    """Damage the newest checkpoint as a crash of the machine may do, and return the damage."""
    pointer = out / POINTER
    if not pointer.is_file() or len(list(out.glob(workload.checkpoints))) < 2:
        return ""
    newest = out / pointer.read_text()
    content = bytearray(newest.read_bytes())
    damage = rng.choice(("cut short", "empty", "with a flipped bit", "full of zeros", "not named"))
    if damage == "cut short":
        newest.write_bytes(content[: rng.randrange(1, len(content))])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "with a flipped bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        newest.write_bytes(content)
    elif damage == "full of zeros":
        newest.write_bytes(bytes(len(content)))
    else:
        pointer.write_text("")
    return f", newest checkpoint {damage}"


def kill(workloads: tuple[Workload, ...], rng: random.Random, folder: Path, i: int) -> Outcome:
    """Kill a run once or twice, sometimes damage its newest checkpoint, restart it and compare."""
    workload, out = workloads[i % len(workloads)], folder / "out"
    if isinstance(workload, Converting) and rng.random() < 0.5:
        _leave_an_older(workload, out)
    where = [_kill_once(workload, rng, out)]
    if rng.random() < _TWICE:
        where.append(_kill_once(workload, rng, out))
    damage = ""
    if isinstance(workload, Training) and rng.random() < _DAMAGED:
        damage = _damage_newest(workload, rng, out)
    run(**workload.start_words(out), before=workload.before)
    same_result(workload, out)
    what = f"{workload.name}, killed at {' and '.join(where)}{damage}: continued, same result"
    figures = {"kills": len(where), "damaged newest checkpoints": int(bool(damage))}
    return Outcome(what, len(where), figures)


def _leave_an_older(workload: Converting, out: Path) -> None:
    """Write the finished result of an earlier conversion, which the new one replaces."""
    out.mkdir()
    for name, content in workload.reference.result.items():
        (out / name).write_bytes(content.replace(b"OUT", str(out).encode()))


def preempt(workloads: tuple[Training, ...], rng: random.Random, folder: Path, i: int) -> Outcome:
    """Send SIGTERM during training: the run saves in time, exits with 143, and is continued."""
    workload, out = workloads[i % len(workloads)], folder / "out"
    log = out / "log.txt"
    for _ in range(_ATTEMPTS):
        job = Job(**workload.start_words(out), before=workload.before)
        wait_until(lambda: log.exists() and "Starting training from" in log.read_text(), job)
        time.sleep(rng.random() * workload.reference.seconds * 0.2)
        job.kill(signal.SIGTERM)
        sent = time.monotonic()
        code = job.wait(GRACE_S)
        if code == 0:  # the signal came in the last step, so the run finished
            shutil.rmtree(out)
            continue
        took = time.monotonic() - sent
        # Before the first step, or after the last.
        outside = code == TERMINATED and "stopped by SIGTERM" in job.output()
        if code == -signal.SIGTERM or outside:
            _nothing_half_written(workload, out)
            run(**workload.start_words(out), before=workload.before)
            same_result(workload, out)
            what = f"{workload.name}, SIGTERM outside of training: ended at once, same"
            return Outcome(what, 1, {"SIGTERMs": 1})
        check(code == TERMINATED, f"exit code {code}, not {TERMINATED}: {job.output()[-300:]}")
        stopped = [line for line in log.read_text().splitlines() if "stopped and saved" in line]
        check(stopped, "the log does not say that the run stopped and saved")
        iteration = int(stopped[-1].rpartition(" ")[2])
        _nothing_half_written(workload, out)
        pointer = (out / POINTER).read_text()
        check(
            str(iteration) in pointer or str(iteration + 1) in pointer or "final" in pointer,
            f"stopped after iteration {iteration}, but the newest checkpoint is {pointer}",
        )
        run(**workload.start_words(out), before=workload.before)
        same_result(workload, out)
        what = f"{workload.name}, SIGTERM in iteration {iteration}: saved in {took:.1f} s, same"
        return Outcome(what, 1, {"SIGTERMs": 1})
    raise BrokenPromiseError(f"the run was over before each of {_ATTEMPTS} signals")


def signal_group(
    workloads: tuple[Workload, ...], rng: random.Random, folder: Path, i: int
) -> Outcome:
    """Send SIGTERM, SIGINT or SIGHUP to the process group of a run with data workers.

    The signal comes at any moment after the start. The run must save and exit with 128 + n, without
    a traceback and without processes left behind. It is continued afterwards.
    """
    number = GROUP_SIGNALS[i % len(GROUP_SIGNALS)]
    workload = workloads[i // len(GROUP_SIGNALS) % len(workloads)]
    name, out = number.name, folder / "out"
    log = out / "log.txt"
    for _ in range(_ATTEMPTS):
        job = Job(**workload.start_words(out), before=workload.before)
        wait_until(lambda: log.exists() and _BEGUN.search(log.read_text()) is not None, job)
        begun = time.monotonic() - job.started
        job.process.join(rng.random() * max(0.0, workload.reference.seconds - begun))
        alive = job.process.is_alive()
        job.kill_group(number)
        sent = time.monotonic()
        job.process.join(GRACE_S)
        took = time.monotonic() - sent
        left = job.left_behind()
        code = job.wait()
        output = job.output()
        no_traceback(output)
        check(took < GRACE_S, f"{name}: the run has not ended within {GRACE_S} s")
        check(not left, f"{name}: left behind: {left}")
        if alive and code != 0:
            break
        check(code == 0, f"exit code {code} of a run that was over: {output[-300:]}")
        shutil.rmtree(out)  # the run was over
        job.log.unlink()
    else:
        raise BrokenPromiseError(f"the run was over before each of {_ATTEMPTS} signals")
    saved = [line for line in log.read_text().splitlines() if "stopped and saved" in line]
    if code == -number:  # Python was ending after the whole run; a shell reports this as 128 + n
        same_result(workload, out)
    else:
        check(code == 128 + number, f"{name}: exit code {code}: {output[-300:]}")
        check("--resume" in last_line(output), f"{name}: the output ends with {output[-200:]!r}")
    _nothing_half_written(workload, out)
    run(**workload.start_words(out), before=workload.before)
    same_result(workload, out)
    where = (
        f"in iteration {saved[-1].rpartition(' ')[2]}: saved" if saved else "outside of training"
    )
    what = f"{workload.name}, {name} {where}, ended in {took:.1f} s, same"
    outcome = "saved in training" if saved else "ended outside of training"
    return Outcome(what, 1, {f"group {name}s": 1, f"group signals, {outcome}": 1})


def two_at_once(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Start a command twice, or two suites in one folder: the second one must be refused."""
    workloads = (*_twice_in_a_folder(), conversions()[0], suites()[0])
    workload, out = workloads[i % len(workloads)], folder / "out"
    for _ in range(_ATTEMPTS):
        first = Job(**workload.start_words(out), before=workload.before)
        wait_until(lambda: any(out.glob(".*lock")), first)
        gap = rng.random() * workload.reference.seconds * 0.5
        first.process.join(gap)
        first.kill_group(signal.SIGSTOP)  # so that it cannot end before the second
        if first.process.is_alive() and any(out.glob(".*lock")):
            break
        first.kill_group(signal.SIGCONT)  # the run was over
        first.wait()
        shutil.rmtree(out)
    else:
        raise BrokenPromiseError(f"the run was over before each of {_ATTEMPTS} others")
    words = workload.start_words(out) | {"log": folder / "second.log"}
    if isinstance(workload, BenchmarkRun):
        words["words"] = [
            str(workload.other_suite) if w == str(workload.suite) else w
            for w in workload.words(out)
        ]
    second = Job(**words, before=workload.before)
    try:
        code = second.wait()
    finally:
        first.kill_group(signal.SIGCONT)
    codes = [first.wait(), code]
    outputs = [job.output() for job in (first, second)]
    for output in outputs:
        no_traceback(output)
    check(codes == [0, REFUSED], f"exit codes {codes}: {[o[-200:] for o in outputs]}")
    errors = [line for line in outputs[1].splitlines() if line.startswith("error: ")]
    check(len(errors) == 1 and _BUSY.search(errors[0]), f"it says {outputs[1][-300:]!r}")
    same_result(workload, out)
    return Outcome(
        f"{workload.name}, {gap:.2f} s apart: {errors[0][7:110]}", 1, {"second runs refused": 1}
    )


@functools.cache
def _twice_in_a_folder() -> tuple[Workload, ...]:
    return (pretrainings_with_workers()[0], fine_tunings_with_workers()[0], linear_evaluations()[0])


_SAME = "the same command continues the run and ends with the result of an undisturbed run"
_SAVED = (
    "After SIGTERM, SIGINT or SIGHUP to the whole process group, including data workers, the run "
    "saves and ends within 30 s with 128 + the signal's number, and leaves no process behind; "
    f"{_SAME}, bit for bit."
)
_TERMINATED = (
    "After SIGTERM the current step is finished, and the run saves and ends with exit code 143 "
    f"within 30 s; {_SAME}."
)
KINDS = (
    Kind(
        "kill pretraining",
        f"After `kill -9` at any moment {_SAME}, bit for bit. No file under its final name is "
        "half-written, and the newest intact checkpoint is used.",
        80,
        lambda *a: kill(pretrainings(), *a),
    ),
    Kind(
        "kill fine-tuning",
        f"After `kill -9` at any moment {_SAME}, bit for bit, including the record.",
        50,
        lambda *a: kill(fine_tunings(), *a),
    ),
    Kind(
        "kill converting",
        "A killed conversion leaves the old file or the new one, never a part. Repeated, it gives "
        "the same bytes.",
        40,
        lambda *a: kill(conversions(), *a),
    ),
    Kind(
        "kill table writing",
        "A killed `benchmark.py table` leaves the old table or the new one, never a part.",
        40,
        lambda *a: kill(tables(), *a),
    ),
    Kind(
        "kill benchmark runs",
        f"After `kill -9` of `benchmark.py run` at any moment {_SAME}; no run is repeated.",
        10,
        lambda *a: kill(suites(), *a),
    ),
    Kind(
        "SIGTERM pretraining",
        _TERMINATED,
        12,
        lambda *a: preempt(pretrainings(), *a),
    ),
    Kind(
        "SIGTERM fine-tuning",
        _TERMINATED,
        10,
        lambda *a: preempt(fine_tunings(), *a),
    ),
    Kind(
        "group signal pretraining",
        _SAVED,
        60,
        lambda *a: signal_group(pretrainings_with_workers(), *a),
    ),
    Kind(
        "group signal fine-tuning",
        _SAVED,
        60,
        lambda *a: signal_group(fine_tunings_with_workers(), *a),
    ),
    Kind(
        "group signal linear evaluation",
        _SAVED,
        60,
        lambda *a: signal_group(linear_evaluations(), *a),
    ),
    Kind(
        "two at once",
        "Of two runs in one folder, two suites in one folder, or two conversions to one file, the "
        "first goes on and ends with the right result. The second is refused with one sentence and "
        "exit code 2.",
        20,
        two_at_once,
    ),
)  # fmt: skip
