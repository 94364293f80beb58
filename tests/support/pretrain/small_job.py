"""The job of tools/pretrain.py with a SmallNetwork: tests/engine/test_launch.py submits it."""

import argparse

from support.small_network import SmallNetwork

from moco_d2.pretrain import main
from moco_d2.pretrain.model import moco


def pretrain(args: argparse.Namespace) -> None:
    moco.build_encoder = SmallNetwork.build
    main.pretrain(args)
