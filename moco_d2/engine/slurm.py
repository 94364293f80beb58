"""Send a job to SLURM, through submitit; a preempted or timed-out one is saved and queued again.

One task a GPU. submitit sends SIGUSR2 before the time is over; hooks.StopOnSignal saves, and
submitit puts the job back into the queue, where it continues with --resume.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError, closest

# Our words for the two that submitit has under names of its own.
_ALIASES = {"time": "timeout_min", "gpus": "gpus_per_node"}
# The parameters that submitit's documentation of AutoExecutor names for clusters of all kinds;
# those of one kind have its name before them (slurm_partition).
_SHARED = (
    *("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"),
    *("tasks_per_node", "stderr_to_stdout"),
)


class DistributedJob:
    """What one SLURM task runs: the command's main function, in the process group of all tasks."""

    def __init__(self, main: str, args: argparse.Namespace):
        """
        Args:
            main: see launch.launch.
            args: parsed flags.
        """
        self.main = main
        self.args = args

    def __call__(self) -> None:
        import submitit

        from moco_d2.engine.launch import launch

        # Each task sees all GPUs of its machine and takes the one of its local rank.
        submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        launch(self.main, self.args)

    def checkpoint(self) -> Any:
        """submitit's question what to run when the job is queued again."""
        import submitit

        resumed = argparse.Namespace(**{**vars(self.args), "resume": True})
        return submitit.helpers.DelayedSubmission(DistributedJob(self.main, resumed))


def submit(main: str, args: argparse.Namespace) -> Any:
    """Queue the job that `args` describe; prints its number and where its output goes.

    Args:
        main: see launch.launch.
        args: parsed flags; ``args.submit`` has words KEY=VALUE: cluster (slurm, or local: processes
            of this machine), folder (of submitit's files and output), and submitit's parameters
            with - for _: nodes, gpus-per-node, time (minutes, or HH:MM:SS), cpus-per-task, mem-gb,
            and those of SLURM: partition, account, qos, constraint ...

    Returns:
        submitit's Job.

    Raises:
        UserError: a word that submitit does not know, or there is no such cluster here.
    """
    given = parse_words(args.submit)
    given.setdefault("folder", "output/slurm")
    # One task a GPU; on CPUs, as many as asked for.
    given.setdefault("tasks_per_node", max(1, given.get("gpus_per_node", 0)))
    # The command's own flags travel; the request for submission has been met.
    traveling = argparse.Namespace(**{**vars(args), "submit": None})
    job = queue(DistributedJob(main, traveling), given, name="moco_d2")
    print(f"job {job.job_id}, output in {job.paths.stdout}", file=sys.stderr)
    return job


def queue(call: Callable[[], Any], given: dict[str, Any], *, name: str) -> Any:
    """Queue a job that calls `call`.

    Args:
        call: picklable.
        given: from parse_words, with a folder.
        name: of the job.

    Returns:
        submitit's Job.

    Raises:
        UserError: a key that submitit does not know, or there is no such cluster here.
    """
    import submitit

    given = dict(given)
    folder, cluster = Path(given.pop("folder")), given.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(
            name=name,
            **{k if k in _SHARED else f"{cluster}_{k}": value for k, value in given.items()},
        )
        return executor.submit(call)
    except (NameError, ValueError, AssertionError, RuntimeError, FileNotFoundError) as error:
        names = {*_SHARED, *(own := _own_parameters(submitit.SlurmExecutor))}
        unknown = [key for key in given if key not in names] if own else []
        if unknown:
            raise UserError(
                f"--submit does not know {unknown[0].replace('_', '-')}; "
                + (closest(unknown[0], names) or "see submitit's documentation")
            ) from error
        raise UserError(f"--submit: {str(error).splitlines()[0]}") from error


def _own_parameters(executor: Any) -> set[str]:
    """Return the names of the parameters that only this kind of submitit's executors has.

    submitit lists them under a private name; where that is gone, the set is empty, and submitit's
    own message is what a user reads of a parameter that it does not know.
    """
    names = getattr(executor, "_valid_parameters", None)
    return set(names()) if names is not None else set()


def parse_words(words: list[str]) -> dict[str, Any]:
    """KEY=VALUE words as submitit's parameters, and cluster and folder.

    Raises:
        UserError: another notation.
    """
    parameters: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--submit takes KEY=VALUE words, as nodes=2; got {word!r}")
        key = key.replace("-", "_")
        key = _ALIASES.get(key, key)
        if key == "timeout_min":
            parameters[key] = _minutes(value)
        else:
            parameters[key] = int(value) if value.isdecimal() else value
    return parameters


def _minutes(value: str) -> int:
    """SLURM's notations: minutes, HH:MM:SS or D-HH:MM:SS."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", value)
    if found:
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)
    if value.isdecimal():
        return int(value)
    raise UserError(f"--submit time={value}: give minutes, HH:MM:SS or D-HH:MM:SS")
