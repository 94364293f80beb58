"""The names that different projects give to the tensors of the same ResNet.

A dialect is a table: torchvision's name of a module -> the other project's name. All translations
follow from these tables, in both directions.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moco_d2.resnet import BASIC_DEPTHS, BOTTLENECK_DEPTHS

STATISTICS = ("running_mean", "running_var")
_STAGES = 4
_MOST_BLOCKS = max(max(blocks) for blocks in (BASIC_DEPTHS | BOTTLENECK_DEPTHS).values())
_CONVOLUTIONS = ("conv1", "conv2", "conv3", "downsample.0")
_NORMS = ("bn1", "bn2", "bn3", "downsample.1")
_WEIGHT = {"weight": ".weight"}
_BATCH_NORM = {leaf: f".{leaf}" for leaf in ("weight", "bias", *STATISTICS, "num_batches_tracked")}
_BOUNDARY = re.compile(r"[./]")


@dataclass(frozen=True, eq=False)
class Dialect:
    """Names and layout of a ResNet's tensors.

    Args:
        name: The name of the dialect.
        stem: The names of ``conv1`` and ``bn1``.
        block: The prefix of a block's layers, with ``{stage}`` from 1 to 4 and ``{block}`` from 0.
        layers: torchvision's name of a layer in a block -> its name in this dialect.
        convolution: torchvision's name of a convolution's tensor -> suffix in this dialect.
        norm: The same for a BatchNorm. A tensor that is absent here is not stored.
        channels_last: Whether convolutions are stored as (height, width, in, out).
    """

    name: str
    stem: tuple[str, str]
    block: str
    layers: Mapping[str, str]
    convolution: Mapping[str, str] = field(default_factory=lambda: _WEIGHT)
    norm: Mapping[str, str] = field(default_factory=lambda: _BATCH_NORM)
    channels_last: bool = False

    @functools.cached_property
    def from_torchvision(self) -> dict[str, str]:
        """Return the table of all tensors: torchvision's name -> name in this dialect."""
        names: dict[str, str] = {}

        def add(module: str, translated: str, leaves: Mapping[str, str]) -> None:
            names.update(
                {f"{module}.{leaf}": translated + suffix for leaf, suffix in leaves.items()}
            )

        add("conv1", self.stem[0], self.convolution)
        add("bn1", self.stem[1], self.norm)
        for stage in range(1, _STAGES + 1):
            for block in range(_MOST_BLOCKS):
                prefix = self.block.format(
                    stage=stage, block=block, block_from_1=block + 1, **_counted_otherwise(stage)
                )
                for layers, leaves in (
                    (_CONVOLUTIONS, self.convolution),
                    (_NORMS, self.norm),
                ):
                    for layer in layers:
                        add(f"layer{stage}.{block}.{layer}", prefix + self.layers[layer], leaves)
        return names

    @functools.cached_property
    def to_torchvision(self) -> dict[str, str]:
        """Return the inverse of `from_torchvision`."""
        return {translated: name for name, translated in self.from_torchvision.items()}

    def is_inside(self, name: str) -> bool:
        """Return whether a name without its prefix is one of the stem or of a stage."""
        return name.startswith(self._parts)

    @functools.cached_property
    def _parts(self) -> tuple[str, ...]:
        stages = self.block.partition("{block")[0]
        return tuple(
            [
                stages.format(stage=stage, **_counted_otherwise(stage))
                for stage in range(1, _STAGES + 1)
            ]
            + [f"{module}." for module in self.stem]
        )

    def as_torchvision(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor in torchvision's layout; `name` is torchvision's name."""
        if not self.channels_last:
            return tensor
        if name.rpartition(".")[0].endswith(_CONVOLUTIONS):
            return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
        return tensor.reshape(-1)

    def absent(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the BatchNorm statistics that this dialect folds into scale and offset."""
        if not self.norm.keys().isdisjoint(STATISTICS):
            return {}
        filled = {}
        for name, tensor in tensors.items():
            module, _, leaf = name.rpartition(".")
            if leaf == "bias":
                filled[f"{module}.running_mean"] = torch.zeros_like(tensor)
                filled[f"{module}.running_var"] = torch.ones_like(tensor)
        return filled


def _counted_otherwise(stage: int) -> dict[str, int]:
    return {"stage_from_0": stage - 1, "stage_from_2": stage + 1, "stage_from_4": stage + 3}


TORCHVISION = Dialect(
    "torchvision",
    stem=("conv1", "bn1"),
    block="layer{stage}.{block}.",
    layers={name: name for name in _CONVOLUTIONS + _NORMS},
)
# The names of nn.Sequential(*resnet.children()), where 2 and 3 are the ReLU and the pooling.
INDEXED = Dialect(
    "indexed", stem=("0", "1"), block="{stage_from_4}.{block}.", layers=TORCHVISION.layers
)
DETECTRON2 = Dialect(
    "detectron2",
    stem=("stem.conv1", "stem.conv1.norm"),
    block="res{stage_from_2}.{block}.",
    layers={
        **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
        **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
        "downsample.0": "shortcut",
        "downsample.1": "shortcut.norm",
    },
)
SIMCLR_V2 = Dialect(
    "simclr_v2",
    stem=("net.0.0", "net.0.1.0"),
    block="net.{stage}.blocks.{block}.",
    layers={
        **{f"conv{i}": f"net.{2 * i - 2}" for i in (1, 2, 3)},
        **{f"bn{i}": f"net.{2 * i - 1}.0" for i in (1, 2, 3)},
        "downsample.0": "projection.shortcut",
        "downsample.1": "projection.bn.0",
    },
)
PYCLS = Dialect(
    "pycls",
    stem=("stem.conv", "stem.bn"),
    block="s{stage}.b{block_from_1}.",
    layers={
        **{f"conv{i}": f"f.{letter}" for i, letter in ((1, "a"), (2, "b"), (3, "c"))},
        **{f"bn{i}": f"f.{letter}_bn" for i, letter in ((1, "a"), (2, "b"), (3, "c"))},
        "downsample.0": "proj",
        "downsample.1": "bn",
    },
)
# Detectron's first version. BatchNorm is folded into a scale and an offset.
CAFFE2 = Dialect(
    "caffe2",
    stem=("conv1", "res_conv1"),
    block="res{stage_from_2}_{block}_branch",
    layers={
        **{f"{kind}{i}": f"2{letter}" for kind in ("conv", "bn") for i, letter in
           ((1, "a"), (2, "b"), (3, "c"))},
        "downsample.0": "1",
        "downsample.1": "1",
    },
    convolution={"weight": "_w"},
    norm={"weight": "_bn_s", "bias": "_bn_b"},
)  # fmt: skip
# The names of resnet.py in moco.tensorflow.
TENSORPACK = Dialect(
    "tensorpack",
    stem=("conv0", "conv0_bn"),
    block="group{stage_from_0}/block{block}/",
    layers={
        **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
        **{f"bn{i}": f"conv{i}_bn" for i in (1, 2, 3)},
        "downsample.0": "convshortcut",
        "downsample.1": "convshortcut_bn",
    },
    convolution={"weight": "/W:0"},
    norm={
        "weight": "/gamma:0",
        "bias": "/beta:0",
        "running_mean": "/mean/EMA:0",
        "running_var": "/variance/EMA:0",
    },
    channels_last=True,
)
# The names of ResNetModel in Hugging Face transformers.
TRANSFORMERS = Dialect(
    "transformers",
    stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
    block="encoder.stages.{stage_from_0}.layers.{block}.",
    layers={
        **{f"conv{i}": f"layer.{i - 1}.convolution" for i in (1, 2, 3)},
        **{f"bn{i}": f"layer.{i - 1}.normalization" for i in (1, 2, 3)},
        "downsample.0": "shortcut.convolution",
        "downsample.1": "shortcut.normalization",
    },
)
HAIKU = Dialect(
    "haiku",
    stem=("initial_conv", "initial_batchnorm"),
    block="block_group_{stage_from_0}/~/block_{block}/~/",
    layers={
        **{f"conv{i}": f"conv_{i - 1}" for i in (1, 2, 3)},
        **{f"bn{i}": f"batchnorm_{i - 1}" for i in (1, 2, 3)},
        "downsample.0": "shortcut_conv",
        "downsample.1": "shortcut_batchnorm",
    },
    convolution={"weight": "/w"},
    norm={
        "weight": "/scale",
        "bias": "/offset",
        "running_mean": "/~/mean_ema/average",
        "running_var": "/~/var_ema/average",
    },
    channels_last=True,
)
DIALECTS = (
    TORCHVISION, INDEXED, DETECTRON2, SIMCLR_V2, PYCLS, CAFFE2, TENSORPACK, HAIKU,
    TRANSFORMERS,
)  # fmt: skip


def split(name: str) -> list[tuple[Dialect, str, str]]:
    """Split a tensor's name in every dialect that has it: dialect, prefix, torchvision's name.

    ``module.encoder_q.layer1.0.conv1.weight`` -> (TORCHVISION, ``module.encoder_q.``,
    ``layer1.0.conv1.weight``). The dialects are in the order of `DIALECTS`, each with its shortest
    prefix.
    """
    names, longest = _in_all_dialects()
    found: dict[int, tuple[Dialect, str, str]] = {}
    for start in (0, *(boundary.end() for boundary in _BOUNDARY.finditer(name))):
        if len(name) - start <= longest:
            for number, in_torchvision in names.get(name[start:], ()):
                found.setdefault(number, (DIALECTS[number], name[:start], in_torchvision))
    return [found[number] for number in sorted(found)]


@functools.cache
def _in_all_dialects() -> tuple[dict[str, list[tuple[int, str]]], int]:
    """Return name -> (index in `DIALECTS`, torchvision's name), and the length of the longest."""
    names: dict[str, list[tuple[int, str]]] = {}
    for number, dialect in enumerate(DIALECTS):
        for translated, in_torchvision in dialect.to_torchvision.items():
            names.setdefault(translated, []).append((number, in_torchvision))
    return names, max(map(len, names))
