"""The ViT of Detectron2's main: of the installed one, or of a checkout beside it."""

import contextlib
import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path

from torch import nn
from torchvision.ops import StochasticDepth

CHECKOUT = "DETECTRON2_MAIN"  # environment variable: the folder of a checkout
_PACKAGE = "detectron2.modeling.backbone"


class Mlp(nn.Module):
    def __init__(self, in_features, hidden_features, act_layer):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def _timm():
    """What main's file imports of timm, if timm is not installed."""
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath = lambda rate: StochasticDepth(rate, "row")
    layers.Mlp = Mlp
    return {
        "timm": types.ModuleType("timm"),
        "timm.models": types.ModuleType("timm.models"),
        "timm.models.layers": layers,
    }


@contextlib.contextmanager
def mains_vit():
    """Give main's module, or None if it is nowhere. It can only be used inside the context."""
    before = dict(sys.modules)
    try:
        if importlib.util.find_spec("timm") is None:
            sys.modules.update(_timm())
        yield _module()
    finally:
        for name in sys.modules.keys() - before.keys():
            if name.startswith(("timm", f"{_PACKAGE}.utils", f"{_PACKAGE}.vit")):
                del sys.modules[name]


def _module():
    folder = os.environ.get(CHECKOUT)
    if folder is None:
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"{_PACKAGE}.vit")
        return None
    for name in ("utils", "vit"):
        file = Path(folder, *_PACKAGE.split("."), f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"{_PACKAGE}.{name}", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return module
