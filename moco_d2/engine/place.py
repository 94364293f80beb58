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
        return None
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, without "
            f"{', '.join(missing)}: {advice}"
        )
    values: dict[str, Any] = {name: os.environ[variable] for variable, name in _VARIABLES.items()}
    for variable, name in _VARIABLES.items():
        if name == "address":
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
