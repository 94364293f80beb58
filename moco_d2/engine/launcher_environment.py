"""The place of a process in its job.

torchrun and SLURM (slurm.py) give it by environment variables, and ``--num-gpus`` (launch.py)
directly.
"""

import os
from dataclasses import dataclass
from typing import Any

from moco_d2.errors import UserError


@dataclass(frozen=True)
class Place:
    """The place of this process in its job, and the address where all processes meet."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int


#: torchrun's process that starts the others. It has the store, unless rank 0 has it.
AGENT = "torchrun on the machine of rank 0"
_PORTS = range(1, 65536)
_VARIABLES = {
    "RANK": "rank",
    "WORLD_SIZE": "world_size",
    "LOCAL_RANK": "local_rank",
    "LOCAL_WORLD_SIZE": "local_world_size",
    "MASTER_ADDR": "address",
    "MASTER_PORT": "port",
}


def place_of_process() -> Place | None:
    """Return the place that the environment gives this process, or None if it is the only one.

    Raises:
        UserError: If the variables are incomplete, or contradict each other.
    """
    advice = "for a single process unset WORLD_SIZE, else start all processes with torchrun"
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        _check_single()
        return None
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, without "
            f"{', '.join(missing)}: {advice}"
        )
    values: dict[str, Any] = {name: os.environ[variable] for variable, name in _VARIABLES.items()}
    values["port"] = port_of(values["port"], "MASTER_PORT")
    for variable, name in _VARIABLES.items():
        if name in ("address", "port"):
            continue
        if not values[name].isdecimal():
            raise UserError(f"{variable} is {values[name]!r} in the environment: {advice}")
        values[name] = int(values[name])
    place = Place(**values)
    if not (
        place.rank < place.world_size
        and place.local_rank < place.local_world_size <= place.world_size
    ):
        words = " ".join(f"{name}={os.environ[name]}" for name in _VARIABLES)
        raise UserError(f"{words} in the environment contradict each other: {advice}")
    return place


def _check_single() -> None:
    """Refuse to be the only process where variables say that there are others.

    Raises:
        UserError: If RANK is not 0, or srun has started several tasks. For independent tasks,
            WORLD_SIZE is 1.
    """
    size = os.environ.get("WORLD_SIZE", "")
    if (rank := os.environ.get("RANK", "")) not in ("", "0"):
        raise UserError(
            f"RANK is {rank} in the environment, but WORLD_SIZE is {size or 'not set'}: for a "
            "single process unset RANK, else start all processes with torchrun"
        )
    # A batch script and a shell of salloc are steps of one task, whatever SLURM_NTASKS says.
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if not size and tasks not in ("", "1") and os.environ.get("SLURM_PROCID"):
        raise UserError(
            f"srun has started {tasks} tasks (SLURM_NTASKS, SLURM_STEP_NUM_TASKS), but WORLD_SIZE "
            "is not set, so each would train alone: use --submit, or one torchrun on each machine, "
            "or for independent runs set WORLD_SIZE=1"
        )


def port_of(text: str, setting: str) -> int:
    """Return the number of a port.

    Raises:
        UserError: If the text is none.
    """
    if not (text.isdecimal() and int(text) in _PORTS):
        raise UserError(
            f"{setting} is {text!r}: give a free port of rank 0's machine, {_PORTS[0]} to "
            f"{_PORTS[-1]}"
        )
    return int(text)


def restarts() -> int:
    """Return how often torchrun has restarted the processes.

    Raises:
        UserError: If TORCHELASTIC_RESTART_COUNT is not a number.
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"
    if not count.isdecimal():
        raise UserError(
            f"TORCHELASTIC_RESTART_COUNT is {count!r} in the environment: unset it; torchrun sets "
            "it to a number"
        )
    return int(count)


def of_agent() -> bool:
    """Return whether torchrun's agent has the job's store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
