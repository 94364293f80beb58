"""tools/pretrain.py with a SmallNetwork: tests/pretrain/test_resume.py runs it."""

import os
import time

from support.commands import SECONDS
from support.small_network import SmallNetwork

from moco_d2.cli import argument_parser, run_command
from moco_d2.engine.launch import launch
from moco_d2.pretrain import main
from moco_d2.pretrain.model import moco, moco_v3
from moco_d2.pretrain.pretrainer import Pretrainer

# Environment variable: the iteration before which the run waits to be killed, however fast it is.
WAIT_BEFORE = "SMALL_RUN_WAITS_BEFORE"


class WaitingPretrainer(Pretrainer):
    def run_step(self) -> None:
        if str(self.iter) == os.environ.get(WAIT_BEFORE):
            time.sleep(SECONDS)
        super().run_step()


if __name__ == "__main__":
    moco.build_encoder = moco_v3.build_encoder = SmallNetwork.build
    main.Pretrainer = WaitingPretrainer
    args = argument_parser("", "").parse_args()
    run_command(lambda: launch("moco_d2.pretrain.main:pretrain", args))
