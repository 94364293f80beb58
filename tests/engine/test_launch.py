"""Launching: SLURM through submitit's local executor, restarts, and errors of several processes."""

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import time

import pytest
import torch
import torch.multiprocessing as mp
from support.paths import TESTS
from support.toy_data import make_class_folders

from moco_d2.cli import argument_parser, run_command
from moco_d2.engine import launch as launch_module
from moco_d2.engine.launch import launch
from moco_d2.engine.slurm import submit
from moco_d2.errors import Stopped, UserError

TORCHRUN = {
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
    **dict.fromkeys(("RANK", "LOCAL_RANK"), "0"),
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
CALLED: list[argparse.Namespace] = []


def job(args: argparse.Namespace) -> None:
    CALLED.append(args)


def flags(*words: str) -> argparse.Namespace:
    return argument_parser("", "").parse_args(["--config-file", "x.yaml", *words])


def raise_user_error(rank: int) -> None:
    raise UserError("two findings\n  the third image is no image; remove it\n  SEED is -1: set it")


class PlantedError(UserError):
    pass


def raise_a_subclass(args: object) -> None:
    raise PlantedError("image x.png cannot be read", "replace it")


def child_of_num_gpus(rank: int) -> None:
    launch_module._run_child(f"{__name__}:raise_a_subclass", argparse.Namespace())


def exit_as_terminated(rank: int) -> None:
    sys.exit(143)


def test_an_elastic_restart_resumes(monkeypatch):
    CALLED.clear()
    monkeypatch.setattr(launch_module.pkgutil, "resolve_name", lambda name: job)
    launch("tests:job", flags())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    launch("tests:job", flags())
    assert [args.resume for args in CALLED] == [False, True]


@pytest.mark.parametrize(("count", "message"), [("", None), ("many", "_COUNT is 'many' .*: unset")])
def test_a_restart_count_left_in_the_shell(monkeypatch, count, message):
    CALLED.clear()
    monkeypatch.setattr(launch_module.pkgutil, "resolve_name", lambda name: job)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        launch("tests:job", flags())
    assert [args.resume for args in CALLED] == [False] * (message is None)


def test_what_a_child_process_raises_is_whole_here():
    with (
        pytest.raises(UserError, match=r"^two findings\n  the third.* it\n  SEED is -1: set it$"),
        launch_module._children_as_one(),
    ):
        mp.start_processes(raise_user_error, start_method="forkserver")


def test_a_subclass_of_a_child_process_is_a_user_error_here():
    with (
        pytest.raises(UserError, match=r"^image x\.png cannot be read\nreplace it$"),
        launch_module._children_as_one(),
    ):
        mp.start_processes(child_of_num_gpus, start_method="forkserver")


def test_a_childs_exit_code_is_ours():
    with pytest.raises(SystemExit) as ended, launch_module._children_as_one():
        mp.start_processes(exit_as_terminated, start_method="forkserver")
    assert ended.value.code == 143


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_exit_codes_name_the_signal(number, code, capsys):
    def stop():
        raise Stopped(number)

    with pytest.raises(SystemExit) as ended:
        run_command(stop)
    assert ended.value.code == code
    assert "--resume" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="has the GPUs")
def test_several_processes_on_a_cpu_are_torchruns():
    with pytest.raises(UserError, match="torchrun --nnodes 1 --nproc-per-node 2"):
        launch("moco_d2.pretrain.main:pretrain", flags("--num-gpus", "2"))


def pretend_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-gpus", "16"], "this machine has 8.*: lower it"),
        (
            ["--num-gpus", "2", "MODEL.DEVICE", "cpu"],
            "but the device is the CPU: .* torchrun --nnodes 1 --nproc-per-node 2",
        ),
        (
            ["--num-machines", "2", "MODEL.DEVICE", "cpu"],
            "but the device is the CPU: .* torchrun --nnodes 2 --nproc-per-node 1",
        ),
        (["--machine-rank", "1"], "--machine-rank 1 must be .* 1: give both flags, or neither"),
        (["--num-gpus", "2", "--dist-url", "tcp://host:65536"], "of --dist-url is '65536'"),
        (["--num-gpus", "-1"], "--num-gpus is -1: give 0 or more"),
        (["--num-gpus", "0", "--num-machines", "2"], "--num-gpus is 0: give 1 or more"),
        (["--num-machines", "0"], "--num-machines is 0: give 1 or more"),
        (["--num-machines", "2"], "--dist-url is auto, but --num-machines 2 needs the address"),
        (["--num-machines", "2", "--dist-url", "host:1"], "--dist-url is host:1, but"),
        (
            ["--num-machines", "2", "--machine-rank", "2", "--dist-url", "tcp://host:1"],
            "--machine-rank 2 must be at least 0 and less than --num-machines 2",
        ),
    ],
)
def test_flags_that_cannot_start_processes_are_refused(monkeypatch, words, message):
    pretend_gpus(monkeypatch, 8)
    args = argument_parser("", "").parse_args(["--config-file", "moco_v2_R50_200ep.yaml", *words])
    with pytest.raises(UserError, match=message):
        launch("moco_d2.pretrain.main:pretrain", args)


