"""What a submission asks SLURM for. A job that runs is in test_launch.py."""

import argparse
import os

import pytest
import submitit

from moco_d2.cli import argument_parser
from moco_d2.engine import launch, slurm
from moco_d2.engine.slurm import submit
from moco_d2.errors import UserError


def flags(*words: str) -> argparse.Namespace:
    return argument_parser("", "").parse_args(["--config-file", "moco_v2_R50_200ep.yaml", *words])


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        ("gpus-per-node=8", 8),
        ("gpus=8", 8),
        ("gpus=16,nodes=2", 8),  # SLURM's own gpus are those of the whole job
        ("nodes=2,gpus=a100:16", 8),
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


@pytest.mark.parametrize(
    ("value", "minutes"),
    [
        ("90", 90),
        ("30:00", 30),
        ("30:01", 31),
        ("24:00:00", 1440),
        ("2-00", 2880),
        ("1-02:30", 1590),
        ("1-00:00:01", 1441),
    ],
)
def test_slurms_forms_of_a_time(value, minutes):
    assert slurm.parse_words([f"time={value}"]) == {"timeout_min": minutes}


@pytest.mark.parametrize(
    "words",
    [
        ["exclude=a[1,3],b", "nodes=2"],  # of tools/benchmark.py, which takes several words
        ['exclude="a[1', "3]", 'b"', "nodes=2"],
    ],
)
def test_a_value_may_have_commas(words):
    assert slurm.parse_words(words) == {"exclude": "a[1,3],b", "nodes": 2}
    assert slurm.parse_words(["nodelist=a[1", "3]"]) == {"nodelist": "a[1,3]"}


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
        ("gpus=many", "gpus=many: give a number, or TYPE:NUMBER"),
        ("gpus=9,nodes=2", "gpus=9 is for all machines together, and nodes=2 cannot share them eq"),
        ("gpus=8,gpus-per-node=8", "gives gpus-per-node twice"),
        ("nodes=2,nodes=3", "gives nodes twice"),
        ("nodelist=a,b", "got 'b'; a value with commas .* 'nodes=2,exclude=\"a,b\"'$"),
        ("nodelist=a[1,b", "close the quote or the bracket"),
        ("nodes=two", "--submit: "),
        ("cluster=local,nodes", "KEY=VALUE words"),
        ("cluster=local,time=tomorrow", "give minutes, MM:SS, HH:MM:SS, D-HH, "),
        ("cluster=local,partitoin=gpu", "does not know partitoin; did you mean 'partition'"),
    ],
)
def test_a_submission_that_cannot_be_is_refused(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        submit("tests:job", flags("--submit", f"{words},folder={tmp_path}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "nosuch.yaml"], "nosuch"),
        (["NO.SUCH", "1"], "unknown config key NO.SUCH"),
        (["--num-gpus", "8"], "--submit starts the processes .*: leave out --num-gpus"),
        (["--num-machines", "2"], "give nodes and gpus-per-node"),
        (["--machine-rank", "1"], "leave out .* --machine-rank"),
    ],
)
def test_a_job_that_could_not_start_is_not_queued(words, message, cluster, tmp_path):
    with pytest.raises(UserError, match=message):
        submit("tests:job", flags("--submit", f"nodes=1,folder={tmp_path / 'jobs'}", *words))
    assert not (tmp_path / "jobs").exists()


def test_an_error_of_the_job_is_one_line_and_exit_code_2(monkeypatch, capsys):
    class Environment:
        def export(self, **options):
            pass

    def refuse(main, args):
        raise UserError("the weights w.pth\033 do not exist")

    monkeypatch.setattr(submitit.helpers, "TorchDistributedEnvironment", Environment)
    monkeypatch.setattr(launch, "launch", refuse)
    with pytest.raises(SystemExit) as ended:
        slurm.DistributedJob("tests:job", flags())()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the weights w.pth? do not exist\n"


def test_names_of_submitit_are_what_its_documentation_says():
    documented = submitit.AutoExecutor._typed_parameters()
    assert set(slurm._SHARED) == set(documented)
    assert "partition" in slurm._own_parameters(submitit.SlurmExecutor)


def test_a_submitit_without_its_private_list_speaks_for_itself(monkeypatch, tmp_path):
    assert slurm._own_parameters(object()) == set()
    monkeypatch.setattr(slurm, "_own_parameters", lambda executor: set())
    with pytest.raises(UserError, match="^--submit: "):  # no SLURM here, or no such parameter
        submit("tests:job", flags("--submit", f"cluster=slurm,partitoin=gpu,folder={tmp_path}"))
