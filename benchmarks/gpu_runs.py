"""Steps of gpu.py that start whole jobs: stop and resume, a run with kNN, process groups."""

import json
import math
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import torch
import torch.distributed as dist
from gpu_common import V2, Run, few_blocks, tool, wait_for, words_of

from moco_d2.demo import scenes
from moco_d2.engine import failures, process_group
from moco_d2.engine.failures import explained
from moco_d2.engine.launcher_environment import Place
from moco_d2.engine.process_group import joined
from moco_d2.errors import UserError
from moco_d2.pretrain.checkpointing import FINAL_CHECKPOINT

_SIDE = 32  # pixels of a view; the images have scenes.PRETRAIN_SIDE
_TIMEOUT_S = 3
_GRACE_S = 30  # in which a fault has to be reported, on a busy machine, too


def _command(run: Run, out: Path, more: dict[str, Any]) -> list[str]:
    """Return the words of tools/pretrain.py for a run on generated images."""
    size, data = run.size, run.folder / "data"
    few_blocks(run)
    if not data.exists():
        scenes.write_dataset(
            data,
            seed=0,
            pretrain_images=max(64 * size.run_batch // 16, 4 * size.run_batch),
            knn_test_images=9 * size.splits,
            detection_train=1,
            detection_test=1,
        )
    settings = {
        "DATASETS.TRAIN": (str(data / "pretrain"),),
        "OUTPUT_DIR": out,
        "MODEL.DEVICE": run.device,
        "SEED": 1,
        "DATALOADER.NUM_WORKERS": size.workers[0],
        "SOLVER.AMP.ENABLED": True,
        "SOLVER.IMS_PER_BATCH": size.run_batch,
        "SOLVER.CHECKPOINT_PERIOD": size.run_steps // 4,
        "SOLVER.MAX_ITER": size.run_steps,
        "MOCO.EPOCHS": 0,
        "MOCO.REFERENCE_BATCH": 0,
        "MOCO.MONITOR.EXPECTED_LOSS": (),
        "MOCO.ENCODER.ARCH": size.run_arch,
        "MOCO.ENCODER.WIDTH_FACTOR": size.width,
        "MOCO.DICTIONARY.SIZE": size.queue // 8,
        "MOCO.MOMENTUM": 0.98,
        "MOCO.BN_SPLITS": size.splits,
        "MOCO.AUGMENTATION.SIZE": _SIDE,
        "MOCO.AUGMENTATION.WHERE": "device",
    }
    return ["--config-file", V2, "--resume", *words_of(settings | more)]


def resume(run: Run) -> None:
    """Stop a run with SIGTERM, continue it, and compare its end with that of one that went on."""

    def start(out: str, log: str) -> Any:
        words = _command(run, run.folder / out, {})
        return run.started(tool, "pretrain.py", words, True, log=log)

    _command(run, run.folder / "out", {})  # writes the images
    straight, stopped = start("straight", "straight.log"), start("stopped", "stopped.log")
    last = run.folder / "stopped" / "last_checkpoint"
    wait_for(run, lambda: last.exists() or not stopped.is_alive())
    if stopped.is_alive():
        os.kill(stopped.pid, signal.SIGTERM)
    run.check("exit code after SIGTERM", run.ended(stopped) or 0, unit="", at_least=143)
    run.holds("the stopped run was not over", not _final(run, "stopped").exists())
    run.holds("the continued run ends", run.ended(start("stopped", "continued.log")) == 0)
    run.holds("the other run ends", run.ended(straight) == 0)
    different = _differences(run, "straight", "stopped")
    if different:
        run.note(f"They differ in {', '.join(different[:5])}.")
        run.ended(start("again", "again.log"))
        same = not _differences(run, "straight", "again")
        run.note(f"A second run without a stop is {'equal' if same else 'different, too'}.")
    warned = set(re.findall(r"\w+ does not have a deterministic", _log(run, "straight.log")))
    for warning in sorted(warned):
        run.note(f"torch warns: {warning} implementation.")
    run.check("values that differ", len(different), unit="values", at_most=0)


def _final(run: Run, out: str) -> Path:
    return run.folder / out / FINAL_CHECKPOINT


def _log(run: Run, name: str) -> str:
    return (run.folder / name).read_text(errors="replace")


def _differences(run: Run, a: str, b: str) -> list[str]:
    """Return the names of tensors and losses that differ in a bit between two runs."""
    if not (_final(run, a).exists() and _final(run, b).exists()):
        return ["the final checkpoint, which is missing"]
    states = [
        dict(_flat(torch.load(_final(run, out), weights_only=True, map_location="cpu")))
        for out in (a, b)
    ]
    first, second = (
        {**state, **_losses(run.folder / out)} for state, out in zip(states, (a, b), strict=True)
    )
    return [
        name
        for name in sorted(first.keys() | second.keys())
        if name not in first or name not in second or not _same(first[name], second[name])
    ]


def _flat(checkpoint: dict[str, Any]) -> Any:
    yield from checkpoint["state_dict"].items()
    for number, state in checkpoint["optimizer"]["state"].items():
        yield from ((f"optimizer {number} {name}", value) for name, value in state.items())


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def _losses(out: Path) -> dict[str, float]:
    lines = map(json.loads, (out / "metrics.json").read_text().splitlines())
    return {f"loss {line['iteration']}": line.get("total_loss") for line in lines}


def whole_run(run: Run) -> None:
    """Pretrain with kNN through tools/pretrain.py."""
    out, data = run.folder / "whole", run.folder / "data"
    knn = {
        "MOCO.KNN.TRAIN": data / "pretrain",
        "MOCO.KNN.TEST": data / "pretrain_test",
        "MOCO.KNN.PERIOD": run.size.run_steps,
        "MOCO.KNN.NEIGHBOURS": 5,
    }
    start = time.perf_counter()
    job = run.started(tool, "pretrain.py", _command(run, out, knn), log="whole.log")
    run.holds("the run ends", run.ended(job) == 0)
    run.goal("the run with its start", time.perf_counter() - start, unit="s")
    run.holds("there is a final checkpoint", _final(run, "whole").exists())
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    run.holds("the losses are finite", bool(losses) and all(map(math.isfinite, losses)))
    run.goal("the first loss in the log", losses[0], unit="")
    run.goal("the last loss in the log", losses[-1], unit="")
    accuracies = [line["knn_accuracy"] for line in lines if "knn_accuracy" in line]
    run.check("kNN accuracies", len(accuracies), unit="values", at_least=1)
    run.goal("kNN accuracy, with a chance of 1 in 9", accuracies[-1], unit="of 1")
    waited = re.findall(r"waiting for images took ([\d.]+) %", (out / "log.txt").read_text())
    if waited:
        run.goal("waiting for images", float(waited[-1]), unit="%")


def group(run: Run) -> None:
    """Make a process group of one process, and show how faults of groups end."""
    gpus = torch.cuda.device_count() if run.on_gpu else 0
    # All start at once, because a start takes longer than what follows.
    alone = run.started(_alone, run.on_gpu, _port(), log="alone.log")
    late = run.started(_member, run.on_gpu, 0, _port(), False, _TIMEOUT_S, log="late.log")
    shared = _pair(run, "shared", on_gpu=True, death=False) if gpus == 1 else []
    killed = _pair(run, "killed", on_gpu=gpus > 1, death=True)
    run.holds("a group of one process computes collectives on the device", run.ended(alone) == 0)
    if not run.on_gpu:
        run.note("NCCL needs CUDA: here the groups are of gloo.")
    if shared:
        codes = [run.ended(process, _GRACE_S) for process in shared]
        run.holds("two processes on one GPU are refused", codes == [2, 2])
        said = _log(run, "shared0.log") + _log(run, "shared1.log")
        run.holds("the refusal says so", "would share the GPU" in said)
        run.note("With one GPU, the group whose process is killed is of gloo.")
    codes = [run.ended(process, _GRACE_S) for process in killed]
    run.holds("the other process ends, too, after a kill", codes == [2, -signal.SIGKILL])
    run.holds("it names the rank that was killed", "rank 1" in _log(run, "killed0.log"))
    run.holds("a process whose partner does not come ends", run.ended(late, _GRACE_S) == 2)
    waited = float(re.findall(r"after ([\d.]+) s", _log(run, "late.log"))[0])
    run.check("its time", waited, unit="s", at_least=_TIMEOUT_S)
    run.check("its time, with the timeout", waited, unit="s", at_most=_TIMEOUT_S + _GRACE_S)
    run.holds("it says who did not come", "did not come" in _log(run, "late.log"))
    for name in ("killed0.log", "late.log"):
        lines = _log(run, name).strip().splitlines()
        run.note(f"{name}: {lines[-1] if lines else 'nothing'}")


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _pair(run: Run, name: str, *, on_gpu: bool, death: bool) -> list[Any]:
    port = _port()
    return [
        run.started(_member, on_gpu, rank, port, death, _GRACE_S, log=f"{name}{rank}.log")
        for rank in range(2)
    ]


def _alone(on_gpu: bool, port: int) -> None:
    """Compute each collective of a pretraining step in a group of one process."""
    place = Place(0, 1, 0, 1, "127.0.0.1", port)
    with joined(place, on_gpu=on_gpu, flags={}):
        x = torch.arange(4.0, device="cuda" if on_gpu else "cpu")
        parts, received = [torch.zeros_like(x)], torch.zeros_like(x)
        total = x.clone()
        dist.all_reduce(total)
        dist.broadcast(total, src=0)
        dist.all_gather(parts, x)
        dist.all_to_all_single(received, x)
        dist.barrier()
        for result in (total, parts[0], received):
            assert result.tolist() == x.tolist()


def _member(on_gpu: bool, rank: int, port: int, death: bool, limit: int) -> None:
    """Be one of two processes. If `death`, rank 1 is killed while rank 0 waits for it."""
    os.environ["MOCO_D2_TIMEOUT"] = str(limit)
    if not on_gpu:  # rank 0 is alone in the end: nobody reads its last word, or answers its call
        process_group._LAST_WORD_S = failures._ROLL_CALL_S = 0.5
    start = time.monotonic()
    try:
        with (
            explained(),
            joined(Place(rank, 2, rank, 2, "127.0.0.1", port), on_gpu=on_gpu, flags={}),
        ):
            x = torch.ones(1, device="cuda" if on_gpu else "cpu")
            dist.all_reduce(x)
            if death and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.all_reduce(x)
            float(x)
    except UserError as error:
        print(f"after {time.monotonic() - start:.1f} s: {error}", flush=True)
        os._exit(2)  # threads of the group may still wait
