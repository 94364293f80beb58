"""Reads what names and config files say about a network: its architecture and its input.

Some networks have the tensors of a plain ResNet but compute other features, so no tensor shows the
difference. Their authors' files and folders name them:

* timm and the Hugging Face hub keep ``config.json`` and ``preprocessor_config.json`` beside the
  weights,
* training scripts save the name of the architecture under ``arch``,
* published files have the name of the architecture in their own name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_d2.checkpoint.families import UNIT, Input
from moco_d2.errors import UserError, printable
from moco_d2.files import read_plain_json

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_MOST_BYTES = 1 << 20  # of a config; real ones have a few kilobytes
_LARGEST_PIXEL = 255.0
_MOST_LETTERS = 100  # of a quoted name
_LONGEST_NAME = 300  # of an architecture or a file, in characters
# Parts of the names of architectures in timm, torchvision, mmpretrain and PaddleClas.
_PREFIXES = "se|eca|ecal|sk|gc|cbam|nf"
_WORD = re.compile(
    rf"(?<![a-z])(?P<before>(?:{_PREFIXES})_?|)resne(?:x|s)?t(?P<inside>[a-z]*)(?P<depth>\d+)"
    r"(?P<after>(?:[cdst]|ts|gn)?)(?![a-z\d])(?P<version>_v?1[cdes](?![a-z\d])|_gn(?![a-z]))?",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"resnest\d+", re.IGNORECASE)
_BLURRED = re.compile(r"aa|blur", re.IGNORECASE)


@dataclass(frozen=True)
class Stated:
    """What the files beside a checkpoint say about its network.

    Attributes:
        config: The content of ``config.json``; empty if there is none.
        input: The input format; None if no file states it.
    """

    config: Mapping[str, Any]
    input: Input | None = None

    @property
    def stride_in_1x1(self) -> bool:
        """Return whether transformers' ResNet has its stride in the first 1x1 convolution."""
        return self.config.get("downsample_in_bottleneck") is True


NOTHING = Stated({})


def read_stated(path: Path) -> Stated:
    """Return what the files beside a checkpoint say.

    A file that cannot be read, or is of another program, says nothing.
    """
    config, preprocessor = (_json(path.parent / name) for name in (_CONFIG, _PREPROCESSOR))
    if not any(key in config for key in ("architecture", "architectures")):
        return NOTHING
    if preprocessor.get("do_normalize") is False:
        return Stated(config, UNIT)
    timm = config.get("pretrained_cfg")
    for source, mean, std in (
        (timm if isinstance(timm, dict) else {}, "mean", "std"),
        (config, "mean", "std"),
        (preprocessor, "image_mean", "image_std"),
    ):
        if pixels := _input(source.get(mean), source.get(std)):
            return Stated(config, pixels)
    return Stated(config)


def check_plain(checkpoint: Mapping[Any, Any], file_name: str, stated: Stated) -> None:
    """Refuse a network that has a plain ResNet's tensors but computes other features.

    Args:
        checkpoint: The file's dict.
        file_name: The file's name.
        stated: What the files beside it say.

    Raises:
        UserError: If one of the names is that of such a network.
    """
    for where, name in _names(checkpoint, file_name, stated):
        if reason := _difference(name):
            raise UserError(
                f"{where} says {printable(name)[:_MOST_LETTERS]!r}: {reason}, so its features "
                "are not those of the plain ResNet that has the same tensors; use a checkpoint of "
                f"a plain ResNet, or correct {where} if it is one"
            )
    if stated.config.get("model_type") == "resnet":
        if stated.config.get("downsample_in_first_stage") is True:
            raise UserError(
                f"its {_CONFIG} says downsample_in_first_stage, which Detectron2's ResNet does not "
                "do; use a checkpoint without it"
            )
        activation = stated.config.get("hidden_act", "relu")
        if activation != "relu":
            raise UserError(
                f"its {_CONFIG} says hidden_act {printable(str(activation))[:_MOST_LETTERS]!r}, "
                "but Detectron2's ResNet computes ReLU; use a checkpoint with ReLU"
            )


def _names(
    checkpoint: Mapping[Any, Any], file_name: str, stated: Stated
) -> Iterator[tuple[str, str]]:
    yield "its file name", file_name
    if isinstance(arch := checkpoint.get("arch"), str):
        yield "its entry 'arch'", arch
    for key in ("architecture", "pretrained_cfg"):
        value = stated.config.get(key)
        name = value.get("architecture") if isinstance(value, dict) else value
        if isinstance(name, str):
            yield f"the {_CONFIG} beside it", name


def _difference(name: str) -> str | None:
    for word in _WORD.finditer(name[:_LONGEST_NAME]):
        if _BLURRED.fullmatch(word["inside"]):
            return "it blurs where a plain ResNet strides (anti-aliasing)"
        if word["inside"] or word["before"] or word["after"] or word["version"]:
            return "its blocks or its stem are not those of a plain ResNet"
        if _SPLIT.match(word[0]):
            return "its blocks have split attention"
    return None


def _input(mean: Any, std: Any) -> Input | None:
    """Return three means and standard deviations of pixels in [0, 1] as Detectron2's input."""
    for values in (mean, std):
        if not isinstance(values, list) or len(values) != 3:
            return None
        if not all(type(v) in (int, float) and 0 <= v <= 1 for v in values):
            return None
    scaled = [tuple(round(v * _LARGEST_PIXEL, 6) for v in values) for values in (mean, std)]
    return Input("RGB", *scaled) if all(scaled[1]) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_plain_json(path, _MOST_BYTES)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
