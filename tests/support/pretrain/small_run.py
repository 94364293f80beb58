"""tools/pretrain.py with a SmallNetwork: tests/pretrain/test_resume.py runs it."""

from support.small_network import SmallNetwork

from moco_d2.cli import argument_parser, run_command
from moco_d2.engine.launch import launch
from moco_d2.pretrain.model import moco, moco_v3

if __name__ == "__main__":
    moco.build_encoder = moco_v3.build_encoder = SmallNetwork.build
    args = argument_parser("", "").parse_args()
    run_command(lambda: launch("moco_d2.pretrain.main:pretrain", args))
