"""What a submission asks SLURM for. A job that runs is in test_launch.py."""

import argparse
import os

import pytest
import submitit

from moco_d2.cli import argument_parser
from moco_d2.engine import slurm
from moco_d2.engine.slurm import submit
from moco_d2.errors import UserError


def flags(*words: str) -> argparse.Namespace:
    return argument_parser("", "").parse_args(["--config-file", "x.yaml", *words])


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        ("gpus-per-node=8", 8),
        ("gpus=8", 8),
        ("gpus-per-node=a100:8", 8),
        ("gres=gpu:8", 8),
        ("gres=gpu:a100:4", 4),
        ("gres=gpu:a100", 1),
        ("gres=gpu", 1),
        ("gres=shard:8", 0),
        ("nodes=2", 0),
    ],
)
def test_the_gpus_of_a_node_in_slurms_forms(words, gpus):
    assert slurm.gpus_of_node(slurm.parse_words(words.split(","))) == gpus


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Programs in the place of SLURM's: srun exists, and sbatch gives the job the number 12."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("srun", "sbatch"):
        (programs / name).write_text("#!/bin/sh\necho Submitted batch job 12\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("gpus-per-node=8", ["--gpus-per-node=8", "--ntasks-per-node=8"]),
        ("gpus-per-node=a100:8", ["--gpus-per-node=a100:8", "--ntasks-per-node=8"]),
        ("gres=gpu:8", ["--gres=gpu:8", "--ntasks-per-node=8"]),
        ("gres=gpu:a100:4", ["--gres=gpu:a100:4", "--ntasks-per-node=4"]),
        ("gpus-per-task=1,tasks-per-node=8", ["--gpus-per-task=1", "--ntasks-per-node=8"]),
    ],
)
def test_a_job_has_a_task_for_each_gpu(words, lines, cluster, tmp_path):
    submit("tests:job", flags("--submit", f"{words},folder={tmp_path / 'jobs'}"))
    (script,) = (tmp_path / "jobs").glob("*_submission.sh")
    asked = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines()]
    assert set(lines) <= set(asked)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gpus-per-node=many", "gpus-per-node=many: give a number, or TYPE:NUMBER"),
        ("gres=gpu:a100:many", "gres=gpu:a100:many: give gpu:NUMBER, or gpu:TYPE:NUMBER"),
        ("nodes=two", "--submit: "),
        ("cluster=local,nodes", "KEY=VALUE words"),
        ("cluster=local,time=tomorrow", "give minutes, HH:MM:SS or D-HH:MM:SS"),
        ("cluster=local,partitoin=gpu", "does not know partitoin; did you mean 'partition'"),
    ],
)
def test_a_submission_that_cannot_be_is_refused(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        submit("tests:job", flags("--submit", f"{words},folder={tmp_path}"))


def test_names_of_submitit_are_what_its_documentation_says():
    documented = submitit.AutoExecutor._typed_parameters()
    assert set(slurm._SHARED) == set(documented)
    assert "partition" in slurm._own_parameters(submitit.SlurmExecutor)


def test_a_submitit_without_its_private_list_speaks_for_itself(monkeypatch, tmp_path):
    assert slurm._own_parameters(object()) == set()
    monkeypatch.setattr(slurm, "_own_parameters", lambda executor: set())
    with pytest.raises(UserError, match="^--submit: "):  # no SLURM here, or no such parameter
        submit("tests:job", flags("--submit", f"cluster=slurm,partitoin=gpu,folder={tmp_path}"))
