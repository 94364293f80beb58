"""Jobs of several processes, run as ``group_job.py JOB`` with torchrun's variables, or by name."""

import argparse
import sys
import threading
from pathlib import Path

from detectron2.utils import comm

from moco_d2.cli import run_command
from moco_d2.engine import heartbeat
from moco_d2.engine.launch import launch
from moco_d2.errors import UserError


def write_rank(args: argparse.Namespace) -> None:
    """Write the ranks of all processes into a file of this one."""
    ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank()))
    Path(args.config_file, f"rank{comm.get_rank()}").write_text(repr(ranks))


def rank_1_fails(args: argparse.Namespace) -> None:
    """Wait as for a GPU: no exception reaches the main thread of rank 0."""
    heartbeat._GRACE_S = 0.1
    if comm.get_rank() == 1:
        raise UserError("the disk of this machine is full")
    threading.Event().wait()


if __name__ == "__main__":
    flags = argparse.Namespace(num_gpus=1, num_machines=1)
    run_command(lambda: launch(f"{__name__}:{sys.argv[1]}", flags))
