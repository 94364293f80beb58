"""Reads what names and config files say about a network: its architecture and its input.

Some networks have the tensors of a plain ResNet but compute other features, so no tensor shows the
difference. Their authors' files and folders name them:

* timm and the Hugging Face hub keep ``config.json`` and ``preprocessor_config.json`` beside the
  weights,
* training scripts save the name of the architecture under ``arch``,
* published files have the name of the architecture in their own name,
* a run of Detectron2 has its ``config.yaml`` beside its checkpoints.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from moco_d2.checkpoint.families import FAIR, MSRA, UNIT, Input, Traits, input_of
from moco_d2.config.literals import decode
from moco_d2.config.safe_yaml import UNREADABLE, read_config
from moco_d2.errors import UserError, printable
from moco_d2.files import is_regular_file, read_plain_json

_CONFIG, _PREPROCESSOR, _RUN = "config.json", "preprocessor_config.json", "config.yaml"
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
# OpenMMLab's and other copies of Caffe's networks.
_CAFFE = re.compile(r"(?<![a-z])(?:msra|caffe)(?![a-z\d])", re.IGNORECASE)
_FAIR_RESNEXT = "resnext101_32x8d-1516f1aa"  # OpenMMLab's copy of FAIR's X-101-32x8d
# Arguments of timm's ResNet that change no feature, or whose effect the shapes show.
_SHOWN = frozenset(
    (
        *("num_classes", "in_chans", "layers", "channels", "cardinality", "base_width"),
        *("drop_rate", "drop_path_rate", "drop_block_rate", "global_pool", "zero_init_last"),
        *("img_size", "input_size", "features_only", "pretrained"),
    )
)
# The values of its other arguments with which it is a plain ResNet, besides None, False and "".
_PLAIN = {
    "output_stride": (32,),
    "act_layer": ("relu",),
    "norm_layer": ("batchnorm", "batchnorm2d"),
    "block": ("basic", "bottleneck", "BasicBlock", "Bottleneck"),
    "block_reduce_first": (1,),
    "down_kernel_size": (1,),
    "stem_width": (64,),
}


@dataclass(frozen=True)
class Stated:
    """What the files beside a checkpoint say about its network.

    Attributes:
        config: The content of ``config.json``; empty if there is none.
        input: The input format; None if no file states it.
        run: What the ``config.yaml`` of a run of Detectron2 says; None if there is none.
        unreadable: File name -> why the file cannot be read.
    """

    config: Mapping[str, Any]
    input: Input | None = None
    run: Traits | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def stride_in_1x1(self) -> bool:
        """Return whether transformers' ResNet has its stride in the first 1x1 convolution."""
        return self.config.get("downsample_in_bottleneck") is True


NOTHING = Stated({})


def read_stated(path: Path) -> Stated:
    """Return what the files beside a checkpoint say. A file of another program says nothing."""
    unreadable: dict[str, str] = {}
    config, preprocessor = (
        _json(path.parent / name, unreadable) for name in (_CONFIG, _PREPROCESSOR)
    )
    run = _read_run(path.parent / _RUN, unreadable)
    if not any(key in config for key in ("architecture", "architectures")):
        return Stated({}, None, run, unreadable)
    return Stated(config, _stated_input(config, preprocessor), run, unreadable)


