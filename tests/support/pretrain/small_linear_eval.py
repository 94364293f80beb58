"""tools/linear_eval.py with a SmallNetwork for ``random``: tests/test_group_signals.py runs it."""

import runpy

from support.paths import TOOLS
from support.small_network import SmallNetwork
from torch import nn

from moco_d2.checkpoint.backbone import RANDOM, Origin
from moco_d2.pretrain.probe import main


def small_network(arch: str, **_: object) -> tuple[nn.Module, str, int, Origin]:
    network = SmallNetwork(1)
    network.fc = nn.Identity()
    return network, "ResNet-18", SmallNetwork.WIDTH, Origin(RANDOM, None, RANDOM, None)


if __name__ == "__main__":
    main.random_network = small_network
    runpy.run_path(str(TOOLS / "linear_eval.py"), run_name="__main__")
