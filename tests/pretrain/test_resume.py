"""kill -9 and --resume of real commands: the run that was killed ends as the one that was not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from support.commands import SECONDS, Python, start_processes
from support.paths import SUPPORT
from support.pretrain.small_run import WAIT_BEFORE
from support.same_state import OF_CLOCK, differences
from support.toy_shards import make_shards

SMALL_RUN = str(SUPPORT / "pretrain" / "small_run.py")
STEPS = 24
PERIOD = 4
V3 = {
    "MOCO.PRETEXT": "mocov3",
    "MOCO.ENCODER.MLP_DIM": 24,
    "MOCO.AUGMENTATION.NAME": "v3",
    "MOCO.LR_SCHEDULE": "cosine_after_warmup",
    "MOCO.WARMUP_EPOCHS": 4,
    "MOCO.MOMENTUM_SCHEDULE": "cosine",
}


def start(
    words: list[str], *, processes: int, resume: bool = False, wait: int | None = None
) -> list[Python]:
    """Start a run, which waits to be killed before the iteration `wait`."""
    flags = ["--resume"] if resume else []
    command = [SMALL_RUN, "--config-file", "moco_v2_R50_200ep.yaml", *flags, *words]
    options = {
        "env": os.environ | ({} if wait is None else {WAIT_BEFORE: str(wait)}),
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "start_new_session": True,  # so that data workers can be killed with their process
    }
    if processes > 1:
        return start_processes(processes, *command, **options)
    return [Python(command, **options)]


def finish(run: list[Python]) -> None:
    messages = [process.communicate(timeout=SECONDS)[1] for process in run]
    assert [process.returncode for process in run] == [0] * len(run), "\n".join(messages)


def kill_after_a_checkpoint(run: list[Python], folder: Path) -> None:
    """SIGKILL to every process of the run at a random moment after the first checkpoint."""
    deadline = time.monotonic() + SECONDS
    try:
        while not (folder / "last_checkpoint").exists():
            assert all(p.poll() is None for p in run), [p.communicate()[1] for p in run]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.random() * 0.3)
        assert all(p.poll() is None for p in run), [p.communicate()[1] for p in run]
    finally:
        for process in run:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process in run:
        process.communicate()


def outcome(folder: Path) -> tuple[dict, list[dict]]:
    """All of the final checkpoint and of metrics.json."""
    checkpoint = torch.load(folder / "checkpoint_final.pth.tar", weights_only=True)
    lines = (folder / "metrics.json").read_text().splitlines()
    return checkpoint, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("source", "workers", "processes", "recipe"),
    [
        ("folder", 0, 1, {}),
        ("folder", 2, 2, {}),
        ("shards", 2, 1, {}),
        ("shards", 0, 2, {}),
        ("folder", 0, 1, {**V3, "MOCO.PRETRAIN_OPTIMIZER": "LARS"}),
        ("folder", 0, 2, {**V3, "MOCO.PRETRAIN_OPTIMIZER": "AdamW", "MOCO.ACCUMULATION": 2}),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    words, images, held_out, tmp_path, source, workers, processes, recipe
):
    shards = make_shards(tmp_path, [6] * 4)
    dataset = {"folder": str(images), "shards": f"shards:{shards}"}[source]

    def run_words(name: str) -> list[str]:
        return words(
            {
                "OUTPUT_DIR": tmp_path / name,
                "DATASETS.TRAIN": (dataset,),
                "DATALOADER.NUM_WORKERS": workers,
                "SOLVER.CHECKPOINT_PERIOD": PERIOD,
                "MOCO.EPOCHS": 0,
                "SOLVER.MAX_ITER": STEPS,
                "MOCO.BN_SPLITS": 1 if recipe else 2 // processes,
                "MOCO.KNN.TRAIN": images,
                "MOCO.KNN.TEST": held_out,
                "MOCO.KNN.PERIOD": 16,
                **recipe,
            }
        )

    straight = start(run_words("straight"), processes=processes)
    killed = start(run_words("killed"), processes=processes, wait=STEPS - 1)
    kill_after_a_checkpoint(killed, tmp_path / "killed")
    at = (tmp_path / "killed" / "last_checkpoint").read_text()
    assert at != "checkpoint_final.pth.tar"
    finish(start(run_words("killed"), processes=processes, resume=True))
    finish(straight)

    checkpoint, metrics = outcome(tmp_path / "straight")
    assert differences((checkpoint, metrics), outcome(tmp_path / "killed"), but=OF_CLOCK) == []
    assert len(checkpoint["moco_d2"]["processes"]) == processes
    iterations = [line["iteration"] for line in metrics if "total_loss" in line]
    assert iterations == [19, STEPS - 1]
    assert [line["iteration"] for line in metrics if "knn_accuracy" in line] == [15, STEPS]