def _stated_input(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Input | None:
    if preprocessor.get("do_normalize") is False:
        return UNIT
    timm = config.get("pretrained_cfg")
    for source, mean, std in (
        (timm if isinstance(timm, dict) else {}, "mean", "std"),
        (config, "mean", "std"),
        (preprocessor, "image_mean", "image_std"),
    ):
        if pixels := _input(source.get(mean), source.get(std)):
            return pixels
    return None


class _Run(msgspec.Struct):
    """Keys of Detectron2's config, with its defaults."""

    format: Literal["RGB", "BGR"] = "BGR"
    pixel_mean: tuple[float, float, float] = MSRA.pixel_mean
    pixel_std: tuple[float, float, float] = MSRA.pixel_std
    stride_in_1x1: bool = True
    res5_dilation: int = 1


def _read_run(path: Path, unreadable: dict[str, str]) -> Traits | None:
    if not is_regular_file(path):
        return None
    try:
        content = read_config(path)
        model, images = content.get("MODEL"), content.get("INPUT")
        resnets = model.get("RESNETS") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(resnets, dict):
            return None  # of another program
        sections = {"INPUT": images if isinstance(images, dict) else {}}
        sections |= {"MODEL": model, "RESNETS": resnets}
        keys = {
            field: decode(sections[section][field.upper()])
            for section, fields in (
                ("INPUT", ("format",)),
                ("MODEL", ("pixel_mean", "pixel_std")),
                ("RESNETS", ("stride_in_1x1", "res5_dilation")),
            )
            for field in fields
            if field.upper() in sections[section]
        }
        run = msgspec.convert(keys, _Run)
        if input_of(run.pixel_mean, run.pixel_std) is None:
            raise ValueError("MODEL.PIXEL_MEAN or PIXEL_STD has a value that none can have")
    except (*UNREADABLE, msgspec.ValidationError) as error:
        unreadable[_RUN] = _reason(error)
        return None
    caveats = ["the input format and the stride are those of the config.yaml beside it"]
    if run.res5_dilation != 1:
        caveats.append(
            f"that config dilates res5 by {run.res5_dilation} instead of striding: with strides, "
            "the features are not those of the original"
        )
    pixels = Input(run.format, run.pixel_mean, run.pixel_std)
    return Traits(pixels, run.stride_in_1x1, tuple(caveats), certain=True)


def named_traits(
    checkpoint: Mapping[Any, Any], file_name: str, stated: Stated, groups: int
) -> Traits | None:
    """Return the traits of Caffe's networks if a name says that it is one; otherwise None.

    Args:
        checkpoint: The file's dict.
        file_name: The file's name.
        stated: What the files beside it say.
        groups: The number of groups of the network's 3x3 convolutions.
    """
    for where, name in stated_names(checkpoint, file_name, stated):
        is_caffe = _CAFFE.search(name[:_LONGEST_NAME])
        if _FAIR_RESNEXT in name or (groups > 1 and is_caffe):
            caveat = "that of FAIR's ResNeXt: BGR and std 57.375 57.12 58.395"
            return Traits(FAIR, caveats=(f"by {where}, its input is {caveat}",))
        if is_caffe:
            caveat = "one of Caffe's style: BGR, std 1, and the stride in the 1x1 convolution"
            return Traits(MSRA, stride_in_1x1=True, caveats=(f"by {where}, it is {caveat}",))
    return None


def check_plain(checkpoint: Mapping[Any, Any], file_name: str, stated: Stated) -> None:
    """Refuse a network that has a plain ResNet's tensors but computes other features.

    Args:
        checkpoint: The file's dict.
        file_name: The file's name.
        stated: What the files beside it say.

    Raises:
        UserError: If one of the names is that of such a network.
    """
    for where, name in stated_names(checkpoint, file_name, stated):
        if reason := _difference(name):
            raise UserError(
                f"{where} says {printable(name)[:_MOST_LETTERS]!r}: {reason}, so its features "
                "are not those of the plain ResNet that has the same tensors; use a checkpoint of "
                f"a plain ResNet, or correct {where} if it is one"
            )
    _check_arguments(stated.config.get("model_args"))
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


def _check_arguments(arguments: Any) -> None:
    """Refuse arguments of timm's ResNet with which it computes other features."""
    for key, value in arguments.items() if isinstance(arguments, dict) else ():
        if key in _SHOWN or value is None or value is False or value == "":
            continue
        if value not in _PLAIN.get(key, ()):
            said = printable(f"{key} {value!r}")[:_MOST_LETTERS]
            raise UserError(
                f"its {_CONFIG} says model_args {said}, but Detectron2's ResNet is timm's without "
                "it, so its features may differ; use a checkpoint of a plain ResNet"
            )


def stated_names(
    checkpoint: Mapping[Any, Any], file_name: str, stated: Stated
) -> Iterator[tuple[str, str]]:
    """Yield where a name of the network is, and the name."""
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


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:_MOST_LETTERS]


def _json(path: Path, unreadable: dict[str, str]) -> dict[str, Any]:
    if not is_regular_file(path):
        return {}
    try:
        content = read_plain_json(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        unreadable[path.name] = _reason(error)
        return {}
    return content if isinstance(content, dict) else {}
