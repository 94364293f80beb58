"""Run by tests/transfer/test_resume.py as FOLDER OVERRIDES.json: two gloo processes
fine-tune, once without a break, and once stopped by a signal that only the second is sent, and
resumed.
"""

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

from moco_d2.plugin import compat
from moco_d2.transfer.main import train
from moco_d2.transfer.trainer import Trainer

STOPPED_AT = 3


def main(root: str, rank: int, overrides: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    compat.set_local_process_group(2)

    def run(out: str, *, resume: bool = False) -> None:
        args = argparse.Namespace(config_file="voc_C4_random.yaml", resume=resume, force=False)
        args.eval_only = False
        args.opts = [*overrides, "OUTPUT_DIR", f"{root}/{out}"]
        train(args)

    run("whole")
    original = Trainer.run_step

    def run_step(self):
        if self.iter == STOPPED_AT and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    Trainer.run_step = run_step
    try:
        run("parts")
    except KeyboardInterrupt:
        Path(root, f"stopped{rank}").touch()
    Trainer.run_step = original
    run("parts", resume=True)
    dist.barrier()  # a process that leaves early takes its connections with it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(os.environ["RANK"]), json.loads(Path(sys.argv[2]).read_text()))
