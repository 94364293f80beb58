"""tools/linear_eval.py with a SmallNetwork for ``random``: tests/test_group_signals.py runs it."""

import runpy

from support.paths import TOOLS
from support.small_network import SmallNetwork
from torch import nn

from moco_d2.checkpoint.backbone import RANDOM, Origin
from moco_d2.checkpoint.mapping import Architecture
from moco_d2.pretrain.probe import linear_eval


class SmallArchitecture(Architecture):
    num_features = SmallNetwork.WIDTH


def small_backbone(arch: str) -> tuple[nn.Module, Architecture, Origin]:
    network = SmallNetwork(1)
    network.fc = nn.Identity()
    return network, SmallArchitecture(18), Origin(RANDOM, None, RANDOM, None)


if __name__ == "__main__":
    linear_eval.random_backbone = small_backbone
    runpy.run_path(str(TOOLS / "linear_eval.py"), run_name="__main__")
