"""Submit a job to SLURM through submitit. A preempted or timed-out job is saved and queued again.

The job has one task per GPU. submitit sends SIGUSR2 before the time limit. Then hooks.StopOnSignal
saves, and submitit puts the job back into the queue, to continue with --resume.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError, closest

# Our names of two of submitit's parameters.
_ALIASES = {"time": "timeout_min", "gpus": "gpus_per_node"}
# The parameters for all kinds of clusters in submitit's documentation of AutoExecutor. Parameters
# of one kind begin with its name (slurm_partition).
_SHARED = (
    *("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"),
    *("tasks_per_node", "stderr_to_stdout"),
)


class DistributedJob:
    """The work of a SLURM task: the command's main function, in the process group of all tasks."""

    def __init__(self, main: str, args: argparse.Namespace):
        """
        Args:
            main: See launch.launch.
            args: The parsed flags.
        """
        self.main = main
        self.args = args

    def __call__(self) -> None:
        import submitit

        from moco_d2.engine.launch import launch

        # A task that sees all GPUs of its machine takes the one of its local rank; see
        # device.take_own_gpu.
        submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        launch(self.main, self.args)

    def checkpoint(self) -> Any:
        """Return the job that submitit runs after it is queued again."""
        import submitit

        resumed = argparse.Namespace(**{**vars(self.args), "resume": True})
        return submitit.helpers.DelayedSubmission(DistributedJob(self.main, resumed))


def submit(main: str, args: argparse.Namespace) -> Any:
    """Queue a job, and print its number and its output file.

    Args:
        main: See launch.launch.
        args: The parsed flags. ``args.submit`` has words KEY=VALUE. The keys are cluster (slurm, or
            local for processes of this machine), folder (for submitit's files and output), and
            submitit's parameters with - for _: nodes, gpus-per-node (8 or a100:8, also as
            gres=gpu:8 or gres=gpu:a100:8), time (minutes, or HH:MM:SS),
            cpus-per-task, mem-gb, and those of SLURM: partition, account, qos, constraint ...

    Returns:
        submitit's Job.

    Raises:
        UserError: If submitit does not know a key or its value, or the cluster does not exist.
    """
    parameters = parse_words(args.submit)
    parameters.setdefault("folder", "output/slurm")
    parameters.setdefault("tasks_per_node", max(1, gpus_of_node(parameters)))
    # The job itself must not submit again.
    job_args = argparse.Namespace(**{**vars(args), "submit": None})
    job = queue(DistributedJob(main, job_args), parameters, name="moco_d2")
    print(f"job {job.job_id}, output in {job.paths.stdout}", file=sys.stderr)
    return job


def queue(call: Callable[[], Any], parameters: dict[str, Any], *, name: str) -> Any:
    """Queue a job that calls `call`.

    Args:
        call: A picklable function.
        parameters: A result of parse_words, with a folder.
        name: The name of the job.

    Returns:
        submitit's Job.

    Raises:
        UserError: If submitit does not know a key, or the cluster does not exist.
    """
    import submitit

    parameters = dict(parameters)
    folder, cluster = Path(parameters.pop("folder")), parameters.pop("cluster", "slurm")
    gpus = gpus_of_node(parameters)
    # submitit takes a type of GPU (a100:8) only under SLURM's own name.
    shared = {name for name in _SHARED if name != "gpus_per_node" or cluster != "slurm"}
    if "gpus_per_node" in parameters and cluster != "slurm":
        parameters["gpus_per_node"] = gpus
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(
            name=name,
            **{k if k in shared else f"{cluster}_{k}": value for k, value in parameters.items()},
        )
        return executor.submit(call)
    except (NameError, ValueError, AssertionError, RuntimeError, FileNotFoundError) as error:
        names = {*_SHARED, *(own := _own_parameters(submitit.SlurmExecutor))}
        unknown = [key for key in parameters if key not in names] if own else []
        if unknown:
            raise UserError(
                f"--submit does not know {unknown[0].replace('_', '-')}; "
                + (closest(unknown[0], names) or "see submitit's documentation")
            ) from error
        raise UserError(f"--submit: {str(error).splitlines()[0]}") from error


def _own_parameters(executor: Any) -> set[str]:
    """Return the names of the parameters of one kind of submitit's executors.

    submitit lists them under a private name. If that name no longer exists, the set is empty, and
    an unknown parameter is reported by submitit's own message.
    """
    names = getattr(executor, "_valid_parameters", None)
    return set(names()) if names is not None else set()


def parse_words(words: list[str]) -> dict[str, Any]:
    """Turn KEY=VALUE words into submitit's parameters, cluster and folder.

    Raises:
        UserError: If a word has another form.
    """
    parameters: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--submit takes KEY=VALUE words, such as nodes=2, got {word!r}")
        key = key.replace("-", "_")
        key = _ALIASES.get(key, key)
        if key == "timeout_min":
            parameters[key] = _minutes(value)
        else:
            parameters[key] = int(value) if value.isdecimal() else value
    return parameters


def gpus_of_node(parameters: dict[str, Any]) -> int:
    """Return the number of GPUs of a machine that a result of parse_words asks for, 0 for none.

    Raises:
        UserError: If gpus-per-node or gres has another form than SLURM's.
    """
    if (wanted := parameters.get("gpus_per_node")) is not None:
        match = re.fullmatch(r"(?:[^:]+:)?(\d+)", str(wanted))
        if not match:
            raise UserError(f"--submit gpus-per-node={wanted}: give a number, or TYPE:NUMBER")
        return int(match[1])
    resource = str(parameters.get("gres", ""))
    if resource.partition(":")[0] != "gpu":
        return 0
    match = re.fullmatch(r"gpu(?::[^:\d][^:]*)?(?::(\d+))?", resource)
    if not match:
        raise UserError(f"--submit gres={resource}: give gpu:NUMBER, or gpu:TYPE:NUMBER")
    return int(match[1] or 1)


def _minutes(value: str) -> int:
    """Parse SLURM's forms of a time: minutes, HH:MM:SS or D-HH:MM:SS."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", value)
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)
    if value.isdecimal():
        return int(value)
    raise UserError(f"--submit time={value}: give minutes, HH:MM:SS or D-HH:MM:SS")