@pytest.mark.parametrize("variables", [{"TORCHELASTIC_RUN_ID": "none"}, TORCHRUN])
@pytest.mark.parametrize("words", [["--num-gpus", "2"], ["--num-machines", "2"]])
def test_processes_that_torchrun_has_started_start_no_others(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start processes, but torchrun or SLURM has already"):
        launch("moco_d2.pretrain.main:pretrain", flags(*words))


def test_num_gpus_starts_processes_with_ranks_that_meet(monkeypatch, tmp_path):
    """The processes see no GPU here, so they meet on the CPU."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # the job is of support/
    pretend_gpus(monkeypatch, 2)
    args = argparse.Namespace(
        config_file=str(tmp_path),
        device="cuda",
        num_gpus=2,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
    )
    launch("support.group_job:write_rank", args)
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == "[(0, 0), (1, 1)]"


@pytest.mark.parametrize(
    ("flags", "on_gpu"),
    [
        ({"device": "cpu"}, False),
        ({"device": "cuda"}, True),
        ({"device": None}, True),
        ({"config_file": "moco_v2_R50_200ep.yaml", "opts": []}, True),
        ({"config_file": "moco_v2_R50_200ep.yaml", "opts": ["MODEL.DEVICE", "cpu"]}, False),
        ({}, True),
    ],
)
def test_the_device_of_the_job_chooses_nccl_or_gloo(monkeypatch, flags, on_gpu):
    args = argparse.Namespace(**flags)
    pretend_gpus(monkeypatch, 8)
    assert launch_module._is_on_gpu(args) is on_gpu
    pretend_gpus(monkeypatch, 0)
    assert not launch_module._is_on_gpu(args)


def test_a_world_size_left_in_the_shell_is_one_sentence(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="^WORLD_SIZE is 4 in the environment, without RANK"):
        launch("moco_d2.pretrain.main:pretrain", flags())


def test_a_preempted_job_is_saved_queued_again_and_continued(tmp_path, monkeypatch):
    """Two tasks of submitit's local executor, sent the signal that SLURM sends."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # the job is of support/
    images = make_class_folders(tmp_path / "images", per_class=12)
    out = tmp_path / "out"
    overrides = {
        "DATASETS.TRAIN": (str(images),),
        "OUTPUT_DIR": out,
        "MODEL.DEVICE": "cpu",
        "DATALOADER.NUM_WORKERS": 0,
        "SEED": 1,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_ITER": 40,
        "SOLVER.CHECKPOINT_PERIOD": 0,
        "MOCO.REFERENCE_BATCH": 0,
        "MOCO.EPOCHS": 0,
        "MOCO.ENCODER.ARCH": "resnet18",
        "MOCO.DICTIONARY.SIZE": 20,
        "MOCO.AUGMENTATION.SIZE": 32,
    }
    args = argument_parser("", "").parse_args(
        [
            "--config-file",
            "moco_v2_R50_200ep.yaml",
            "--submit",
            f"cluster=local,tasks-per-node=2,time=5,folder={tmp_path / 'slurm'}",
            *(str(word) for pair in overrides.items() for word in pair),
        ]
    )
    submitted = submit("support.pretrain.small_job:pretrain", args)
    log = out / "log.txt"
    wait_for(log.exists, submitted)
    tasks = tasks_of(submitted)
    assert len(tasks) == 2
    wait_for((out / "metrics.json").exists, submitted)  # written in step 20
    for pid in tasks:
        os.kill(pid, submitted_signal())
    wait_for((out / "checkpoint_final.pth.tar").exists, submitted)
    lines = log.read_text()
    assert "SIGUSR2: stopped and saved after iteration" in lines
    assert "continuing" in lines
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in metrics if "total_loss" in line] == [19, 39]
    submitted.wait()


def submitted_signal() -> int:
    from submitit.local.local import LocalJobEnvironment

    return LocalJobEnvironment._usr_sig()


def tasks_of(submitted) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", submitted.job_id], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def wait_for(condition, submitted, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, submitted.stderr()
        time.sleep(0.005)


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_errors_of_the_log_are_quiet_in_a_job_and_only_there(ends, monkeypatch):
    seen = []

    def job(args):
        seen.append(logging.raiseExceptions)
        if ends == "raises":
            raise UserError("a problem")

    monkeypatch.setattr(launch_module.pkgutil, "resolve_name", lambda name: job)
    assert logging.raiseExceptions
    with contextlib.suppress(UserError):
        launch("tests:job", flags())
    assert seen == [False] and logging.raiseExceptions
