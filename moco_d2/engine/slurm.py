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

from moco_d2.config.load import load_config_of
from moco_d2.errors import USER_ERROR_EXIT_CODE, UserError, as_raised, closest, printable

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
        try:
            launch(self.main, self.args)
        except UserError as error:  # submitit would print a traceback
            text = "\n".join(map(printable, as_raised(error).lines))
            print(f"error: {text}", file=sys.stderr, flush=True)
            sys.exit(USER_ERROR_EXIT_CODE)

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
            gres=gpu:8 or gres=gpu:a100:8), gpus (of all machines), time (minutes, or
            another form of SLURM's), cpus-per-task, mem-gb, and those of SLURM: partition, account,
            qos, constraint ... A value with commas stands in double quotes.

    Returns:
        submitit's Job.

    Raises:
        UserError: If submitit does not know a key or its value, the cluster does not exist, or the
            job could not start: its config cannot be loaded, or flags would start processes.
    """
    load_config_of(args)
    if args.num_gpus * args.num_machines > 1 or args.machine_rank:
        raise UserError(
            "--submit starts the processes on all machines: leave out --num-gpus, --num-machines "
            "and --machine-rank, and give nodes and gpus-per-node to --submit"
        )
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
        UserError: If a word has another form, or two words give the same.
    """
    parameters: dict[str, Any] = {}
    for word in _whole(words):
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(
                f"--submit takes KEY=VALUE words, such as nodes=2, got {word!r}; a value with "
                "commas stands in double quotes: --submit 'nodes=2,exclude=\"a,b\"'"
            )
        key = name.replace("-", "_")
        key = _ALIASES.get(key, key)
        value = value.replace('"', "")
        if key in parameters:
            raise UserError(f"--submit gives {name} twice, also as another name: leave one out")
        if key == "timeout_min":
            parameters[key] = _minutes(value)
        else:
            parameters[key] = int(value) if value.isdecimal() else value
    if any(re.match("gpus=", word) for word in words):
        parameters["gpus_per_node"] = _share_of_node(parameters)
    return parameters


def _whole(words: list[str]) -> list[str]:
    """Join the words of a value that was split at commas in double quotes or brackets.

    Raises:
        UserError: If a quote or a bracket is not closed.
    """
    whole: list[str] = []
    is_open = False
    for word in words:
        if is_open:
            whole[-1] += f",{word}"
        else:
            whole.append(word)
        is_open = whole[-1].count('"') % 2 == 1 or whole[-1].count("[") > whole[-1].count("]")
    if is_open:
        raise UserError(f"--submit {whole[-1]}: close the quote or the bracket")
    return whole


def _share_of_node(parameters: dict[str, Any]) -> int | str:
    """Return the GPUs of a machine for SLURM's gpus, which is the number of the whole job.

    Raises:
        UserError: If the machines cannot have equal shares.
    """
    gpus, nodes = str(parameters["gpus_per_node"]), parameters.get("nodes", 1)
    kind, colon, number = gpus.rpartition(":")
    if not number.isdecimal():
        raise UserError(f"--submit gpus={gpus}: give a number, or TYPE:NUMBER")
    if not isinstance(nodes, int) or nodes < 1 or int(number) % nodes:
        raise UserError(
            f"--submit gpus={gpus} is for all machines together, and nodes={nodes} cannot share "
            "them equally: give gpus-per-node"
        )
    share = int(number) // nodes
    return f"{kind}:{share}" if colon else share


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
    """Parse SLURM's forms of a time, and round it up to minutes."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value)
    if not match:
        raise UserError(
            f"--submit time={value}: give minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"
        )
    days, *parts = (int(part) if part else 0 for part in match.groups())
    if match[1] is None and match[4] is None:  # without days and hours
        parts = [0, *parts[:2]]
    hours, minutes, seconds = parts
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)
